# SPDX-License-Identifier: Apache-2.0
"""The 8-bit dynamic map of optimizer states (signed) behind :func:`lowtide.quant.quantize`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import check_array, is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._format import group_count, nonfinite_error


def quantize(x: Any, nonfinite: str) -> tuple[Any, Any, int]:
    """Flat codes, absmax of each block of 256, and the number of non-finite elements, coded as 0."""
    if is_torch(x):
        import torch

        from lowtide import ops

        if x.dtype != torch.float32:
            raise LowtideTypeError(
                f"x must be float32 for scheme='dynamic', got {x.dtype}; convert it with .float()"
            )
        x = x.detach()
        bad = int((~x.isfinite()).sum())
        if not bad:
            return *ops.quantize_dynamic(x, signed=True), 0
    else:
        x = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x
        check_array(x, "x")
        codes = np.empty(x.size, np.uint8)
        absmax = np.empty(group_count(x.size, 256), np.float32)
        bad = _core.quantize_dynamic(codes, absmax, x.reshape(-1), True)
        if not bad or nonfinite == "skip":
            return codes, absmax, bad
    if nonfinite == "raise":
        raise nonfinite_error(bad, "x")
    from lowtide import ops

    return *ops.quantize_dynamic(x.nan_to_num(0.0, 0.0, 0.0), signed=True), bad


def dequantize(codes: Any, absmax: Any, dtype: str) -> Any:
    """The flat values."""
    if is_torch(codes):
        import torch

        from lowtide import ops

        return ops.dequantize_dynamic(codes, absmax, signed=True).to(getattr(torch, dtype))
    if dtype != "float32":
        raise LowtideValueError(f"dynamic codes of arrays decode to float32, got dtype={dtype!r}")
    out = np.empty(codes.shape, np.float32)
    _core.dequantize_dynamic(out, codes, absmax, True)
    return out
