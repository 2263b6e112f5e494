# SPDX-License-Identifier: Apache-2.0
"""Named methods that step by estimates of curvature. See :mod:`lowtide.optim.presets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowtide.errors import LowtideValueError
from lowtide.optim.curvature_sources import GaussNewtonBartlett, Hutchinson
from lowtide.optim.engine import Composed
from lowtide.optim.presets.common import Betas
from lowtide.optim.rules import GradientRule, Rule, SGDRule
from lowtide.optim.rules_curvature import AdaHessianRule, SophiaRule
from lowtide.optim.transforms import InverseFisher


class AdaHessian(Composed):
    """AdaHessian (Yao et al., AAAI 2021, arXiv 2006.00719): Adam whose second moment is of the Hessian's diagonal, not of the
    gradient. See :class:`~lowtide.optim.AdaHessianRule` and :class:`~lowtide.optim.Hutchinson`.

    Steps that estimate curvature need more than gradients: ``loss.backward(create_graph=opt.curvature_due)``, or with
    ``products="fd"`` a closure that evaluates loss and gradients.

    Args:
        params, lr, betas, eps, weight_decay: as in the paper's code; decay is decoupled.
        hessian_power: of the curvature, in (0, 1].
        update_each: steps from one estimate to the next; the moment rests in between.
        products, probes: of :class:`~lowtide.optim.Hutchinson`.
        average_conv_kernel: average the curvature over the kernel of a convolution of any dimension.
        form: ``"abs"``: of ``|z * Hz|`` (the paper's code); ``"signed"``: of ``z * Hz`` (the paper). The same but for averages.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.15, betas: Betas = (0.9, 0.999), eps: float = 1e-4,
        weight_decay: float = 0.0, *, hessian_power: float = 1.0, update_each: int = 1, products: str = "double",
        probes: int = 1, average_conv_kernel: bool = True, form: str = "abs", **common: Any,
    ) -> None:  # fmt: skip
        if form not in ("abs", "signed"):
            raise LowtideValueError(f"form must be 'abs' or 'signed', got {form!r}")
        source = Hutchinson(update_each, products, probes, form == "abs", average_conv_kernel)
        super().__init__(
            params, lr, rule=AdaHessianRule(betas, eps, hessian_power), weight_decay=weight_decay, curvature=source,
            **common,
        )  # fmt: skip


class _Sophia(Composed):
    """What both kinds of Sophia share."""

    @property
    def clip_share(self) -> float:
        """Share of the elements that the last step clipped to +-lr. The paper tunes ``rho`` to where 50 to 90 % are clipped."""
        states = [(p.numel(), s["clipped"]) for p, s in self.state.items() if "clipped" in s]
        total = sum(n for n, _ in states)
        return sum(c for _, c in states) / total if total else 0.0


class SophiaG(_Sophia):
    """Sophia-G (Liu et al., ICLR 2024, arXiv 2305.14342): momentum over curvature, clipped element by element; curvature from
    labels that are drawn from the model's predictions. See :class:`~lowtide.optim.SophiaRule` and
    :class:`~lowtide.optim.GaussNewtonBartlett`.

    Where :attr:`curvature_due`, give :meth:`update_curvature` the gradients of the loss of drawn labels before the step. While
    it never got any, directions are signs of the momentum.

    Args:
        params, lr, betas, rho, weight_decay: as in the paper's code; decay is decoupled.
        batch_size: labels (tokens) that the loss of drawn labels is the mean of.
        update_each: steps from one estimate to the next.
        eps: least curvature.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: Betas = (0.965, 0.99), rho: float = 0.04,
        weight_decay: float = 0.1, *, batch_size: int, update_each: int = 10, eps: float = 1e-15, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, rule=SophiaRule(betas, rho, eps), weight_decay=weight_decay,
            curvature=GaussNewtonBartlett(batch_size, update_each), **common,
        )  # fmt: skip


class SophiaH(_Sophia):
    """Sophia-H: as :class:`SophiaG`, but curvature from products of the Hessian with random signs (the paper's algorithm 1),
    which may be negative: such weights, and all with less than ``eps``, move by ``lr`` along the sign of their momentum.

    Args:
        params, lr, betas, rho, weight_decay: as in the paper (``rho`` 0.01); decay is decoupled.
        update_each: steps from one estimate to the next.
        products, probes: of :class:`~lowtide.optim.Hutchinson`.
        eps: least curvature.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: Betas = (0.965, 0.99), rho: float = 0.01,
        weight_decay: float = 0.1, *, update_each: int = 10, products: str = "double", probes: int = 1,
        eps: float = 1e-12, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, rule=SophiaRule(betas, rho, eps, positive=False), weight_decay=weight_decay,
            curvature=Hutchinson(update_each, products, probes), **common,
        )  # fmt: skip


class MFAC(Composed):
    """M-FAC (Frantar, Kurtic & Alistarh, NeurIPS 2021, arXiv 2107.03356): SGD on gradients times the inverse of the empirical Fisher
    matrix of the last ``ngrads`` of them. See :class:`~lowtide.optim.InverseFisher`.

    Args:
        params, lr, weight_decay: as in torch; decay is decoupled.
        ngrads, damp, window, scope: of the matrix. ``window="int8"`` keeps a quarter of ``"fp32"``.
        momentum: of the direction, as in :class:`SGD`; 0 keeps no moment.
        **common: ``seed``, ``nonfinite``, ``stochastic`` of :class:`~lowtide.optim.Composed`; ``state`` (of the moment).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, ngrads: int = 1024, damp: float = 1e-5, momentum: float = 0.0,
        weight_decay: float = 0.0, window: str = "fp32", scope: str = "model", **common: Any,
    ) -> None:  # fmt: skip
        rule: Rule = SGDRule(momentum) if momentum else GradientRule()
        super().__init__(
            params, lr, rule=rule, weight_decay=weight_decay, transform=InverseFisher(ngrads, damp, window, scope),
            **common,
        )  # fmt: skip
