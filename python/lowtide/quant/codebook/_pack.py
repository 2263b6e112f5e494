# SPDX-License-Identifier: Apache-2.0
"""Indices of 1, 2, 4, 8 or 16 bits as bytes, the first index in the lowest bits (16: little endian)."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError

WIDTHS = (1, 2, 4, 8, 16)


def width_for(count: int) -> int:
    """The smallest width that tells ``count`` codewords apart."""
    for bits in WIDTHS:
        if count <= 1 << bits:
            return bits
    raise LowtideValueError(f"a codebook has at most 65536 codewords, got {count}")


def row_bytes(n: int, bits: int) -> int:
    """Bytes of a row of n indices."""
    return -(-n * bits // 8)


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise LowtideValueError(f"bits must be one of {', '.join(map(str, WIDTHS))}, got {bits!r}")


def pack(index: Tensor, bits: int) -> Tensor:
    """Integer indices (rows, n) in [0, 2^bits) as uint8 (rows, ceil(n bits / 8)); rows start at a byte."""
    _check_width(bits)
    if not isinstance(index, Tensor) or index.dim() != 2 or index.dtype.is_floating_point:
        raise LowtideTypeError("index must be an integer tensor (rows, n)")
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < 1 << bits):
        raise LowtideValueError(f"index must lie in [0, {1 << bits}) for {bits} bits")
    if bits == 16:
        return torch.stack((index & 255, index >> 8), -1).to(torch.uint8).reshape(index.shape[0], -1)
    per = 8 // bits
    padded = torch.nn.functional.pad(index, (0, -index.shape[1] % per)).to(torch.uint8)
    parts = padded.reshape(index.shape[0], -1, per)
    out = parts[..., 0].clone()
    for i in range(1, per):
        out |= parts[..., i] << (bits * i)
    return out


def unpack(codes: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of :func:`pack`: int64 (rows, n)."""
    _check_width(bits)
    rows = codes.shape[0]
    if codes.dtype != torch.uint8 or tuple(codes.shape) != (rows, row_bytes(n, bits)):
        raise LowtideValueError(
            f"codes must be uint8 (rows, {row_bytes(n, bits)}) for {n} indices of {bits} bits, "
            f"got {codes.dtype} {tuple(codes.shape)}"
        )
    wide = codes.long()
    if bits == 16:
        return wide[:, 0::2] | wide[:, 1::2] << 8
    parts = [(wide >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)]
    return torch.stack(parts, -1).reshape(rows, wide.shape[1] * len(parts))[:, :n]
