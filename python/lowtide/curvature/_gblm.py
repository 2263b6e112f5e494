# SPDX-License-Identifier: Apache-2.0
"""Pruning scores from weights, inputs and gradients (GBLM-Pruner), streamed over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowtide._compile import hooks_seen
from lowtide.curvature._problem import Problem
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError


@dataclass(frozen=True, eq=False)
class PruningStatistics:
    """What the scores of linear layers are made of; see :func:`pruning_statistics`.

    Attributes:
        inputs: by parameter name, float32 ``(in,)``: mean over samples of ``||x_j||^2``.
        gradients: by parameter name, float32 ``(out, in)``: ``sum |s g|`` (l1) or ``sqrt(sum (s g)^2)`` (l2) over batches.
        samples: how many samples went by.
        norm: ``"l1"`` or ``"l2"``.
        scale: s, on gradients.
    """

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    samples: int
    norm: str
    scale: float

    def scores(self, name: str, weight: Tensor, *, inverse: bool = False) -> Tensor:
        """``|W| sqrt(inputs) + |W| gradients`` (arXiv 2311.04902, eq. 2), float32 ``(out, in)``; the lowest go.

        Args:
            name: of the parameter.
            weight: ``(out, in)``.
            inverse: the authors' variant ``|W| sqrt(inputs) / (gradients + 1e-8)``.
        """
        if name not in self.inputs:
            raise LowtideValueError(
                f"name: there are no statistics of {name!r}, only of {', '.join(list(self.inputs)[:3])} ..."
            )
        gradients = self.gradients[name]
        if weight.shape != gradients.shape:
            raise LowtideValueError(
                f"weight must have shape {tuple(gradients.shape)}, got {tuple(weight.shape)}"
            )
        size = weight.detach().float().abs()
        wanda = size * self.inputs[name].sqrt()
        return wanda / (gradients + 1e-8) if inverse else wanda + size * gradients

    def __repr__(self) -> str:
        return f"PruningStatistics({len(self.inputs)} layers, {self.samples} samples, {self.norm}, scale {self.scale:g})"


def pruning_statistics(
    problem: Problem, *, norm: str = "l2", scale: float = 100.0, progress: bool = False
) -> PruningStatistics:
    """Inputs and gradients of the ``nn.Linear`` layers among the problem's parameters, in one pass over the data.

    Memory: one float32 number a weight for gradients and one a column for inputs; each gradient is taken in and freed as the
    backward pass gets to it, so no two are held. The model and its ``.grad`` stay as they are. GBLM takes 128 batches of one
    sample (a batch of more counts by its mean gradient). A layer's samples are the first dimension of its inputs.

    Args:
        problem: model, parameters, data and loss.
        norm: over batches, ``"l2"`` or ``"l1"``.
        scale: factor on gradients against the term of the inputs.
        progress: show a tqdm bar.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named. LowtideRuntimeError: a layer that was never run, or
            numbers that are not finite.
    """
    if norm not in ("l1", "l2"):
        raise LowtideValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise LowtideValueError(f"scale must be positive, got {scale!r}")
    if not isinstance(problem, Problem):
        raise LowtideTypeError(f"problem must be a Problem, got {type(problem).__name__}")
    layers = _linear_layers(problem)
    squares = {
        name: torch.zeros(m.in_features, dtype=torch.float64, device=m.weight.device)
        for name, m in layers.items()
    }
    counts = dict.fromkeys(layers, 0)
    sums = {name: torch.zeros(m.weight.shape, device=m.weight.device) for name, m in layers.items()}

    def visit(t: int, gradient: Tensor, weight: float) -> None:
        total = sums.get(problem.layout.names[t])
        if total is None:
            return
        if norm == "l1":
            total.add_(gradient.abs(), alpha=scale)
        else:
            total.addcmul_(gradient.float(), gradient.float(), value=scale * scale)

    def see(name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        squares[name] += rows.double().square().sum(0)
        counts[name] += len(x) if x.dim() > 1 else 1

    with (
        problem.frozen(),
        _hooks(layers, see),
        progress_bar(progress, None, "pruning statistics", unit="batch") as bar,
    ):

        def batches() -> Iterator[tuple[Any, float]]:
            for pair in problem.batches():
                yield pair
                bar.update(1)

        problem.visit_gradients(None, visit, batches=batches())
    idle = [name for name, count in counts.items() if not count]
    if idle:
        raise LowtideRuntimeError(f"the loss never runs the layer of {idle[0]}; leave it out of params")
    inputs = {name: (total / counts[name]).float() for name, total in squares.items()}
    gradients = {name: total.sqrt_() if norm == "l2" else total for name, total in sums.items()}
    for name in layers:
        if not bool(inputs[name].isfinite().all() and gradients[name].isfinite().all()):
            raise LowtideRuntimeError(
                f"inputs or gradients of {name} are not finite; check the data and the model"
            )
    return PruningStatistics(inputs, gradients, max(counts.values()), norm, scale)


def _linear_layers(problem: Problem) -> dict[str, nn.Linear]:
    modules = dict(problem.model.named_modules())
    found = {}
    for name in problem.layout.names:
        module = modules.get(name.removesuffix(".weight") if name != "weight" else "")
        if isinstance(module, nn.Linear) and name.endswith("weight"):
            found[name] = module
    if not found:
        raise LowtideValueError("problem: none of its params is the weight of an nn.Linear")
    return found


@contextmanager
def _hooks(layers: dict[str, nn.Linear], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
        for name, module in layers.items()
    ]
    try:
        with hooks_seen():
            yield
    finally:
        for handle in handles:
            handle.remove()
