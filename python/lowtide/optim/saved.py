# SPDX-License-Identifier: Apache-2.0
"""Saved states that do not fit are refused before anything has changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError


def check_saved(want: dict[str, Any], entry: dict[str, Any], shape: torch.Size) -> None:
    """Compare the saved state ``entry`` of a parameter with a fresh one; raises LowtideValueError."""
    if "constraint" in entry and "constraint" not in want:
        want = {**want, "constraint": None}
    for name, value in want.items():
        if name == "overlaps":  # as many as there were
            continue
        got = entry.get(name)
        if isinstance(value, Tensor):
            if not isinstance(got, Tensor) or got.shape != value.shape or got.dtype != value.dtype:
                found = f"{tuple(got.shape)} {got.dtype}" if isinstance(got, Tensor) else "nothing"
                raise LowtideValueError(
                    f"saved state {name!r} does not fit a parameter of shape {tuple(shape)}: expected "
                    f"{tuple(value.shape)} {value.dtype}, got {found}; build the optimizer with the settings it was saved with"
                )
        elif name == "constraint" and got != value:
            raise LowtideValueError(
                f"saved state of a parameter of shape {tuple(shape)} was made under {_called(got)}, this optimizer has "
                f"{_called(value)}; load it into one with the constraint it was saved with, then assign .constraint"
            )
        elif name in ("side", "rank", "dim", "rows") and got != value:
            raise LowtideValueError(
                f"saved state has {name} {got!r}, this optimizer has {value!r}; build it with the settings it was saved with"
            )


def _called(constraint: str | None) -> str:
    return "no constraint" if constraint is None else f"constraint {constraint}"
