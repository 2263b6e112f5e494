# SPDX-License-Identifier: Apache-2.0
"""Weights that oscillate between two levels: tracking and freezing (Nagel et al., ICML 2022, arXiv 2203.11086, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowtide.errors import LowtideValueError
from lowtide.quant.qat._common import check_number
from lowtide.quant.qat.cga import Levels


class OscillationTracker(nn.Module):
    """Frequency of oscillations of integer levels, and the freezing of those that oscillate too often.

    A level oscillates at a step if it changes in the direction opposite to its last change. With momentum m::

        f <- m 1[oscillates] + (1 - m) f,        level_ema <- m level + (1 - m) level_ema

    A weight with ``f > threshold`` is frozen at ``round(level_ema)`` (the value before this step's update, as in
    the published code).

    Args:
        shape: shape of the weight.
        momentum: m in (0, 1]. threshold: ``None`` only tracks; should be 2 to 3 times the momentum or more.

    Attributes (buffers of ``shape``):
        frequency: f, float32. count: oscillations so far, int32. frozen: bool. frozen_level: float32.
    """

    frequency: Tensor
    count: Tensor
    frozen: Tensor
    frozen_level: Tensor
    previous: Tensor
    direction: Tensor
    level_ema: Tensor
    steps: Tensor

    def __init__(self, shape: Any, *, momentum: float = 0.01, threshold: float | None = None) -> None:
        super().__init__()
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0, open_low=True)
        self.threshold = None if threshold is None else check_number(threshold, "threshold", 0.0, 1.0)
        shape = tuple(shape)
        for name in ("frequency", "frozen_level", "previous", "direction", "level_ema"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("count", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, levels: Tensor) -> Tensor:
        """Take the levels of one step (integer valued, of the tracker's shape); returns them with frozen ones fixed."""
        if tuple(levels.shape) != tuple(self.frozen.shape):
            raise LowtideValueError(
                f"levels must have shape {tuple(self.frozen.shape)}, got {tuple(levels.shape)}"
            )
        levels = torch.where(self.frozen, self.frozen_level, levels.detach().float().round())
        if not int(self.steps):
            self.previous.copy_(levels)
            self.level_ema.copy_(levels)
        change = torch.sign(levels - self.previous)
        oscillates = change * self.direction < 0
        self.frequency.mul_(1 - self.momentum).add_(oscillates, alpha=self.momentum)
        self.count += oscillates
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        self.previous.copy_(levels)
        self.steps += 1
        if self.threshold is not None:
            new = (self.frequency > self.threshold) & ~self.frozen
            self.frozen_level.copy_(torch.where(new, self.level_ema.round(), self.frozen_level))
            self.frozen |= new
            levels = torch.where(self.frozen, self.frozen_level, levels)
        self.level_ema.mul_(1 - self.momentum).add_(levels, alpha=self.momentum)
        return levels

    def extra_repr(self) -> str:
        """Settings."""
        return f"shape={tuple(self.frozen.shape)}, momentum={self.momentum}, threshold={self.threshold}"


class FreezeOscillating:
    """Runs an :class:`OscillationTracker` a weight after each optimizer step and holds the frozen ones at their level.

    Args:
        optimizer: any torch optimizer; a post-step hook is registered on it.
        weights: latent weight -> its quantizer, see :func:`latent_weights`.
        momentum, threshold: see :class:`OscillationTracker`.

    Attributes:
        trackers: latent weight -> tracker; their ``state_dict`` belongs into a checkpoint.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Mapping[Tensor, Levels],
        *,
        momentum: float = 0.01,
        threshold: float | None = 0.03,
    ) -> None:
        if not weights:
            raise LowtideValueError("weights is empty: attach a StatsQ or LSQ quantizer to some layer first")
        self.weights = dict(weights)
        self.trackers = {
            w: OscillationTracker(w.shape, momentum=momentum, threshold=threshold).to(w.device)
            for w in weights
        }
        self._hook: Any = optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for w, quantizer in self.weights.items():
            tracker = self.trackers[w]
            levels = tracker.update(quantizer.levels(w))
            if tracker.threshold is not None:
                w.copy_(torch.where(tracker.frozen, quantizer.from_levels(levels, w), w))

    @property
    def frozen(self) -> int:
        """Number of frozen weights."""
        return sum(int(t.frozen.sum()) for t in self.trackers.values())

    def remove(self) -> None:
        """Take the hook off the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
