# SPDX-License-Identifier: Apache-2.0
"""The rule axis: what turns a gradient and its moments into a direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowtide.errors import LowtideValueError


@dataclass(frozen=True)
class AdamRule:
    """Adam's moments and normalisation (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019).

    ``form`` says where epsilon stands relative to the bias correction::

        "torch":    m / bc1 / (sqrt(v / bc2) + eps)              (the papers, torch.optim.AdamW)
        "hf":       sqrt(bc2) / bc1 * m / (sqrt(v) + eps)        (old transformers AdamW, galore-torch)

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        form: ``"torch"`` or ``"hf"``.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    form: str = "torch"

    #: State tensors and whether they take both signs (which code map stores them).
    moments = (("exp_avg", True), ("exp_avg_sq", False))

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise LowtideValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        if not (self.eps >= 0.0 and math.isfinite(self.eps)):
            raise LowtideValueError(f"eps must be a finite number >= 0, got {self.eps!r}")
        if self.form not in ("torch", "hf"):
            raise LowtideValueError(f"form must be 'torch' or 'hf', got {self.form!r}")

    def scalars(self, step: int) -> tuple[float, float]:
        """(a, s) such that the direction at ``step`` (counted from 1) is ``a * m / (sqrt(v) * s + eps)``."""
        bc1 = 1.0 - self.betas[0] ** step
        bc2 = 1.0 - self.betas[1] ** step
        if self.form == "torch":
            return 1.0 / bc1, 1.0 / math.sqrt(bc2)
        return math.sqrt(bc2) / bc1, 1.0
