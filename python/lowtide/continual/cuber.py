# SPDX-License-Identifier: Apache-2.0
"""Backward transfer: where a new task pulls the same way as an old one, the old one's weights may move too."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.continual._layers import Patterns
from lowtide.continual.trust import ALIGNED, APART, TRGP, TRUSTED, Loss, _take
from lowtide.errors import LowtideValueError
from lowtide.optim.constraints import Projection
from lowtide.optim.norms import dot


class CUBER(TRGP):
    """Continual learning with backward knowledge transfer (Lin et al., NeurIPS 2022, arXiv 2211.00789, section 4 and algorithm 1).

    :class:`TRGP` with a third regime. An old task j that a layer trusts is *aligned* if the gradient it ended with has a
    cosine of ``correlation`` or more with the new task's first one. Then its directions are not removed from the update
    (unless another old task needs them), and the loss gains ``strength * |Proj_j(W - W_before)|``. At every step the gradient is
    compared again; once the cosine falls below ``correlation``, j is only trusted from there on.

    Keeps a gradient of each task, as large as the weights, and a copy of the weights while a task is trained.

    Args:
        model, loss, threshold, trust, most, growth, layers: as in :class:`TRGP` (the paper's: trust 0.5, most 2).
        correlation: the paper's epsilon_2, in [-1, 1]; 0, 0.2 and 0.5 did alike there, 0 transferred most.
        strength: the paper's lambda, >= 0. The paper's text gives no value; 1 is ours.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        threshold: float = 0.97,
        *,
        trust: float = 0.5,
        most: int = 2,
        correlation: float = 0.0,
        strength: float = 1.0,
        growth: float = 0.0,
        layers: Patterns = None,
    ) -> None:
        super().__init__(model, loss, threshold, trust=trust, most=most, growth=growth, layers=layers)
        if not -1.0 <= correlation <= 1.0:
            raise LowtideValueError(f"correlation must be in [-1, 1], got {correlation!r}")
        if not 0.0 <= strength < float("inf"):
            raise LowtideValueError(f"strength must be a finite number >= 0, got {strength!r}")
        self.correlation, self.strength = correlation, strength
        #: By layer and task, the gradient it ended with; and by layer the weights before the task in training.
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        self.start: dict[str, Tensor] = {}

    def begin(self, batches: Iterable[Any]) -> dict[str, list[int]]:
        """See :class:`TRGP`."""
        found = super().begin(batches)
        self.start = {
            name: self.layers[name].weight.detach().float().clone()
            for name, r in found.items()
            if ALIGNED in r
        }
        return found

    def learn(self, batches: Iterable[Any]) -> dict[str, int]:
        """See :class:`TRGP`; ``batches`` are gone through twice, the second time for the gradient that is remembered."""
        batches = list(batches)
        gradients = self._gradients(batches)
        kept = super().learn(batches)
        for name, g in gradients.items():
            self.gradients[name].append(g)
        self.start = {}
        return kept

    def constraint(self) -> AlignedConstraint:
        """See :class:`Memory`; for the task that :meth:`begin` began."""
        return AlignedConstraint(self)

    def aligned(self, name: str, old: int, gradient: Tensor) -> bool:
        """Whether ``gradient`` pulls the way that task ``old`` ended with."""
        g = self.gradients[name][old]
        return dot(g, gradient) >= self.correlation * math.sqrt(dot(g, g) * dot(gradient, gradient))

    def _regimes(self, name: str, gradient: Tensor) -> list[int]:
        found = super()._regimes(name, gradient)
        return [
            ALIGNED if r == TRUSTED and self.aligned(name, old, gradient) else r
            for old, r in enumerate(found)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """As :class:`TRGP`; and ``gradientJ`` and ``start``, each as large as the weight, fp32."""
        found = super().tensors()
        for name, gradients in self.gradients.items():
            for task, g in enumerate(gradients):
                found[f"{name}.gradient{task}"] = g
        for name, w in self.start.items():
            found[f"{name}.start"] = w
        return found

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        gradients, start = {}, {}
        for name, layer in self.layers.items():
            shape = tuple(layer.weight.shape)
            gradients[name] = [
                _take(tensors, f"{name}.gradient{t}", torch.float32, shape) for t in range(tasks)
            ]
            regimes = tensors.get(f"{name}.regimes")
            if regimes is not None and bool((regimes == ALIGNED).any()):
                start[name] = _take(tensors, f"{name}.start", torch.float32, shape)
        super()._restore(tensors, tasks)
        self.gradients, self.start = gradients, start


class AlignedConstraint:
    """What :class:`CUBER` gives an optimizer (a :class:`lowtide.optim.Constraint`). It follows the memory's regimes, which change
    in training: save both."""

    def __init__(self, memory: CUBER) -> None:
        self._memory = memory
        self._names = {
            id(layer.weight): name for name, layer in memory.layers.items() if memory.pools[name].shape[0]
        }
        self._projections: dict[str, tuple[tuple[int, ...], Projection]] = {}

    def holds(self, p: Tensor) -> bool:
        """See :class:`lowtide.optim.Constraint`."""
        return id(p) in self._names

    def digest(self, p: Tensor) -> str:
        """See :class:`lowtide.optim.Constraint`."""
        name = self._names[id(p)]
        seen = hashlib.sha256(self._memory.pools[name].numpy().tobytes())
        for rows in self._memory.chosen[name]:
            seen.update(rows.numpy().tobytes())
        return f"cuber {seen.hexdigest()[:32]}"

    def of_gradient(self, p: Tensor, grad: Tensor) -> Tensor:
        """Demote tasks that it no longer agrees with, then add the pull back to where the aligned ones were."""
        from lowtide import ops

        memory, name = self._memory, self._names[id(p)]
        regimes = memory.regimes[name]
        out = grad
        for old, regime in enumerate(regimes):
            if regime != ALIGNED:
                continue
            if not memory.aligned(name, old, grad.float()):
                regimes[old] = TRUSTED
                continue
            b = memory.basis(name, old)
            moved = ops.matmul(ops.matmul(p.detach().float() - memory.start[name], b, tb=True), b)
            norm = math.sqrt(dot(moved, moved))
            if norm > 0.0:
                out = out + moved * (memory.strength / norm)
        return out

    def of_update(self, p: Tensor, update: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """Without the directions of tasks that are not aligned."""
        return self._projection(self._names[id(p)])(update), 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the directions in use; the memory has its own :attr:`~CUBER.nbytes`."""
        return sum(self._memory.pools[name].nbytes for name in self._names.values())

    def _projection(self, name: str) -> Projection:
        regimes = tuple(self._memory.regimes[name]) or (APART,) * self._memory.tasks
        if name not in self._projections or self._projections[name][0] != regimes:
            closed = [self._memory.chosen[name][old] for old, r in enumerate(regimes) if r != ALIGNED]
            rows = torch.unique(torch.cat(closed)).long() if closed else torch.zeros(0, dtype=torch.long)
            self._projections[name] = (regimes, Projection(self._memory.pools[name][rows]))
        return self._projections[name][1]
