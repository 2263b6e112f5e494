# SPDX-License-Identifier: Apache-2.0
"""Operands of the packed matrix product, as NumPy arrays or torch tensors: one description for both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowtide._arrays import is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError


class Packed(NamedTuple):
    """A group-quantized matrix: what :class:`lowtide.quant.Quantized` also offers, as a plain tuple.

    Attributes:
        codes: uint8, rows x packed bytes of a row.
        scale: float32, rows x groups of a row.
        zero: uint8, rows x groups (asymmetric), or None (symmetric).
        bits: 8 or 4.
        group: columns that share a scale, a multiple of 32.
        shape: (rows, cols) of the matrix.
        scheme: ``"nf4"`` for levels of NF4; otherwise integers, whose scheme ``zero`` tells.
    """

    codes: Any
    scale: Any
    zero: Any
    bits: int
    group: int
    shape: tuple[int, ...]
    scheme: str | None = None


class Operand(NamedTuple):
    """What a kernel is called with. ``bits`` 0 means dense, -4 NF4; ``rows`` and ``cols`` are those of op(X)."""

    data: Any
    scale: Any
    zero: Any
    bits: int
    stored_cols: int
    group: int
    transposed: bool
    rows: int
    cols: int

    @property
    def args(self) -> tuple[Any, Any, Any, int, int, int, bool]:
        """The seven arguments that the native functions take for an operand."""
        return self[:7]


def is_packed(x: Any) -> bool:
    """True for anything with the attributes of :class:`Packed`."""
    return hasattr(x, "codes") and hasattr(x, "scale") and hasattr(x, "bits")


def _packed(x: Any, name: str, transposed: bool) -> Operand:
    scheme = getattr(x, "scheme", None)
    if scheme is not None and scheme not in ("symmetric", "asymmetric", "nf4"):
        raise LowtideValueError(
            f"{name} is quantized with scheme {scheme!r}; a matrix product takes 'symmetric', 'asymmetric' "
            "or 'nf4' groups: dequantize it first"
        )
    shape = tuple(int(s) for s in x.shape)
    bits, group = int(x.bits), int(x.group)
    if len(shape) < 1:
        raise LowtideValueError(f"{name} must have at least one dimension, got shape {shape}")
    if bits not in (4, 8):
        raise LowtideValueError(f"{name}.bits must be 8 or 4, got {bits}")
    if group < 32 or group % 32:
        raise LowtideValueError(f"{name}.group must be a positive multiple of 32, got {group}")
    nf4 = scheme == "nf4"
    if nf4 and (bits != 4 or x.zero is not None):
        raise LowtideValueError(f"{name} must have 4 bits and no zero points for scheme 'nf4'")
    cols = shape[-1]
    rows = 1
    for s in shape[:-1]:
        rows *= s
    row_bytes = cols if bits == 8 else cols // 32 * 16 + min(cols % 32, 16)
    groups = rows * (-(-cols // group))
    if tuple(x.codes.shape) != (rows, row_bytes):
        raise LowtideValueError(
            f"{name}.codes must be {rows} x {row_bytes} bytes for {bits} bits of shape {shape}, "
            f"got {tuple(x.codes.shape)}"
        )
    for part, what, dtype in (
        (x.codes, "codes", "uint8"),
        (x.scale, "scale", "float32"),
        (x.zero, "zero", "uint8"),
    ):
        if part is None and what == "zero":
            continue
        if str(part.dtype).removeprefix("torch.") != dtype:
            raise LowtideTypeError(f"{name}.{what} must have dtype {dtype}, got {part.dtype}")
        count = part.numel() if is_torch(part) else part.size
        if what != "codes" and count != groups:
            raise LowtideValueError(f"{name}.{what} must hold {groups} values (one a group), got {count}")
        if not (part.is_contiguous() if is_torch(part) else part.flags.c_contiguous):
            raise LowtideValueError(f"{name}.{what} must be contiguous")
    r, c = (cols, rows) if transposed else (rows, cols)
    return Operand(x.codes, x.scale, x.zero, -4 if nf4 else bits, cols, group, transposed, r, c)


def _dense(x: Any, name: str, transposed: bool) -> Operand:
    if len(x.shape) != 2:
        raise LowtideValueError(f"{name} must have two dimensions, got shape {tuple(x.shape)}")
    rows, cols = int(x.shape[0]), int(x.shape[1])
    if is_torch(x):
        strides = (x.stride(0), x.stride(1))
    else:
        strides = (x.strides[0] // x.itemsize, x.strides[1] // x.itemsize)
    r, c = (cols, rows) if transposed else (rows, cols)
    if (cols <= 1 or strides[1] == 1) and (rows <= 1 or strides[0] >= cols):
        return Operand(x, None, None, 0, cols, 0, transposed, r, c)
    if strides[0] == 1 and strides[1] >= rows:  # a transposed view: the same memory, the other flag
        return Operand(x.T, None, None, 0, rows, 0, not transposed, r, c)
    x = x.contiguous() if is_torch(x) else np.ascontiguousarray(x)
    return Operand(x, None, None, 0, cols, 0, transposed, r, c)


def operand(x: Any, name: str, transposed: bool, *, torch_only: bool | None = None) -> Operand:
    """Check and describe one operand: a float32 (torch: also bfloat16) matrix or a packed one.

    Rows must be contiguous; the transposed view of such a matrix is used in place, anything else is copied.
    """
    if is_packed(x):
        data = x.codes
    else:
        data = x
    tensor = is_torch(data)
    if not tensor and not isinstance(data, np.ndarray):
        raise LowtideTypeError(
            f"{name} must be a matrix (NumPy array, torch tensor) or packed (codes, scale, zero, bits, group, shape), "
            f"got {type(x).__name__}"
        )
    if torch_only is not None and tensor != torch_only:
        raise LowtideTypeError(
            f"{name} must be a {'torch tensor' if torch_only else 'NumPy array'} like the other operand"
        )
    if is_packed(x):
        return _packed(x, name, transposed)
    allowed = ("float32", "bfloat16") if tensor else ("float32",)
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in allowed:
        fix = ".float()" if tensor else ".astype(np.float32)"
        raise LowtideTypeError(
            f"{name} must have dtype {' or '.join(allowed)}, got {dtype}; convert it with {fix}"
        )
    return _dense(x, name, transposed)


def check_inner(a: Operand, b: Operand) -> None:
    """Refuse operands whose inner sizes differ."""
    if a.cols != b.rows:
        raise LowtideValueError(
            f"op(a) is {a.rows} x {a.cols} and op(b) is {b.rows} x {b.cols}; the inner sizes must be equal "
            "(see ta and tb)"
        )
