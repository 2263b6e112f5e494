# SPDX-License-Identifier: Apache-2.0
"""Confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowtide.errors import LowtideValueError
from lowtide.quant.qat._common import check_number


class Levels(Protocol):
    """What CGA and the oscillation freeze need of a quantizer: :class:`StatsQ` and :class:`LSQ` have it."""

    @property
    def level_range(self) -> tuple[int, int]:
        """First and last level."""

    def position(self, w: Tensor) -> Tensor:
        """Where ``w`` lies, in levels: half-integers are the boundaries."""

    def levels(self, w: Tensor) -> Tensor:
        """The integer level of each weight."""

    def from_levels(self, levels: Tensor, w: Tensor) -> Tensor:
        """The values of integer levels."""


def near_boundary(position: Tensor, boundary: float, low: int, high: int) -> Tensor:
    """Which weights lie within ``boundary`` levels of the half-way point between two of the levels low..high.

    That is ``1/2 - boundary <= t - i <= 1/2 + boundary`` for some level i in [low, high): a weight that is clipped
    at either end has no other level to go to.
    """
    below = position.floor()
    return ((position - below - 0.5).abs() <= boundary) & (below >= low) & (below < high)


class ConfidenceAnnealing:
    """Trains only the weights that sit near a rounding boundary; all others are frozen.

    A weight far from a boundary has its level for certain. In the last epochs (the paper: 15) only the undecided
    ones may move. It holds a copy of the weights during each step. Before each optimizer step the gradients of the others are set to 0, and after it their values are
    put back, so that neither weight decay nor momentum moves them. Which weights are free is decided anew each step.

    >>> import torch, lowtide as lt
    >>> layer = torch.nn.Linear(8, 8)
    >>> lt.quant.qat.attach_(layer, lt.quant.qat.StatsQ, bits=2)
    ParametrizedLinear(...
    >>> opt = torch.optim.AdamW(layer.parameters())
    >>> cga = lt.quant.qat.ConfidenceAnnealing(opt, lt.quant.qat.latent_weights(layer), boundary=0.005)

    Args:
        optimizer: any torch optimizer; two step hooks are registered on it.
        weights: latent weight -> its quantizer (:class:`StatsQ` or :class:`LSQ`), see :func:`latent_weights`.
        boundary: half width of the free zone, in levels (paper: 0.003 to 0.01).

    Attributes:
        free: number of free weights at the last step.

    :meth:`remove` ends it.
    """

    def __init__(
        self, optimizer: Optimizer, weights: Mapping[Tensor, Levels], *, boundary: float = 0.005
    ) -> None:
        if not weights:
            raise LowtideValueError("weights is empty: attach a StatsQ or LSQ quantizer to some layer first")
        self.boundary = check_number(boundary, "boundary", 0.0, 0.5)
        self.weights = dict(weights)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in known for p in self.weights):
            raise LowtideValueError(
                "weights has a parameter that optimizer does not step; make them of one model"
            )
        self.free = 0
        self._saved: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._saved, self.free = [], 0
        for w, quantizer in self.weights.items():
            free = near_boundary(quantizer.position(w), self.boundary, *quantizer.level_range)
            self.free += int(free.sum())
            if w.grad is not None:
                w.grad.masked_fill_(~free, 0)
            self._saved.append((w, free, w.detach().clone()))

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for w, free, before in self._saved:
            w.copy_(torch.where(free, w, before))
        self._saved = []

    def remove(self) -> None:
        """Take the hooks off the optimizer: all weights train again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
