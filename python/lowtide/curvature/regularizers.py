# SPDX-License-Identifier: Apache-2.0
"""Penalties that align a classifier head's gradients and Hessians across domains (Hessian Alignment, ICCV 2023).

E domains share a linear softmax head; each gives features and labels. Both penalties compare, domain by domain, moments of the
loss in the *head's* parameters and are differentiable in features, weight and bias, so that a feature extractor learns from
them. The centre is that of the mean loss: its gradient, its Hessian's diagonal, or its Hessian *times its gradient*, which
is not the mean of the domains' ``H_e g_e``. By default no gradient flows into the centre, as in the official code.

Everything is closed form (:class:`lowtide.curvature.CEHead`): no double backward, and no probes unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowtide.curvature._heads import CEHead
from lowtide.errors import LowtideValueError

__all__ = ["HGP", "HutchinsonAlign"]


def _heads(
    features: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor, bias: Tensor | None
) -> list[CEHead]:
    if not features or len(features) != len(labels):
        raise LowtideValueError(
            f"features and labels must be lists with one tensor for each domain, got {len(features)} and {len(labels)}"
        )
    return [CEHead(x, weight, bias, y) for x, y in zip(features, labels, strict=True)]


def _flat(pair: tuple[Tensor, Tensor | None]) -> Tensor:
    return pair[0].reshape(-1) if pair[1] is None else torch.cat([pair[0].reshape(-1), pair[1]])


def _spread(parts: Sequence[Tensor], centre: Tensor) -> Tensor:
    """Mean over domains of ``||part - centre||^2``."""
    return torch.stack([(part - centre).square().sum() for part in parts]).mean()


def _check_factors(alpha: float, beta: float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0.0 <= value < float("inf"):
            raise LowtideValueError(f"{name} must be finite and not negative, got {value}")


@dataclass(frozen=True)
class HGP:
    """Hessian-gradient-product penalty: ``(1/E) sum_e alpha ||H_e g_e - H g||^2 + beta ||g_e - g||^2``.

    ``g`` and ``H`` without index are the mean loss's. Add the result to the mean loss.

    Args:
        alpha: weight of the products; the official default.
        beta: weight of the gradients; the official default.
        stop_gradient: whether the centre counts as a constant.

    Raises:
        LowtideValueError: a factor is negative or not finite.
    """

    alpha: float = 1e-4
    beta: float = 5e-3
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        _check_factors(self.alpha, self.beta)

    def __call__(
        self, features: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The penalty, no dimensions.

        Args:
            features: E tensors (N_e, D). float32 or float64, as weight and bias.
            labels: E tensors (N_e,) of classes.
            weight, bias: the head's, (C, D) and (C,) or None.

        Raises:
            LowtideTypeError, LowtideValueError: a bad argument, named.
        """
        heads = _heads(features, labels, weight, bias)
        pairs = [head.gradient() for head in heads]
        gradients = [_flat(pair) for pair in pairs]
        products = [_flat(head.hvp(*pair)) for head, pair in zip(heads, pairs, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            g_w = torch.stack([pair[0] for pair in pairs]).mean(0)
            biases = [pair[1] for pair in pairs if pair[1] is not None]
            g_b = torch.stack(biases).mean(0) if biases else None
            hg = torch.stack([_flat(head.hvp(g_w, g_b)) for head in heads]).mean(0)
            g = _flat((g_w, g_b))
        return self.alpha * _spread(products, hg) + self.beta * _spread(gradients, g)


@dataclass(frozen=True)
class HutchinsonAlign:
    """Hessian-diagonal penalty: ``(1/E) sum_e alpha ||D_e - D||^2 + beta ||g_e - g||^2``.

    ``D_e`` is the diagonal of a domain's Hessian, ``D`` and ``g`` are the mean loss's. Add the result to the mean loss.

    Args:
        alpha: weight of the diagonals; the official default.
        beta: weight of the gradients; the official default.
        exact: the closed form. False estimates each diagonal by ``probes`` Rademacher probes as the paper does; its error is
            tens of percent at 300 probes, and 3 N C numbers are kept for each until the backward pass.
        probes: for ``exact=False``; the same ones for every domain.
        seed: of the probes; probe k of call ``step`` is ``Layout.probe(seed, step * probes + k)``.
        stop_gradient: whether the centre counts as a constant.

    Raises:
        LowtideValueError: a factor is negative or not finite; no probes.
    """

    alpha: float = 1e-3
    beta: float = 5e-3
    exact: bool = True
    probes: int = 300
    seed: int = 0
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        _check_factors(self.alpha, self.beta)
        if self.probes < 1:
            raise LowtideValueError(f"probes must be 1 or more, got {self.probes}")

    def diagonal(self, head: CEHead, step: int = 0) -> Tensor:
        """The head's Hessian diagonal, exact or sampled, flat (C D + C,) or (C D,); differentiable."""
        if self.exact:
            return _flat(head.diag())
        total = head.layout.zeros()
        for k in range(self.probes):
            z = head.layout.probe(self.seed, step * self.probes + k)
            v = head.layout.views(z)
            total = total + z * _flat(head.hvp(v[0], v[1] if len(v) > 1 else None))
        return total / self.probes

    def __call__(
        self,
        features: Sequence[Tensor],
        labels: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *,
        step: int = 0,
    ) -> Tensor:
        """The penalty, no dimensions.

        Args:
            features: E tensors (N_e, D). float32 or float64, as weight and bias.
            labels: E tensors (N_e,) of classes.
            weight, bias: the head's, (C, D) and (C,) or None.
            step: which probes, for ``exact=False``: pass the training step for new ones each time.

        Raises:
            LowtideTypeError, LowtideValueError: a bad argument, named.
        """
        heads = _heads(features, labels, weight, bias)
        gradients = [_flat(head.gradient()) for head in heads]
        diagonals = [self.diagonal(head, step) for head in heads]
        centre = [torch.stack(parts).mean(0) for parts in (diagonals, gradients)]
        if self.stop_gradient:
            centre = [t.detach() for t in centre]
        return self.alpha * _spread(diagonals, centre[0]) + self.beta * _spread(gradients, centre[1])
