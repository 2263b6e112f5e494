# SPDX-License-Identifier: Apache-2.0
"""Saved states that do not fit are refused before anything has changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError


def check_saved(want: dict[str, Any], entry: dict[str, Any], shape: torch.Size) -> None:
    """Compare the saved state ``entry`` of a parameter with a fresh one; raises LowtideValueError."""
    for name, value in want.items():
        got = entry.get(name)
        if isinstance(value, Tensor):
            if not isinstance(got, Tensor) or got.shape != value.shape or got.dtype != value.dtype:
                found = f"{tuple(got.shape)} {got.dtype}" if isinstance(got, Tensor) else "nothing"
                raise LowtideValueError(
                    f"saved state {name!r} does not fit a parameter of shape {tuple(shape)}: expected "
                    f"{tuple(value.shape)} {value.dtype}, got {found}; build the optimizer with the settings it was saved with"
                )
        elif name in ("side", "rank", "dim") and got != value:
            raise LowtideValueError(
                f"saved state has {name} {got!r}, this optimizer has {value!r}; build it with the settings it was saved with"
            )
