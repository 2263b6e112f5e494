# SPDX-License-Identifier: Apache-2.0
"""Differential privacy of a run: one number a direction is all that leaves the data, so noise goes on that number."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.spsa._discrete_gaussian import discrete_gaussian

#: Steps between 0 and the clipping bound: a sample's difference is rounded to one of them.
_GRID = 1 << 16
ACCOUNTANTS = ("rdp", "pld")


class Privacy:
    """DPZero (Zhang et al., ICML 2024, 2310.09639, algorithm 2) for :class:`~lowtide.spsa.SPSA`.

    The loss difference of each sample, over the distance of the probes, is clipped to ``clip``; the sum over samples gets
    discrete Gaussian noise of ``noise_multiplier * clip`` from the operating system's random numbers and is divided by ``batch``.
    Everything after it (clipping of the mean, codes, log, other workers, weights) sees only that.

    The guarantee is (epsilon, delta)-differential privacy for adding or removing one sample, over ``steps`` steps, if each
    step's batch holds every sample with probability ``sample_rate`` independently (Poisson sampling): data drawn otherwise has
    no such guarantee. What ``step`` returns is the plain mean loss, for the eyes of whoever owns the data.

    Args:
        clip: largest contribution of a sample to a slope, > 0.
        sample_rate: probability of each sample to be in a batch, in (0, 1].
        batch: number of samples that a batch has on average; a constant, so that it tells nothing.
        steps: steps that the budget must last.
        delta: probability outside of the guarantee, below 1 / number of samples.
        epsilon: the budget; needs ``pip install lowtide[dp]``. Or:
        noise_multiplier: standard deviation of the noise of a step in units of ``clip``. With n directions a step each gets
            sqrt(n) as much, so that the guarantee does not depend on n.
        accountant: ``"rdp"`` (Renyi; instant), ``"pld"`` (privacy loss distributions: up to 10 % less noise, takes seconds). Both account for a
            continuous Gaussian; on a grid of clip / 65536 the discrete one does not differ measurably.

    Attributes:
        noise_multiplier: as given, or found for ``epsilon``.
        released: steps whose noised slopes have been released.

    Raises:
        LowtideValueError: a bad argument, named. LowtideImportError: the accountant is missing.
    """

    def __init__(
        self,
        *,
        clip: float,
        sample_rate: float,
        batch: float,
        steps: int,
        delta: float,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        accountant: str = "rdp",
    ) -> None:
        for name, value in (("clip", clip), ("batch", batch)):
            if not 0.0 < float(value) < math.inf:
                raise LowtideValueError(f"{name} must be a finite number > 0, got {value!r}")
        for name, value, most in (("sample_rate", sample_rate, 1.0), ("delta", delta, 0.5)):
            if not 0.0 < float(value) <= most:
                raise LowtideValueError(f"{name} must be in (0, {most:g}], got {value!r}")
        if type(steps) is not int or steps < 1:
            raise LowtideValueError(f"steps must be an integer >= 1, got {steps!r}")
        if accountant not in ACCOUNTANTS:
            raise LowtideValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)}, got {accountant!r}")
        if (epsilon is None) == (noise_multiplier is None):
            raise LowtideValueError("give either epsilon or noise_multiplier, and not both")
        for name, given in (("epsilon", epsilon), ("noise_multiplier", noise_multiplier)):
            if given is not None and not 0.0 < float(given) < math.inf:
                raise LowtideValueError(f"{name} must be a finite number > 0, got {given!r}")
        self.clip, self.sample_rate, self.batch = float(clip), float(sample_rate), float(batch)
        self.steps, self.delta, self.accountant = steps, float(delta), accountant
        self.noise_multiplier = (
            float(noise_multiplier)
            if noise_multiplier is not None
            else self._calibrate(float(epsilon or 0.0))
        )
        self.released = 0
        self._directions = 1

    # ------------------------------------------------------------------ accounting

    def _event(self, dp: Any, noise: float, steps: int) -> Any:
        event = dp.GaussianDpEvent(noise)
        if self.sample_rate < 1.0:
            event = dp.PoissonSampledDpEvent(self.sample_rate, event)
        return dp.SelfComposedDpEvent(event, steps)

    def _new_accountant(self, dp: Any) -> Any:
        module = importlib.import_module(f"dp_accounting.{self.accountant}")
        name = "RdpAccountant" if self.accountant == "rdp" else "PLDAccountant"
        return getattr(module, name)(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)

    def _calibrate(self, epsilon: float) -> float:
        dp = _library()
        try:
            noise = dp.calibrate_dp_mechanism(
                lambda: self._new_accountant(dp),
                lambda sigma: self._event(dp, sigma, self.steps),
                epsilon,
                self.delta,
                dp.LowerEndpointAndGuess(1e-2, 1.0),
                tol=1e-4,
            )
        except (ValueError, RuntimeError) as error:
            raise LowtideValueError(
                f"epsilon {epsilon} cannot be reached over {self.steps} steps at delta {self.delta} ({error}); "
                "take a larger one, fewer steps or a smaller sample_rate"
            ) from error
        return float(noise)

    def epsilon(self, steps: int | None = None) -> float:
        """The epsilon spent by so many steps (default: those released so far).

        Raises:
            LowtideImportError: dp-accounting is missing.
        """
        count = self.released if steps is None else steps
        if count <= 0:
            return 0.0
        dp = _library()
        spent = self._new_accountant(dp)
        spent.compose(self._event(dp, self.noise_multiplier, count))
        return float(spent.get_epsilon(self.delta))

    def __repr__(self) -> str:
        return (
            f"Privacy(clip={self.clip:g}, noise_multiplier={self.noise_multiplier:.4g}, sample_rate={self.sample_rate:g}, "
            f"batch={self.batch:g}, delta={self.delta:g}, {self.released} of {self.steps} steps released)"
        )

    # ------------------------------------------------------------------ what SPSA calls

    def begin(self, step: int, directions: int) -> None:
        """Before the probes of a step.

        Raises:
            LowtideRuntimeError: the budget is spent.
        """
        # After a restart the steps before count as released, whoever made them.
        self.released = max(self.released, step)
        if self.released >= self.steps:
            raise LowtideRuntimeError(
                f"privacy: the budget of {self.steps} steps is spent; stop here, or begin a new run with a budget for more steps"
            )
        self._directions = max(1, directions)
        self.released += 1

    def guard(self, closure: Callable[[], Any]) -> Callable[[], Tensor]:
        """The closure, refusing anything but per-sample losses: what is summed already cannot be clipped by sample."""

        def guarded() -> Tensor:
            losses = closure()
            if not isinstance(losses, Tensor) or losses.ndim != 1:
                got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
                raise LowtideTypeError(
                    f"closure must return the losses of single samples (1-D) under privacy, got {got}; "
                    "use reduction='none' and no mean"
                )
            # An empty batch happens under Poisson sampling, and must not show: it contributes 0, and noise.
            return losses if losses.numel() else losses.new_zeros(1, dtype=torch.float32)

        return guarded

    def reduce(self, plus: Tensor, minus: Tensor, distance: float) -> float:
        """The noised slope from per-sample losses of two probes (float64, 1-D, the same samples)."""
        if plus.shape != minus.shape:
            raise LowtideValueError(
                f"closure must return the same samples at each probe, got {plus.numel()} and {minus.numel()} losses"
            )
        slopes = (plus - minus) / distance
        # A sample without a number contributes nothing; to skip the step would tell that it is there.
        units = (torch.nan_to_num(slopes, 0.0) * (_GRID / self.clip)).round().clamp(-_GRID, _GRID)
        sigma = math.ceil(self.noise_multiplier * math.sqrt(self._directions) * _GRID)
        total = int(units.sum().item()) + discrete_gaussian(sigma)
        return total * (self.clip / _GRID) / self.batch


def _library() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise LowtideImportError(
            "privacy accounting needs dp-accounting; run: pip install 'lowtide[dp]', or give noise_multiplier"
        ) from None
