# SPDX-License-Identifier: Apache-2.0
"""DCT-II of the rows or columns of a matrix, whole or in part."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.lowrank._dct_length import check_length
from lowtide.ops._common import fake
from lowtide.ops._lines import check_index, columns_of, index_of, matrix

_op = torch.ops.lowtide


def dct(x: Tensor, *, dim: int = -1, index: Tensor | None = None) -> Tensor:
    """Orthonormal DCT-II of each line of ``x`` along ``dim``, by a fast transform of any length, or some coefficients of it.

    Args:
        x: m x n, float32 or bfloat16, CPU. dim: 1 (rows) or 0 (columns).
        index: coefficients to keep, ascending; all without it.

    Returns:
        float32, of the shape of ``x`` with ``len(index)`` along ``dim``. The same bits on every target. A line of
        zeros gives zeros, and inf or NaN spoil their own line only.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    x, columns, index = matrix(x, "x", (torch.float32, torch.bfloat16)), columns_of(dim), index_of(index)
    n = check_length(x.shape[0 if columns else 1])
    check_index(index, n)
    result: Tensor = _op.dct_forward(x, index, columns)
    return result


def idct(low: Tensor, n: int, *, dim: int = -1, index: Tensor | None = None) -> Tensor:
    """The matrix whose lines of length ``n`` along ``dim`` have these coefficients, and zeros where ``index`` leaves some out.

    Args:
        low: what :func:`dct` gives, float32. n: length of a line. dim, index: as for :func:`dct`.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    low, columns, index = matrix(low, "low", (torch.float32,)), columns_of(dim), index_of(index)
    count = check_length(n) if index is None else index.numel()
    if low.shape[0 if columns else 1] != count:
        raise LowtideValueError(
            f"low must have {count} coefficients along dim {0 if columns else 1}, got shape {tuple(low.shape)}"
        )
    check_index(index, check_length(n))
    result: Tensor = _op.dct_inverse(low, index, columns, n)
    return result


def dct_power(x: Tensor, *, dim: int = -1, square: bool = False) -> Tensor:
    """How much of ``x`` lies in each coefficient: the sum over lines of its magnitude (or square), float32, without
    storing the transform.

    Args:
        x, dim: as for :func:`dct`. square: add squares.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    x, columns = matrix(x, "x", (torch.float32, torch.bfloat16)), columns_of(dim)
    check_length(x.shape[0 if columns else 1])
    result: Tensor = _op.dct_power(x, columns, bool(square))
    return result


@fake("lowtide::dct_forward")
def _(x: Tensor, index: Tensor | None, columns: bool) -> Tensor:
    shape = list(x.shape)
    if index is not None:
        shape[0 if columns else 1] = index.shape[0]
    return x.new_empty(shape, dtype=torch.float32)


@fake("lowtide::dct_inverse")
def _(low: Tensor, index: Tensor | None, columns: bool, n: int) -> Tensor:
    return low.new_empty((n, low.shape[1]) if columns else (low.shape[0], n))


@fake("lowtide::dct_power")
def _(x: Tensor, columns: bool, square: bool) -> Tensor:
    return x.new_empty((x.shape[0 if columns else 1],), dtype=torch.float32)
