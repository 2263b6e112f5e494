# SPDX-License-Identifier: Apache-2.0
"""Argument checks and the arithmetic type of the estimators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError


def check_weight(w: object, name: str = "w", *, min_dim: int = 1) -> None:
    """Refuse anything but a floating point tensor with rows."""
    if not isinstance(w, Tensor):
        raise LowtideTypeError(f"{name} must be a torch tensor, got {type(w).__name__}")
    if not w.dtype.is_floating_point:
        raise LowtideTypeError(
            f"{name} must be a floating point tensor, got {w.dtype}; convert it with .float()"
        )
    if w.dim() < min_dim:
        raise LowtideValueError(
            f"{name} must have at least {min_dim} dimension(s), got shape {tuple(w.shape)}"
        )


def check_bits(bits: int, low: int = 2, high: int = 8) -> int:
    """A number of bits between ``low`` and ``high``."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= high:
        raise LowtideValueError(f"bits must be an integer between {low} and {high}, got {bits!r}")
    return bits


def check_number(
    value: float, name: str, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """A finite number in [low, high] (or (low, high] with ``open_low``)."""
    ok = isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high
    if not ok or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise LowtideValueError(f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value!r}")
    return float(value)


def wide(x: Tensor) -> Tensor:
    """16-bit types are computed in float32: 1 - 1e-6 is 1 in bfloat16, and a level too many."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def row_mean_abs(w: Tensor) -> Tensor:
    """mean|w| over all dimensions but the first, kept as dimensions of size 1."""
    dims = list(range(1, w.dim()))
    return w.abs().mean(dim=dims, keepdim=True) if dims else w.abs()
