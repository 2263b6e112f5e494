# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant")


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, schedule: str) -> float:
    """Learning rate of 0-based `step`: linear warm-up over `warmup` steps, then cosine to zero or constant.

    The first step already trains (`peak / warmup`); a cosine run reaches zero one step after its last.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
