# SPDX-License-Identifier: Apache-2.0
"""Arguments that the perturbing ops share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_weights(name: str, t: Tensor, numel: int | None = None) -> None:
    """Contiguous floats, as many as w has where ``numel`` is given."""
    if not isinstance(t, Tensor) or t.dtype not in FLOATS:
        got = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise LowtideTypeError(f"{name} must be a float32, bfloat16 or float16 tensor, got {got}")
    if not t.is_contiguous():
        raise LowtideValueError(f"{name} must be contiguous, got strides {t.stride()}; pass .contiguous()")
    if numel is not None and t.numel() != numel:
        raise LowtideValueError(f"{name} must have the {numel} elements of w, got {t.numel()}")


def check_perturbation(scale: float, threshold: float, dist: int) -> None:
    """A scale, a mask's threshold, and a number of :data:`lowtide.random.DISTS`."""
    if not math.isfinite(scale):
        raise LowtideValueError(f"scale must be finite, got {scale!r}")
    if not threshold >= 0:
        raise LowtideValueError(f"threshold must be >= 0 (math.inf for no mask), got {threshold!r}")
    if not 0 <= dist < 4:
        raise LowtideValueError(f"dist must be 0, 1, 2 or 3 (lowtide.random.DISTS), got {dist!r}")


def check_address(seed: int, step: int, slot: int, param: int, offset: int) -> None:
    """The address of a direction's first element."""
    check_uint(seed, "seed", 63)
    check_uint(step, "step", 63)
    check_uint(slot, "slot", 32)
    check_uint(param, "param", 32)
    check_uint(offset, "offset", 62)
