# SPDX-License-Identifier: Apache-2.0
"""One matrix through the kernels, NumPy or torch; arguments are checked by the caller."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lowtide import _core
from lowtide._arrays import is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._format import (
    FLOATS,
    LEVEL_MAPS,
    ROLE_QUANT_SR,
    Address,
    group_count,
    map_of,
    nonfinite_error,
    row_bytes,
)


class Codes(NamedTuple):
    """What a codec makes; ``scale`` is float32."""

    codes: Any
    scale: Any
    zero: Any
    nonfinite: int


class Format(NamedTuple):
    """What a codec is told. ``range_id``: csrc/quant/group_format.h, ``Range``."""

    bits: int
    group: int
    scheme: str
    rounding: str
    range_id: int
    bf16_scale: bool

    @property
    def map(self) -> str | None:
        """The fixed levels of the codes, by the kernels' name; ``None`` for integers with a scale."""
        return map_of(self.scheme, self.bits)


def dtype_of(x: Any) -> str:
    """The checked dtype of an array or tensor, as a name."""
    if not is_torch(x) and not isinstance(x, np.ndarray):
        raise LowtideTypeError(f"x must be a NumPy array or a torch tensor, got {type(x).__name__}")
    dtype = str(x.dtype).removeprefix("torch.") if is_torch(x) else x.dtype.name
    if dtype not in FLOATS:
        fix = ".float()" if is_torch(x) else ".astype(np.float32)"
        raise LowtideTypeError(f"x must be float32, bfloat16 or float16, got {dtype}; convert it with {fix}")
    if x.ndim == 0:
        raise LowtideValueError("x must have at least one dimension; pass x.reshape(1)")
    return dtype


def encode(x: Any, form: Format, at: Address, nonfinite: str) -> Codes:
    """Codes of ``x``. Raises as ``nonfinite`` says."""
    result = _encode_torch(x, form, at) if is_torch(x) else _encode_numpy(x, form, at)
    if result.nonfinite and nonfinite == "raise":
        raise nonfinite_error(result.nonfinite, "x")
    return result


def _encode_torch(x: Any, form: Format, at: Address) -> Codes:
    from lowtide.ops.level_maps import quantize_map_checked
    from lowtide.ops.quant import quantize_checked

    if form.map:
        codes, scale, bad = quantize_map_checked(x, form.map, form.group, form.rounding, at, form.bf16_scale)
        return Codes(codes, scale, None, int(bad))
    codes, scale, zero, bad = quantize_checked(
        x, form.bits, form.group, form.scheme, form.rounding, at, form.range_id, bf16_scale=form.bf16_scale
    )
    return Codes(codes, scale, zero, int(bad))


def _encode_numpy(x: Any, form: Format, at: Address) -> Codes:
    rows, cols = math.prod(x.shape[:-1]), x.shape[-1]
    codes = np.empty((rows, row_bytes(cols, form.bits)), np.uint8)
    scale = np.empty((rows, group_count(cols, form.group)), np.float32)
    zero = np.empty(scale.shape, np.uint8) if form.scheme == "asymmetric" else None
    matrix = _native(x).reshape(rows, cols)
    stochastic = form.rounding == "stochastic"
    noise = at.seed, at.step, at.slot, at.param, ROLE_QUANT_SR, at.offset
    if form.map:
        bad = _core.quantize_map(
            matrix, codes, scale, LEVEL_MAPS[form.map], form.group, stochastic, *noise, form.bf16_scale
        )
    else:
        bad = _core.quantize_group(
            matrix,
            codes,
            scale,
            zero,
            form.bits,
            form.group,
            stochastic,
            form.range_id,
            *noise,
            form.bf16_scale,
        )
    return Codes(codes, scale, zero, bad)


def _native(x: Any) -> Any:
    """Contiguous, in the machine's byte order, bfloat16 as uint16: what the kernels take."""
    if x.dtype.name == "bfloat16":
        return np.ascontiguousarray(x).view(np.uint16)
    return np.ascontiguousarray(x, x.dtype.newbyteorder("="))


def decode(codes: Any, scale: Any, zero: Any, form: Format, rows: int, cols: int, dtype: str) -> Any:
    """The matrix (rows, cols) as ``dtype``; ``scale`` is float32."""
    if is_torch(codes):
        import torch

        from lowtide import ops

        as_dtype = getattr(torch, dtype)
        if form.map:
            return ops.dequantize_map(codes, scale, map=form.map, group=form.group, cols=cols, dtype=as_dtype)
        return ops.dequantize_group(
            codes, scale, zero, bits=form.bits, group=form.group, cols=cols, dtype=as_dtype
        )
    final = _bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    out = np.empty((rows, cols), np.uint16 if dtype == "bfloat16" else final)
    if form.map:
        _core.dequantize_map(codes, scale, out, LEVEL_MAPS[form.map], form.group)
    else:
        _core.dequantize_group(codes, scale, zero, out, form.bits, form.group)
    return out.view(final)


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise LowtideTypeError(
            "NumPy has no bfloat16: pass dtype='float32', or pip install ml_dtypes"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def narrow(scale: Any) -> Any:
    """Float32 scales that bfloat16 holds, as bfloat16 (arrays: its bits as uint16)."""
    if is_torch(scale):
        import torch

        return scale.to(torch.bfloat16)
    return (scale.view(np.uint32) >> 16).astype(np.uint16)


def widen(scale: Any) -> Any:
    """The inverse of :func:`narrow`; float32 stays as it is."""
    if is_torch(scale):
        return scale.float()
    if scale.dtype == np.uint16:
        return (scale.astype(np.uint32) << 16).view(np.float32)
    return scale
