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
    if is_torch(x):
        from lowtide import ops

        x = x.detach()
        bad = int((~x.isfinite()).sum())
        if not bad:
            return *ops.quantize_dynamic(x, signed=signed), 0
    else:
        codes = np.empty(x.size, np.uint8)
        absmax = np.empty(group_count(x.size, 256), np.float32)
        bad = _core.quantize_dynamic(codes, absmax, x.reshape(-1), signed)
        if not bad or nonfinite == "skip":
            return codes, absmax, bad
    if nonfinite == "raise":
        raise nonfinite_error(bad, "x")
    from lowtide import ops

    return *ops.quantize_dynamic(x.nan_to_num(0.0, 0.0, 0.0), signed=signed), bad


def dequantize(codes: Any, absmax: Any, *, signed: bool) -> Any:
    """The flat values, float32."""
    if is_torch(codes):
        from lowtide import ops

        return ops.dequantize_dynamic(codes, absmax, signed=signed)
    out = np.empty(codes.shape, np.float32)
    _core.dequantize_dynamic(out, codes, absmax, signed)
    return out
