# SPDX-License-Identifier: Apache-2.0
"""A mean of gradients that is carried from one set of weights to the next by products with the Hessian (HARPG)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.rules import GradientRule
from lowtide.optim.transforms import Work

if TYPE_CHECKING:
    from lowtide.optim.engine import Composed


@dataclass(frozen=True)
class DecayingRule(GradientRule):
    """The direction at a rate that falls: ``lr`` times 2 / (t + 2), or its root, t counted from 0.

    Attributes:
        root: take the root.
    """

    root: bool = False

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`~lowtide.optim.rules.Rule`."""
        rate = 2.0 / (step + 1)
        return lr * (math.sqrt(rate) if self.root else rate)


@dataclass(frozen=True)
class HessianAidedMean:
    """``d = (1 - eta) (d + H v) + eta g`` with v the last change of the weights (Fatkhullin et al., ICML 2023, arXiv 2302.01734), eta = min(1, eta0 2 / (t + 2)); over its norm, of all parameters, where ``normalized``.

    A step with inf or NaN in a gradient or product is skipped for all parameters.

    Attributes:
        eta: eta0, in (0, 1].
        normalized: divide by the norm.
    """

    eta: float = 1.0
    normalized: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.eta <= 1.0:
            raise LowtideValueError(f"eta must be in (0, 1], got {self.eta!r}")

    @property
    def shared_nbytes(self) -> int:
        """See :class:`~lowtide.optim.GradientTransform`."""
        return 0

    def create(self, state: dict[str, Any], shape: torch.Size) -> None:
        """See :class:`~lowtide.optim.GradientTransform`: the mean and the weights before the last step."""
        state["mean"] = torch.zeros(shape, dtype=torch.float32)
        state["previous"] = torch.zeros(shape, dtype=torch.float32)

    def check(self, entry: dict[str, Any]) -> None:
        """See :class:`~lowtide.optim.GradientTransform`."""

    def apply(self, opt: Composed, work: Work) -> Work:
        """See :class:`~lowtide.optim.GradientTransform`."""
        products: dict[int, Tensor] = getattr(opt, "_products", {})
        items = [item for _, found in work for item in found]
        for p, _, _ in items:
            if opt.state.get(p, {}).get("step", 0) > 0 and id(p) not in products:
                raise LowtideRuntimeError(
                    "no product of the Hessian with the last change of the weights: pass step(closure), or hand it in by correct()"
                )
        bad = [t for p, _, g in items for t in (g, products.get(id(p), g)) if not weight_store.finite(t)]
        if bad:
            opt._axes.skipped += [weight_store.nonfinite_blocks(t) for t in bad]
            return []
        means: dict[int, Tensor] = {}
        for group, found in work:
            for p, _, g in found:
                state = opt.state[p]
                if not state:
                    opt._axes.create_state(group, p, state)
                eta = min(1.0, self.eta * 2.0 / (state["step"] + 2)) if state["step"] else 1.0
                mean, grad = state["mean"], g.detach().float().reshape(state["mean"].shape)
                if state["step"]:
                    sign = -1.0 if group.get("maximize", False) else 1.0
                    mean.add_(products[id(p)].float().reshape(mean.shape), alpha=sign)
                mean.mul_(1.0 - eta).add_(grad, alpha=eta)
                state["previous"].copy_(weight_store.dense(p).reshape(mean.shape))
                means[id(p)] = mean
        scale = 1.0
        if self.normalized:
            norm = math.sqrt(sum(float(m.double().square().sum()) for m in means.values()))
            scale = 1.0 / norm if norm > 0.0 else 0.0
        return [
            (group, [(p, i, (means[id(p)] * scale).reshape(g.shape)) for p, i, g in found])
            for group, found in work
        ]


def losses_of(result: Any) -> tuple[Tensor, Tensor | None]:
    """What a closure returned, as losses and log-probabilities.

    Raises:
        LowtideTypeError: neither a differentiable loss nor a pair of vectors of one length.
    """
    remedy = "return a loss that was not yet differentiated, or losses and log-probabilities of trajectories, each (B,)"
    if isinstance(result, Tensor):
        if result.dim() or not result.requires_grad:
            raise LowtideTypeError(
                f"closure returned a tensor of shape {tuple(result.shape)} without a graph or with dimensions; {remedy}"
            )
        return result, None
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(r, Tensor) for r in result):
        raise LowtideTypeError(f"closure returned {type(result).__name__}; {remedy}")
    losses, log_probs = result
    if losses.dim() != 1 or losses.shape != log_probs.shape or losses.numel() == 0:
        raise LowtideTypeError(
            f"closure returned losses {tuple(losses.shape)} and log-probabilities {tuple(log_probs.shape)}; {remedy}"
        )
    return losses, log_probs


def hessian_product(
    losses: Tensor, log_probs: Tensor | None, params: Sequence[Tensor], vs: Sequence[Tensor]
) -> list[Tensor]:
    """An unbiased estimate of the Hessian of the expected loss times v, from B trajectories that were drawn at these weights.

    With l_i the loss of a trajectory as a function of the weights whose gradient is that of the policy, and p_i its probability::

        1/B sum_i  l_i'' v + l_i' (v . (log p_i)')

    Without ``log_probs``, that is where what is drawn does not depend on the weights, the second part is left out.

    Args:
        losses: (B,), or the mean loss, no dimensions. log_probs: (B,). params: what to differentiate by. vs: in their shapes.

    Returns:
        One tensor a parameter.
    """
    with torch.enable_grad():
        total = losses.mean()
        grads = torch.autograd.grad(total, params, create_graph=True, allow_unused=True)
        along: Any = sum((g * v).sum() for g, v in zip(grads, vs, strict=True) if g is not None)
        out = [torch.zeros_like(p) for p in params]
        if isinstance(along, Tensor) and along.requires_grad:
            _add(out, torch.autograd.grad(along, params, retain_graph=True, allow_unused=True))
        if log_probs is None or not log_probs.requires_grad:
            return out
        # v . (log p_i)' for each i: the derivative by w of the product of v with the gradient of sum_i w_i log p_i.
        w = torch.ones_like(log_probs, requires_grad=True)
        pulled = torch.autograd.grad((w * log_probs).sum(), params, create_graph=True, allow_unused=True)
        pushed: Any = sum((g * v).sum() for g, v in zip(pulled, vs, strict=True) if g is not None)
        if not isinstance(pushed, Tensor):
            return out
        (slopes,) = torch.autograd.grad(pushed, w, retain_graph=True)
        _add(out, torch.autograd.grad((losses * slopes.detach()).mean(), params, allow_unused=True))
    return out


def _add(out: list[Tensor], parts: Sequence[Tensor | None]) -> None:
    for total, part in zip(out, parts, strict=True):
        if part is not None:
            total += part.detach()


def call(closure: Callable[[], Any]) -> Any:
    """With gradients enabled."""
    with torch.enable_grad():
        return closure()
