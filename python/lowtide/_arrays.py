# SPDX-License-Identifier: Apache-2.0
"""Telling NumPy arrays and torch tensors apart without importing torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from lowtide.errors import LowtideTypeError, LowtideValueError


def is_torch(x: Any) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def check_array(x: Any, name: str, dtype: Any = np.float32, *, writable: bool = False) -> None:
    """Refuse anything but a C-contiguous NumPy array of ``dtype`` with one sentence that helps."""
    if not isinstance(x, np.ndarray):
        raise LowtideTypeError(f"{name} must be a NumPy array or a torch tensor, got {type(x).__name__}")
    want = np.dtype(dtype)
    if x.dtype != want:
        raise LowtideTypeError(
            f"{name} must have dtype {want}, got {x.dtype}; convert it with .astype(np.{want})"
        )
    if not x.flags.c_contiguous:
        raise LowtideValueError(f"{name} must be contiguous in C order; pass np.ascontiguousarray({name})")
    if writable and not x.flags.writeable:
        raise LowtideValueError(f"{name} is read-only; pass a writable copy")


def check_uint(value: Any, name: str, bits: int) -> int:
    """An integer in [0, 2**bits)."""
    try:
        number = int(value)
        exact = number == value
    except (TypeError, ValueError):
        exact = False
    if not exact or not 0 <= number < 1 << bits:
        raise LowtideValueError(f"{name} must be an integer in [0, 2**{bits}), got {value!r}")
    return number
