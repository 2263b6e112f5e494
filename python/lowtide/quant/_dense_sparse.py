# SPDX-License-Identifier: Apache-2.0
"""Low-bit groups plus a sparse side tensor of 16-bit outliers: the common format of gwq and outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._format import SCHEMES, choice, group_count
from lowtide.quant._tensor import Quantized, quantize

_INT16_COLUMNS = 1 << 15
_VALUES = (torch.float16, torch.bfloat16)
_KEYS = ("dense", "row_start", "column", "value")


@dataclass(frozen=True, eq=False)
class DenseSparse:
    """A matrix in low-bit groups, and its outliers in compressed sparse rows (CSR).

    Outliers are not part of their group: its scale is that of the rest, and the code in their place decodes to 0.

    Attributes:
        dense: :class:`Quantized` of the matrix with zeros in place of the outliers.
        row_start: int32, (rows + 1,): row r owns entries row_start[r] to row_start[r + 1].
        column: int16 (int32 from 32769 columns on), (outliers,), ascending within a row.
        value: float16 or bfloat16, (outliers,).
    """

    dense: Quantized
    row_start: Tensor
    column: Tensor
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.dense.shape

    @property
    def outliers(self) -> int:
        """Number of outliers."""
        return self.value.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return self.dense.nbytes + self.row_start.nbytes + self.column.nbytes + self.value.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over elements: codes, scales, zero points, outliers and row starts."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))

    def rows(self) -> Tensor:
        """The row of each outlier, int64."""
        counts = self.row_start.diff().long()
        return torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)

    def dequantize(self, dtype: str | None = None) -> Tensor:
        """The values in their original shape, as ``"float32"``, ``"bfloat16"`` or ``"float16"`` (default: what was quantized)."""
        w: Tensor = self.dense.dequantize(dtype)
        w.view(-1)[self.rows() * self.shape[-1] + self.column.long()] = self.value.to(w.dtype)
        return w

    def to_dict(self) -> dict[str, Any]:
        """Tensors, integers and strings only: safe for ``torch.load(weights_only=True)``."""
        return {"dense": self.dense.to_dict(), **{k: getattr(self, k) for k in _KEYS[1:]}}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> DenseSparse:
        """The inverse of :meth:`to_dict`; everything is checked, for the dictionary may come from a file."""
        if set(state) != set(_KEYS):
            raise LowtideValueError(
                f"state must have the keys {', '.join(_KEYS)}, got {sorted(map(str, state))}"
            )
        self = cls(Quantized.from_dict(state["dense"]), *(state[k] for k in _KEYS[1:]))
        self._check()
        return self

    def _check(self) -> None:
        choice(self.dense.scheme, "the scheme of dense", SCHEMES)
        if self.dense.flat:
            raise LowtideValueError("dense must have its groups along rows, not over the flattened tensor")
        rows, cols = math.prod(self.shape[:-1]), self.shape[-1]
        parts = {k: getattr(self, k) for k in _KEYS[1:]}
        for name, part in parts.items():
            if not isinstance(part, Tensor):
                raise LowtideTypeError(f"{name} must be a torch tensor, got {type(part).__name__}")
        if self.row_start.dtype != torch.int32 or self.value.dtype not in _VALUES:
            raise LowtideTypeError(
                "row_start must be int32 and value float16 or bfloat16; the state is damaged"
            )
        if self.column.dtype != _column_dtype(cols):
            raise LowtideTypeError(
                f"column must be {_column_dtype(cols)} for {cols} columns, got {self.column.dtype}"
            )
        start, column = self.row_start.long(), self.column.long()
        ok = start.shape == (rows + 1,) and column.shape == self.value.shape and column.dim() == 1
        ok = (
            ok and int(start[0]) == 0 and int(start[-1]) == column.numel() and bool((start.diff() >= 0).all())
        )
        ok = ok and bool(((column >= 0) & (column < cols)).all()) and bool(self.value.isfinite().all())
        if ok:
            flat = self.rows() * cols + column
            ok = bool((flat.diff() > 0).all())
        if not ok:
            raise LowtideValueError(
                "row_start, column and value do not describe a sparse matrix; the state is damaged"
            )
        if column.numel() and bool(self.dense.dequantize("float32").view(-1)[flat].any()):
            raise LowtideValueError("dense must be 0 in place of each outlier; the state is damaged")

    def __repr__(self) -> str:
        return (
            f"DenseSparse(shape={self.shape}, int{self.dense.bits} {self.dense.scheme}, group={self.dense.group}, "
            f"outliers={self.outliers}, {self.bits_per_weight:.3f} bits a weight)"
        )


def _column_dtype(cols: int) -> torch.dtype:
    return torch.int16 if cols <= _INT16_COLUMNS else torch.int32


def check_matrix(w: Any, name: str = "w") -> None:
    """Refuse anything but a finite float tensor of at least one dimension."""
    if not isinstance(w, Tensor):
        raise LowtideTypeError(f"{name} must be a torch tensor, got {type(w).__name__}")
    if not w.dtype.is_floating_point:
        raise LowtideTypeError(
            f"{name} must be a floating point tensor, got {w.dtype}; convert it with .float()"
        )
    if w.dim() == 0:
        raise LowtideValueError(f"{name} must have at least one dimension; pass {name}.reshape(1)")
    if not bool(w.isfinite().all()):
        raise LowtideValueError(f"{name} has non-finite elements; repair it first")


def split(
    w: Tensor,
    mask: Tensor,
    *,
    bits: int = 4,
    group: int = 128,
    scheme: str = "symmetric",
    value_dtype: torch.dtype | None = None,
) -> DenseSparse:
    """Quantize ``w`` with the elements of ``mask`` kept aside in 16 bit.

    Args:
        w: float32, bfloat16 or float16, (..., cols), finite.
        mask: bool of the shape of ``w``: the outliers.
        bits, group: see :func:`lowtide.quant.quantize`. scheme: ``"symmetric"`` or ``"asymmetric"``.
        value_dtype: float16 (default) or bfloat16 (default for bfloat16, exact).

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, or an outlier beyond the range of float16.
    """
    check_matrix(w)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != w.shape:
        raise LowtideTypeError(f"mask must be a bool tensor of shape {tuple(w.shape)}")
    choice(scheme, "scheme", SCHEMES)
    if value_dtype is None:
        value_dtype = torch.bfloat16 if w.dtype == torch.bfloat16 else torch.float16
    if value_dtype not in _VALUES:
        raise LowtideTypeError(f"value_dtype must be float16 or bfloat16, got {value_dtype}")
    w = w.detach()
    cols = w.shape[-1]
    rows = math.prod(w.shape[:-1])
    flat, chosen = w.reshape(rows, cols), mask.reshape(rows, cols)
    value = flat[chosen].to(value_dtype)
    if not bool(value.isfinite().all()):
        raise LowtideValueError(
            "an outlier of w is beyond the range of float16; pass value_dtype=torch.bfloat16"
        )
    dense = quantize(w.masked_fill(mask, 0), bits, group, scheme=scheme)
    start = torch.zeros(flat.shape[0] + 1, dtype=torch.int32, device=w.device)
    start[1:] = chosen.sum(1).cumsum(0)
    column = chosen.nonzero()[:, 1].to(_column_dtype(cols))
    return DenseSparse(dense, start, column, value)


def groups_of(x: Tensor, group: int) -> Tensor:
    """``x`` (rows, cols) as (rows, groups, group); a short last group is filled up with zeros."""
    rows, cols = x.shape
    count = group_count(cols, group)
    if count * group != cols:
        x = torch.nn.functional.pad(x, (0, count * group - cols))
    return x.reshape(rows, count, group)
