# SPDX-License-Identifier: Apache-2.0
"""Named methods: SPSA with the settings of a paper. Every argument of :class:`~lowtide.spsa.SPSA` may be given too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.spsa._kseeds import rebuild_
from lowtide.spsa._method import Hyper, Method
from lowtide.spsa._optimizer import SPSA
from lowtide.spsa._replay import Slopes
from lowtide.spsa._schedule import StepUpdate


class MeZO(SPSA):
    """MeZO (2305.17333): Gaussian directions, one a step; the authors' lr 1e-6 and eps 1e-3 (prefix and LoRA: larger)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        *,
        dist: str = "gaussian",
        **options: Any,
    ) -> None:
        super().__init__(params, lr, eps, dist=dist, **options)


class FZOO(SPSA):
    """FZOO (ICLR 2026): one-sided Rademacher probes, the step divided by the spread of their losses. The authors' 8 directions,
    lr 5e-5, eps 1e-4. Their reuse of half of the losses from the step before is left out: it needs losses at other weights."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-5,
        eps: float = 1e-4,
        *,
        directions: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, eps, directions=directions, estimator="fzoo", **options)


class SparseMeZO(SPSA):
    """Sparse-MeZO (2402.15751): only the smallest weights of each matrix move. The threshold is the quantile ``keep`` of the magnitudes when
    the run begins (section 3.2), the mask follows the weights."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, *, keep: float = 0.25,
        dist: str = "gaussian", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, eps, keep=keep, dist=dist, **options)


class LOZO(SPSA):
    """LOZO (2410.07698): matrices move along U V^T / sqrt(rank), V kept for ``interval`` steps, U new in each; vectors along a dense
    Gaussian. The authors' rank 2, interval 50; the paper divides by the rank, its code by nothing, here z keeps variance 1."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, *, rank: int = 2, interval: int = 50,
        **options: Any,
    ) -> None:  # fmt: skip
        method = Method(dist="gaussian", rank=rank, interval=interval)
        super().__init__(params, lr, eps, method=method, **options)


class HiZOO(SPSA):
    """HiZOO (2402.15173): z / sqrt(H) with a diagonal curvature H learned from a third evaluation a step. One float32 a weight.

    ``alpha`` is the rate of H; the authors' 1e-8.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        *,
        alpha: float = 1e-8,
        **options: Any,
    ) -> None:
        if not 0.0 <= alpha < 1.0:
            raise LowtideValueError(f"alpha must be in [0, 1), got {alpha!r}")
        super().__init__(
            params, lr, eps, method=Method(dist="gaussian", kind="hizoo", alpha=alpha), **options
        )


class ConMeZO(SPSA):
    """ConMeZO (2511.02757): directions in a cone around a momentum. One float32 a weight.

    ``angle`` is between them in radians (the authors' 1.35), ``beta`` of the momentum (0.99, warmed up over 2000 steps).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-7, eps: float = 1e-3, *, angle: float = 1.35, beta: float = 0.99,
        warmup: int = 2000, **options: Any,
    ) -> None:  # fmt: skip
        if options.setdefault("directions", 1) != 1:
            raise LowtideValueError(f"directions must be 1 for ConMeZO, got {options['directions']!r}")
        method = Method(dist="gaussian", kind="conmezo", alpha=angle, beta=beta, interval=max(warmup, 1))
        super().__init__(params, lr, eps, method=method, **options)


def quantized_scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and scales of a model's :class:`lowtide.quant.Linear` layers: what QZO trains."""
    from lowtide.quant import Linear

    for name, m in model.named_modules():
        if isinstance(m, Linear):
            yield f"{name}.weight_scale" if name else "weight_scale", m.weight_scale


class QZO(SPSA):
    """QZO (2505.13430): a quantized model learns through the scales of its groups; codes stay. Scales are moved relative to
    their size (``scale="rms"``), never below 0, by a slope clipped to ``clip`` (the paper's value is not known to us).

    Args:
        model: with layers quantized by :func:`lowtide.quant.quantize_model_`; it is also ``module``.
        lr: of a scale relative to its size; 3e-3 trains SmolLM2-135M, where MeZO's 1e-6 would not move it.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-3,
        eps: float = 1e-3,
        *,
        clip: float | None = 100.0,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
        scales = list(quantized_scales(model))
        if not scales:
            raise LowtideValueError(
                "model has no quantized layers; make them with lt.quant.quantize_model_(model, weights='int4')"
            )
        settings = {"scale": "rms", "floor": 0.0, "module": model, **options}
        super().__init__(scales, lr, eps, clip=clip, **settings)


class QuZO(SPSA):
    """QuZO (2502.12346): INT8 or INT4 codes move by whole steps, scales stay. A direction is rounded stochastically to the grid for
    the probes and, independently, for the update. The rest of the parameters moves as in MeZO."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        *,
        dist: str = "gaussian",
        **options: Any,
    ) -> None:
        super().__init__(params, lr, eps, dist=dist, packed=True, **options)


class FedKSeed(SPSA):
    """FedKSeed (2312.06353): every direction is one of ``seeds`` candidates, so that a run's history is that many numbers
    (:attr:`accumulators`) however long it was, and :meth:`rebuild` makes the weights from them. The authors' K 4096, lr 3e-7,
    eps 5e-4. Needs a constant learning rate and no weight decay."""

    def __init__(
        self, params: Iterable[Any], lr: float = 3e-7, eps: float = 5e-4, *, seeds: int = 4096, dist: str = "gaussian",
        **options: Any,
    ) -> None:  # fmt: skip
        if seeds < 1:
            raise LowtideValueError(f"seeds must be >= 1, got {seeds!r}")
        super().__init__(params, lr, eps, method=Method(dist=dist, seeds=seeds), **options)
        self._lr = self._constant()
        #: Sum of the slopes of each candidate, float64, (seeds,).
        self.accumulators: NDArray[np.float64] = np.zeros(seeds)

    def _constant(self) -> float:
        rates = {float(g["lr"]) for g in self.param_groups}
        if len(rates) > 1 or any(float(g["weight_decay"]) for g in self.param_groups):
            raise LowtideValueError(
                "FedKSeed needs one learning rate and no weight decay: K sums could not hold them"
            )
        return rates.pop()

    def hyper(self) -> Hyper:
        """See :meth:`SPSA.hyper`.

        Raises:
            LowtideRuntimeError: the learning rate changed.
        """
        if self._constant() != self._lr:
            raise LowtideRuntimeError(
                f"lr of FedKSeed must stay at {self._lr}, got {self._constant()}: its K sums are multiplied by one rate"
            )
        return super().hyper()

    def apply(self, commit: Any, hyper: Hyper | None = None) -> Any:
        """See :meth:`SPSA.apply`; adds to the accumulators."""
        slopes = self.schedule.decode(commit)
        update = super().apply(commit, hyper)
        self.account(slopes, update)
        return update

    def account(self, slopes: Slopes, update: StepUpdate) -> None:
        """Add a step to the accumulators."""
        for (_, k, _), (_, g) in zip(update.directions, slopes, strict=True):
            self.accumulators[k] += g / len(slopes)

    def rebuild(self, base: list[Tensor], accumulators: NDArray[np.float64] | None = None) -> None:
        """The weights from their start ``base`` (in the manifest's order) and the accumulators, own or merged."""
        sums = self.accumulators if accumulators is None else accumulators
        rebuild_(self.masters, base, sums, self._lr)
        self._sync()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`SPSA.state_dict`; holds the accumulators too."""
        state = super().state_dict()
        state["spsa"]["accumulators"] = self.accumulators.tolist()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`SPSA.load_state_dict`."""
        super().load_state_dict(state_dict)
        self.accumulators = np.array(state_dict["spsa"]["accumulators"], dtype=np.float64)
