# SPDX-License-Identifier: Apache-2.0
"""Freezing the scale gradients that two objectives pull apart (GAQAT, Jiang et al. 2024, arXiv 2412.05551)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._format import choice
from lowtide.quant.qat._common import check_number


class GradientConflictFreeze:
    """The gradient of learned scales (:class:`LSQ`) from a task loss and a flatness loss (SAM, SAGM), selectively.

    The *disorder* of a scale is the share of sign flips between successive steps of its task gradient over a window
    of K steps. For the next window, scales whose disorder is below the threshold get no task gradient (their task
    gradient pushes one way, against the flatness gradient); all others get the sum. ``freeze`` and ``when`` give the
    mirror images. The paper is known to us by its abstract and reviews: the window, the direction and the threshold
    are arguments for that reason.

    Args:
        scales: the scale parameters.
        window: K, steps a decision lasts; at least 2.
        threshold: of the disorder, in [0, 1].
        freeze: whose gradient is dropped, ``"task"`` or ``"flat"``.
        when: the disorder that freezes, ``"below"`` or ``"above"`` the threshold.

    Attributes:
        frozen: one bool tensor a scale, in force now.
        disorder: one float32 tensor a scale, of the last full window; ``None`` before the first ended.
    """

    def __init__(
        self,
        scales: Sequence[Tensor],
        *,
        window: int = 350,
        threshold: float = 0.3,
        freeze: str = "task",
        when: str = "below",
    ) -> None:
        self.scales = list(scales)
        if not self.scales:
            raise LowtideValueError("scales is empty; give the scale parameters of some LSQ quantizers")
        if not isinstance(window, int) or window < 2:
            raise LowtideValueError(f"window must be an integer >= 2, got {window!r}")
        self.window, self.threshold = window, check_number(threshold, "threshold", 0.0, 1.0)
        self.freeze = choice(freeze, "freeze", ("task", "flat"))
        self.when = choice(when, "when", ("below", "above"))
        self.frozen = [torch.zeros(s.shape, dtype=torch.bool, device=s.device) for s in self.scales]
        self.disorder: list[Tensor] | None = None
        self._flips = [torch.zeros(s.shape, dtype=torch.int32, device=s.device) for s in self.scales]
        self._signs = [torch.zeros(s.shape, dtype=torch.int8, device=s.device) for s in self.scales]
        self._step = 0

    @torch.no_grad()
    def combine(self, task: Sequence[Tensor], flat: Sequence[Tensor]) -> list[Tensor]:
        """Count this step's signs and return the gradients to step with; ``task`` and ``flat`` are as ``scales``.

        A sign flips where two successive gradients have opposite signs; a zero keeps the last sign.
        """
        for name, grads in (("task", task), ("flat", flat)):
            if len(grads) != len(self.scales):
                raise LowtideValueError(f"{name} must have {len(self.scales)} gradients, got {len(grads)}")
            for g, s in zip(grads, self.scales, strict=True):
                if not isinstance(g, Tensor):
                    raise LowtideTypeError(f"{name} must hold tensors, got {type(g).__name__}")
                if g.shape != s.shape:
                    raise LowtideValueError(
                        f"{name} has a gradient of shape {tuple(g.shape)} for {tuple(s.shape)}"
                    )
        out = []
        for t, f, frozen in zip(task, flat, self.frozen, strict=True):
            out.append(
                f + t.masked_fill(frozen, 0) if self.freeze == "task" else t + f.masked_fill(frozen, 0)
            )
        for t, flips, last in zip(task, self._flips, self._signs, strict=True):
            sign = torch.sign(t).to(torch.int8)
            flips += sign * last < 0
            last.copy_(torch.where(sign != 0, sign, last))
        self._step += 1
        if self._step == self.window:
            self.disorder = [flips.float() / (self.window - 1) for flips in self._flips]
            below = self.when == "below"
            self.frozen = [d < self.threshold if below else d > self.threshold for d in self.disorder]
            for flips, last in zip(self._flips, self._signs, strict=True):
                flips.zero_()
                last.zero_()
            self._step = 0
        return out

    def apply_(self, task: Sequence[Tensor], flat: Sequence[Tensor]) -> None:
        """:meth:`combine`, written to ``scale.grad``."""
        for s, g in zip(self.scales, self.combine(task, flat), strict=True):
            s.grad = g

    def state_dict(self) -> dict[str, Any]:
        """Tensors and integers: resumes in the middle of a window."""
        return {
            "step": self._step,
            "frozen": [t.clone() for t in self.frozen],
            "flips": [t.clone() for t in self._flips],
            "signs": [t.clone() for t in self._signs],
            "disorder": None if self.disorder is None else [t.clone() for t in self.disorder],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; checked before anything changes."""
        lists: dict[str, Any] = {name: state.get(name) for name in ("frozen", "flips", "signs")}
        lists |= {"disorder": state["disorder"]} if state.get("disorder") is not None else {}
        for name, tensors in lists.items():
            shapes = [tuple(t.shape) for t in tensors] if isinstance(tensors, (list, tuple)) else None
            if shapes != [tuple(s.shape) for s in self.scales]:
                raise LowtideValueError(f"state[{name!r}] does not fit these scales; it has shapes {shapes}")
        step = state.get("step")
        if not isinstance(step, int) or not 0 <= step < self.window:
            raise LowtideValueError(f"state['step'] must be in [0, {self.window}), got {step!r}")
        self._step = step
        self.frozen = [t.clone() for t in state["frozen"]]
        self._flips = [t.clone() for t in state["flips"]]
        self._signs = [t.clone() for t in state["signs"]]
        self.disorder = [t.clone() for t in lists["disorder"]] if "disorder" in lists else None
