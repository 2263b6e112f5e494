# SPDX-License-Identifier: Apache-2.0
"""Ops of the 8-bit dynamic map: bitsandbytes' blockwise format, flat blocks of 256."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, mutated

_op = torch.ops.lowtide
BLOCK = 256


def quantize_dynamic(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, flat, one an element) and absmax (float32, one for each 256 elements) of ``x``.

    ``x`` is float32, any shape. The unsigned map takes negative values as zero. Non-finite elements are
    refused; inside ``torch.compile``, where the answer cannot be looked at, they are coded as zero.
    """
    codes, absmax, nonfinite = quantize_dynamic_checked(x, signed=signed)
    if not torch.compiler.is_compiling() and int(nonfinite) != 0:
        raise LowtideValueError(
            f"x has {int(nonfinite)} non-finite elements, which no code stands for; replace them with torch.nan_to_num(x)"
        )
    return codes, absmax


def quantize_dynamic_checked(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, absmax and the number of non-finite elements (int64, no dimensions), which are coded as zero."""
    if x.dtype != torch.float32:
        raise LowtideTypeError(f"x must be float32, got {x.dtype}; convert it with x.float()")
    return _op.quantize_dynamic(x.contiguous(), signed)


def dequantize_dynamic(codes: Tensor, absmax: Tensor, *, signed: bool, out: Tensor | None = None) -> Tensor:
    """The float32 values of ``codes``, in the shape of ``codes``, or into ``out`` (float32, contiguous)."""
    if codes.dtype != torch.uint8:
        raise LowtideTypeError(f"codes must be uint8, got {codes.dtype}")
    if absmax.dtype != torch.float32:
        raise LowtideTypeError(f"absmax must be float32, got {absmax.dtype}")
    blocks = -(-codes.numel() // BLOCK)
    if absmax.numel() != blocks:
        raise LowtideValueError(
            f"absmax must have {blocks} elements, one for each {BLOCK} codes, got {absmax.numel()}"
        )
    if out is None:
        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    else:
        if out.dtype != torch.float32 or not out.is_contiguous() or out.numel() != codes.numel():
            raise LowtideValueError(
                f"out must be contiguous float32 with {codes.numel()} elements, got {out.dtype} {tuple(out.shape)}"
            )
        check_mutable((out,), "out")
    _op.dequantize_dynamic(out, codes.contiguous(), absmax.contiguous(), signed)
    mutated(out)
    return out


@torch.library.register_fake("lowtide::quantize_dynamic")
def _(x: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty((x.numel(),), dtype=torch.uint8),
        x.new_empty(((x.numel() + BLOCK - 1) // BLOCK,), dtype=torch.float32),
        x.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("lowtide::dequantize_dynamic")
def _(out: Tensor, codes: Tensor, absmax: Tensor, signed: bool) -> None: ...
