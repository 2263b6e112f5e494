# SPDX-License-Identifier: Apache-2.0
"""m-coherence: how far the gradients of single examples point the same way, over the whole model and by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lowtide._compile import hooks_seen
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideTypeError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.curvature._problem import Problem

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Coherence:
    """m-coherence (Chatterjee and Zielinski 2022): ``|sum_i g_i|^2 / sum_i |g_i|^2`` over examples.

    Attributes:
        value: from 0 (gradients cancel) over 1 (they are orthogonal) to ``examples`` (they are all the same).
        alpha: ``value / examples``, at most 1.
        examples: how many.
        per_layer: value of each module that has parameters, by its name.
        gradient_norm: of the mean gradient.
    """

    value: float
    alpha: float
    examples: int
    per_layer: dict[str, float]
    gradient_norm: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as JSON takes them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def coherence(problem: Problem, *, method: str = "auto", progress: bool = False) -> Coherence:
    """m-coherence of the gradients of single examples, from one pass over the data.

    An example is an entry of the batch's first dimension, and its gradient is that of its part of the weighted mean loss. Memory:
    one vector of n numbers; "hooks" adds the inputs and output gradients of the layers.

    Args:
        problem: model, data and loss.
        method: ``"hooks"``: one backward pass a batch, ``|g_i|^2 = sum_tt' (x_t . x_t') (d_t . d_t')`` from each layer's
            inputs x and output gradients d; for parameters of Linear, Conv1d and Conv2d, used once a forward pass.
            ``"loop"``: one backward pass an example; any model. ``"auto"``: hooks where it applies.
        progress: show a bar over examples (needs tqdm).

    Raises:
        LowtideValueError: an unknown method, "hooks" on a model it does not fit, with the reason, or a model that normalizes
            over the batch, where the gradient of one example does not exist.
    """
    if method not in ("auto", "hooks", "loop"):
        raise LowtideValueError(f"method must be one of auto, hooks, loop, got {method!r}")
    for name, module in problem.model.named_modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training
            and problem.state != "eval"
        ):
            raise LowtideValueError(
                f"model: {name or 'it'} normalizes over the batch, so single examples have no gradient; "
                "pass state='eval' to Problem"
            )
    layers = None
    if method != "loop":
        layers, obstacle = _layers(problem)
        if obstacle and method == "hooks":
            raise LowtideValueError(f"method='hooks' does not fit: {obstacle}; use 'loop' or 'auto'")
        layers = None if obstacle else layers
    total = problem.layout.zeros()
    views = problem.layout.views(total)
    squares = [0.0] * len(views)
    examples = 0
    with progress_bar(progress, None, "coherence", unit="example") as bar, problem.frozen():
        for batch, weight in problem.batches():
            size = _examples(batch)
            if layers is not None and not _by_hooks(problem, layers, batch, weight, size, views, squares):
                if method == "hooks":
                    raise LowtideValueError(
                        "method='hooks' does not fit: a parameter is used more than once a forward pass, or by another "
                        "function than its module's; use 'loop' or 'auto'"
                    )
                layers = None
            if layers is None:
                _by_loop(problem, batch, weight, size, views, squares)
            examples += size
            bar.update(size)
    sums = [float((v * v).sum(dtype=torch.float64)) for v in views]
    owners: dict[str, list[int]] = {}
    for t, name in enumerate(problem.layout.names):
        owners.setdefault(name.rpartition(".")[0] or name, []).append(t)
    value = _ratio(sums, squares, range(len(sums)))
    return Coherence(
        value=value,
        alpha=value / examples,
        examples=examples,
        per_layer={owner: _ratio(sums, squares, parts) for owner, parts in owners.items()},
        gradient_norm=sum(sums) ** 0.5,
    )


def _ratio(sums: list[float], squares: list[float], parts: Any) -> float:
    below = sum(squares[t] for t in parts)
    return sum(sums[t] for t in parts) / below if below else 0.0


def _examples(batch: Any) -> int:
    for leaf in tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise LowtideTypeError(
        f"data: coherence needs batches that hold a tensor whose first dimension counts examples, got {type(batch).__name__}"
    )


def _by_loop(
    problem: Problem, batch: Any, weight: float, size: int, views: list[Tensor], squares: list[float]
) -> None:
    def single(i: int) -> Any:
        def cut(leaf: Any) -> Any:
            return (
                leaf[i : i + 1] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf
            )

        return tree_map(cut, dict(batch) if isinstance(batch, Mapping) else batch)

    # What an example weighs in its batch's mean: one token more is one more term.
    counts = [problem.loss.count(single(i)) for i in range(size)]

    def visit(t: int, gradient: Tensor, share: float) -> None:
        views[t].add_(gradient, alpha=share)
        squares[t] += share**2 * float((gradient * gradient).sum(dtype=torch.float64))

    for i, count in enumerate(counts):
        if count:
            share = weight * count / sum(counts)
            problem.visit_gradients(None, visit, batches=[(single(i), share)])


# ---- hooks ---------------------------------------------------------------------------------------------------------


def _layers(problem: Problem) -> tuple[list[tuple[nn.Module, int | None, int | None]], str]:
    """(module, tensor of its weight, tensor of its bias) for all tensors of the problem; and what stands in the way."""
    index = {name: t for t, name in enumerate(problem.layout.names)}
    layers: list[tuple[nn.Module, int | None, int | None]] = []
    owned = 0
    for name, module in problem.model.named_modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training
            and problem.state != "eval"
        ):
            return [], f"{name or 'the model'} normalizes over the batch"
        own = [index.get(f"{name}.{p}" if name else p) for p in ("weight", "bias")]
        if own == [None, None]:
            continue
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, _CONVOLUTIONS) and module.groups == 1 and module.padding_mode == "zeros"
        )
        if not plain or isinstance(getattr(module, "padding", 0), str):
            return [], f"{name or 'the model'} is a {type(module).__name__}"
        layers.append((module, own[0], own[1]))
        owned += sum(t is not None for t in own)
    uses: dict[int, int] = {}
    for p in (p for m in problem.model.modules() for p in m._parameters.values() if p is not None):
        uses[id(p)] = uses.get(id(p), 0) + 1
    if any(uses[id(p)] > 1 for m, *_ in layers for p in m.parameters(recurse=False)):
        return [], "a parameter is shared between modules"
    if owned < len(index):
        return [], "some parameters belong to no Linear or convolution"
    return layers, ""


def _by_hooks(
    problem: Problem,
    layers: list[tuple[nn.Module, int | None, int | None]],
    batch: Any,
    weight: float,
    size: int,
    views: list[Tensor],
    squares: list[float],
) -> bool:
    """Adds a batch, if its gradient is what went through the layers' hooks; else adds nothing and says False."""
    entered: set[int] = set()
    fits = True
    norms = [0.0] * len(views)
    #: of each tensor's gradient, times a fixed vector: by the hooks, and by the backward pass
    expected: dict[int, Tensor] = {}

    def taken(i: int, x: Tensor, gradient: Tensor) -> None:
        module, w, b = layers[i]
        x, d = _rows(module, x, gradient)
        if w is not None:
            norms[w] = _squares(x, d)
            expected[w] = d.flatten(0, 1).T @ (x.flatten(0, 1) @ _fixed(x))
        if b is not None:
            norms[b] = float(d.sum(1).square().sum(dtype=torch.float64))
            expected[b] = d.sum((0, 1))

    def forward(i: int, args: tuple[Any, ...], output: Any) -> None:
        nonlocal fits
        x = args[0] if args else None
        if i in entered or not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] != size:
            fits = False
        elif output.requires_grad:
            entered.add(i)
            x = x.detach()
            output.register_hook(lambda gradient: taken(i, x, gradient))

    handles = [
        module.register_forward_hook(lambda _m, args, output, i=i: forward(i, args, output))
        for i, (module, *_) in enumerate(layers)
    ]
    gradients = [torch.zeros_like(v) for v in views]
    try:
        with hooks_seen():
            problem.visit_gradients(
                None, lambda t, g, w: gradients[t].add_(g, alpha=w), batches=[(batch, 1.0)]
            )
    finally:
        for handle in handles:
            handle.remove()
    if not fits or not all(_agree(g, expected.get(t)) for t, g in enumerate(gradients)):
        return False
    for t, gradient in enumerate(gradients):
        views[t].add_(gradient, alpha=weight)
        squares[t] += weight**2 * norms[t]
    return True


def _fixed(x: Tensor) -> Tensor:
    """A vector like the rows of ``x`` that no gradient is orthogonal to by design."""
    return torch.cos(torch.arange(x.shape[-1], dtype=x.dtype, device=x.device))


def _agree(gradient: Tensor, expected: Tensor | None) -> bool:
    """Whether a gradient times the fixed vector is ``expected``, to far more than the rounding of a long sum."""
    rows = gradient.flatten(1) if gradient.dim() > 1 else gradient
    seen = rows @ _fixed(rows) if gradient.dim() > 1 else rows
    error = seen if expected is None else seen - expected.to(seen.dtype)
    allowed = math.sqrt(torch.finfo(seen.dtype).eps * rows.shape[-1]) * float(rows.norm())
    return float(error.norm()) <= allowed


def _rows(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``(examples, positions, in)`` and output gradients ``(examples, positions, out)`` of a product with the weight."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]), gradient.reshape(len(x), -1, gradient.shape[-1])
    assert isinstance(module, _CONVOLUTIONS)
    one = isinstance(module, nn.Conv1d)

    def pair(value: Any) -> tuple[int, ...]:
        return (1, *value) if one else tuple(value)

    patches = F.unfold(
        x.unsqueeze(2) if one else x,
        pair(module.kernel_size),
        dilation=pair(module.dilation),
        padding=(0, *pair(module.padding)[1:]) if one else pair(module.padding),
        stride=pair(module.stride),
    )
    return patches.transpose(1, 2), gradient.flatten(2).transpose(1, 2)


def _squares(x: Tensor, d: Tensor) -> float:
    """Sum over examples of ``|sum_t d_t x_t'|^2``, by products of positions or whole gradients, whichever is smaller."""
    total = 0.0
    positions, small = x.shape[1], x.shape[1] ** 2 <= x.shape[2] * d.shape[2]
    for xi, di in zip(x, d, strict=True):
        if positions == 1:
            product = xi.square().sum(dtype=torch.float64) * di.square().sum(dtype=torch.float64)
        elif small:
            product = ((xi @ xi.T) * (di @ di.T)).sum(dtype=torch.float64)
        else:
            product = (di.T @ xi).square().sum(dtype=torch.float64)
        total += float(product)
    return total
