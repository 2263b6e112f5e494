# SPDX-License-Identifier: Apache-2.0
"""The curvature axis: what feeds the second moment of rules that are no function of the gradient alone.

A source gives, every ``every`` steps, an estimate of the Hessian's diagonal for each parameter, which the rule folds into
its moment at once: no estimate is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.running_stats import RunningStats

if TYPE_CHECKING:
    from lowtide.optim.engine import Composed

#: A group, a parameter of it, its id and its state.
_Found = tuple[dict[str, Any], Tensor, int, dict[str, Any]]


class CurvatureSource(Protocol):
    """What the engine asks of a source.

    Attributes:
        every: steps from one estimate to the next.
        required: whether a step that is due makes no sense without an estimate.
    """

    required: ClassVar[bool]

    @property
    def every(self) -> int: ...  # noqa: D102

    def evaluate(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """Run ``closure`` (if any) for the gradients of a step, and fold an estimate where one is due."""
        ...

    def update(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """Fold an estimate now; see :meth:`lowtide.optim.Composed.update_curvature`."""
        ...


def _check_every(every: int) -> None:
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise LowtideValueError(f"every must be an integer >= 1 (steps), got {every!r}")


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def steps_of(opt: Composed) -> int:
    """Steps taken so far, by the parameter that took most."""
    return max((state.get("step", 0) for state in opt.state.values()), default=0)


def is_due(opt: Composed, source: CurvatureSource) -> bool:
    """Whether the next step wants an estimate that no parameter has yet."""
    steps = steps_of(opt)
    return steps % source.every == 0 and all(s.get("curvature_at", 0) <= steps for s in opt.state.values())


def members(opt: Composed) -> Iterator[_Found]:
    """All parameters with a gradient."""
    for group in opt.param_groups:
        for p, i in zip(group["params"], group["param_ids"], strict=True):
            if weight_store.gradient(p) is not None:
                yield group, p, i, opt.state[p]


def fold(opt: Composed, group: dict[str, Any], p: Tensor, sample: Tensor, steps: int) -> None:
    """One estimate (of the shape of ``p``) into the moment of ``p``, for the step after ``steps``; elements that are not finite
    change nothing."""
    axes, state = opt._axes, opt.state[p]
    if not state:
        axes.create_state(group, p, state)
    rule: Any = axes.rule_of(group)
    signed = dict(rule.moments)[rule.curvature_moment]
    sample = sample.detach().float().reshape(weight_store.shape(p))
    if signed and group.get("maximize", False):
        sample = -sample
    old = axes.store.load(state, rule.curvature_moment, sample.shape, signed)
    new = rule.fold(old, sample)
    axes.store.save(state, rule.curvature_moment, torch.where(new.isfinite(), new, old), signed)
    state["curvature_updates"] += 1
    state["curvature_at"] = steps + 1


def fold_samples(opt: Composed, samples: Mapping[Tensor, Tensor]) -> None:
    """Estimates made elsewhere, by parameter."""
    groups = {id(p): g for g in opt.param_groups for p in g["params"]}
    for p, sample in samples.items():
        if id(p) not in groups:
            raise LowtideValueError(
                f"samples names a tensor of shape {tuple(p.shape)} that is in no group of this optimizer"
            )
        if sample.shape != weight_store.shape(p):
            raise LowtideValueError(
                f"samples must have the shape of their parameter, {tuple(weight_store.shape(p))}, got {tuple(sample.shape)}"
            )
    steps = steps_of(opt)
    for p, sample in samples.items():
        fold(opt, groups[id(p)], p, sample, steps)


@dataclass(frozen=True)
class Hutchinson:
    """``z * Hz`` with random signs z: unbiased for the diagonal of the Hessian (Bekas et al. 2007), from products with it.

    ``"double"`` differentiates the gradients once more: gradients must carry their graph (``loss.backward(create_graph=True)``
    where :attr:`lowtide.optim.Composed.curvature_due`). ``"fd"`` evaluates the closure at the weights plus and minus a
    multiple of z, with the same random numbers, and puts the weights back bit for bit: no graph and no second derivatives,
    but a copy of the weights and of one gradient, and two more gradients in time.

    Signs are those of stream (optimizer's seed, step, slot = probe, param = param id).

    Attributes:
        every: steps from one estimate to the next.
        products: ``"double"`` or ``"fd"``.
        probes: how many z are averaged.
        absolute: take ``|z * Hz|`` (AdaHessian's code) instead of ``z * Hz``.
        spatial: average over the dimensions after the second: over the kernel of a convolution of any dimension.
        fd_step: step of the differences, in units of the root mean square of all weights.
    """

    every: int = 1
    products: str = "double"
    probes: int = 1
    absolute: bool = False
    spatial: bool = False
    fd_step: float = 3e-3

    required: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_every(self.every)
        if self.products not in ("double", "fd"):
            raise LowtideValueError(f"products must be 'double' or 'fd', got {self.products!r}")
        if not isinstance(self.probes, int) or isinstance(self.probes, bool) or self.probes < 1:
            raise LowtideValueError(f"probes must be an integer >= 1, got {self.probes!r}")
        if not 0.0 < self.fd_step < math.inf:
            raise LowtideValueError(f"fd_step must be a finite number > 0, got {self.fd_step!r}")

    def evaluate(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """See :class:`CurvatureSource`."""
        if self.products == "fd":
            if closure is not None and opt.curvature_due:
                return self._by_differences(opt, closure)
            return _call(closure)
        loss = _call(closure)
        found = list(members(opt)) if opt.curvature_due else []
        if any(self._graph_of(p) is not None for _, p, _, _ in found):
            self._by_graph(opt, found)
        return loss

    def update(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """See :class:`CurvatureSource`."""
        if self.products == "fd":
            if closure is None:
                raise LowtideTypeError(
                    "closure must recompute the loss and its gradients where products='fd', got None"
                )
            return self._by_differences(opt, closure)
        loss = _call(closure)
        found = list(members(opt))
        if not any(self._graph_of(p) is not None for _, p, _, _ in found):
            raise LowtideRuntimeError(NO_GRAPH)
        self._by_graph(opt, found)
        return loss

    def _sample(self, p: Tensor, z: Tensor, hz: Tensor | None) -> Tensor:
        if hz is None:  # the gradient does not depend on p
            return torch.zeros_like(z)
        d = z * hz.float()
        if self.absolute:
            d.abs_()
        if self.spatial and p.dim() > 2 and p.numel() > 0:
            dims = tuple(range(2, p.dim()))
            d = d.mean(dims, keepdim=True).expand(p.shape)
        return d

    def _signs(self, opt: Composed, p: Tensor, param_id: int, step: int, probe: int) -> Tensor:
        import lowtide

        z: Tensor = lowtide.random.sample(
            tuple(p.shape),
            seed=opt._axes.seed,
            step=step,
            slot=probe,
            param=param_id,
            dist="rademacher",
            like="torch",
        )
        return z

    @staticmethod
    def _graph_of(p: Tensor) -> Tensor | None:
        g = weight_store.gradient(p)
        return g if g is not None and g.requires_grad else None

    def _by_graph(self, opt: Composed, found: list[_Found]) -> None:
        linked = [(p, g) for _, p, _, _ in found if (g := self._graph_of(p)) is not None]
        step = steps_of(opt) + 1
        sums: list[Tensor] = []
        for probe in range(self.probes):
            zs = {id(p): self._signs(opt, p, i, step, probe) for _, p, i, _ in found}
            with torch.enable_grad():
                products = torch.autograd.grad(
                    [g for _, g in linked],
                    [p for _, p, _, _ in found],
                    [zs[id(p)].to(g.dtype) for p, g in linked],
                    allow_unused=True,
                    retain_graph=probe + 1 < self.probes,
                )
            parts = [self._sample(p, zs[id(p)], hz) for (_, p, _, _), hz in zip(found, products, strict=True)]
            sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
        for (group, p, _, _), total in zip(found, sums, strict=True):
            fold(opt, group, p, total / self.probes, step - 1)
        for group in opt.param_groups:  # the graph goes with the gradients that hold it
            for p in group["params"]:
                if not weight_store.is_quantized(p) and p.grad is not None:
                    p.grad = p.grad.detach()

    def _by_differences(self, opt: Composed, closure: Callable[[], Any]) -> Any:
        import lowtide

        moving = [
            (group, p, i)
            for group in opt.param_groups
            for p, i in zip(group["params"], group["param_ids"], strict=True)
            if p.requires_grad and p.numel() > 0
        ]
        for _, p, _ in moving:
            if weight_store.is_quantized(p) or p.dtype != torch.float32:
                raise LowtideTypeError(
                    f"products='fd' moves weights by less than {p.dtype} resolves; keep float32 weights, or use products='double'"
                )
        params, ids = [p for _, p, _ in moving], [i for _, _, i in moving]
        if not params:
            return _call(closure)
        step = steps_of(opt) + 1
        energy = sum(weight_store.root_mean_square(p) ** 2 * p.numel() for p in params)
        h = self.fd_step * (math.sqrt(energy / sum(p.numel() for p in params)) or 1.0)
        saved = [p.detach().clone() for p in params]
        sums: list[Tensor | None] = [None] * len(params)
        for probe in range(self.probes):
            ends: list[list[Tensor | None]] = []
            for sign in (1.0, -1.0):
                try:
                    with torch.random.fork_rng(), RunningStats():
                        address = {"seed": opt._axes.seed, "step": step, "slot": probe}
                        lowtide.random.add_(
                            [p.detach() for p in params], sign * h, **address, param=ids, dist="rademacher"
                        )
                        for p in params:
                            p.grad = None
                        _call(closure)
                finally:
                    for p, value in zip(params, saved, strict=True):
                        p.copy_(value)
                ends.append([p.grad for p in params])
                for p in params:
                    p.grad = None
            for k, (p, i) in enumerate(zip(params, ids, strict=True)):
                plus, minus = ends[0][k], ends[1][k]
                if plus is None or minus is None:
                    continue
                hz = (plus.float() - minus.float()) / (2.0 * h)
                d = self._sample(p, self._signs(opt, p, i, step, probe), hz)
                so_far = sums[k]
                sums[k] = d if so_far is None else so_far + d
        loss = _call(closure)
        for (group, p, _), total in zip(moving, sums, strict=True):
            if total is not None:
                fold(opt, group, p, total / self.probes, step - 1)
        return loss


@dataclass(frozen=True)
class GaussNewtonBartlett:
    """``B g * g`` with g the gradient of a mean loss over B labels drawn from the model's own predictions: unbiased for the
    diagonal of the Gauss-Newton matrix (Liu et al., ICLR 2024, arXiv 2305.14342, section 2.3, algorithm 2).

    Attributes:
        batch_size: B, the labels (of a language model: tokens) that the sampled loss is the mean of.
        every: steps from one estimate to the next.
    """

    batch_size: int
    every: int = 10

    required: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_every(self.every)
        if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise LowtideValueError(f"batch_size must be an integer >= 1, got {self.batch_size!r}")

    def evaluate(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """See :class:`CurvatureSource`: the gradients of a step say nothing of sampled labels."""
        return _call(closure)

    def update(self, opt: Composed, closure: Callable[[], Any] | None) -> Any:
        """See :class:`CurvatureSource`."""
        loss = _call(closure)
        found = list(members(opt))
        if not found:
            raise LowtideRuntimeError(
                "update_curvature found no gradients: call backward() on the loss of sampled labels first, or pass a closure"
            )
        steps = steps_of(opt)
        for group, p, _, _ in found:
            g = weight_store.gradient(p)
            assert g is not None
            fold(opt, group, p, g.detach().float().square() * float(self.batch_size), steps)
        return loss


NO_GRAPH = (
    "the gradients carry no graph to differentiate again: call loss.backward(create_graph=optimizer.curvature_due), "
    "or build the optimizer with products='fd' and pass step(closure)"
)


def check_sampled(opt: Composed, source: CurvatureSource, params: list[Tensor]) -> None:
    """Refuse a step that is due for an estimate and has none; nothing has changed then."""
    if source.required and params and is_due(opt, source):
        raise LowtideRuntimeError(f"no estimate of the curvature for this step: {NO_GRAPH}")
