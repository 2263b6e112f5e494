# SPDX-License-Identifier: Apache-2.0
"""The 8-bit dynamic maps of optimizer states behind :func:`lowtide.quant.quantize`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import is_torch
from lowtide.quant._format import group_count, nonfinite_error


def quantize(x: Any, nonfinite: str, *, signed: bool) -> tuple[Any, Any, int]:
    """Flat codes, absmax of each block of 256, and the number of non-finite elements, coded as 0.

    x: float32, contiguous.
    """
    codes: Any
    absmax: Any
    if is_torch(x):
        from lowtide.ops.dynamic_map import quantize_dynamic_checked

        codes, absmax, count = quantize_dynamic_checked(x.detach(), signed=signed)
        bad = int(count)
    else:
        codes = np.empty(x.size, np.uint8)
        absmax = np.empty(group_count(x.size, 256), np.float32)
        bad = _core.quantize_dynamic(codes, absmax, x.reshape(-1), signed)
    if bad and nonfinite == "raise":
        raise nonfinite_error(bad, "x")
    return codes, absmax, bad


def dequantize(codes: Any, absmax: Any, *, signed: bool) -> Any:
    """The flat values, float32."""
    if is_torch(codes):
        from lowtide import ops

        return ops.dequantize_dynamic(codes, absmax, signed=signed)
    out = np.empty(codes.shape, np.float32)
    _core.dequantize_dynamic(out, codes, absmax, signed)
    return out
