# SPDX-License-Identifier: Apache-2.0
"""Walsh-Hadamard transforms of the rows or columns of a matrix, with signs, whole or in part."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.lowrank._dct_length import check_length
from lowtide.ops._common import fake
from lowtide.ops._lines import check_index, columns_of, index_of, matrix

_op = torch.ops.lowtide


def _signs(signs: Tensor | None, n: int) -> Tensor | None:
    if signs is None:
        return None
    if not isinstance(signs, Tensor) or signs.dtype != torch.float32:
        raise LowtideTypeError("signs must be a float32 tensor of +1 and -1")
    spans = 1 if n & (n - 1) == 0 else 2
    if tuple(signs.shape) != (spans, n):
        raise LowtideValueError(
            f"signs must have shape {(spans, n)} for lines of {n}, got {tuple(signs.shape)}"
        )
    if not torch.compiler.is_compiling() and not bool((signs.abs() == 1.0).all()):
        raise LowtideValueError("signs must be +1 or -1")
    return signs.contiguous()


def hadamard(x: Tensor, *, dim: int = -1, signs: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of each line of ``x`` along ``dim``, in n log n steps, or some coefficients of it.

    ``s = H D x`` with ``H[i, j] = (-1)^popcount(i & j) / sqrt(n)`` (Sylvester's order) where the length n of a line is a power
    of two; H is its own inverse. Other lengths are not padded: with h the largest power of two below n, the first h values are
    transformed, then the last h, each after signs of their own. That is orthogonal for every n, too.

    Args:
        x: m x n, float32 or bfloat16, CPU. dim: 1 (rows) or 0 (columns).
        signs: D, float32 of +1 and -1: 1 x n for powers of two, else 2 x n. All +1 without it.
        index: coefficients to keep, ascending; all without it.

    Returns:
        float32, of the shape of ``x`` with ``len(index)`` along ``dim``. The same bits on every target. A line of zeros gives
        zeros, and inf or NaN spoil their own line only.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    x, columns, index = matrix(x, "x", (torch.float32, torch.bfloat16)), columns_of(dim), index_of(index)
    n = check_length(x.shape[0 if columns else 1])
    check_index(index, n)
    result: Tensor = _op.fwht_forward(x, _signs(signs, n), index, columns)
    return result


def hadamard_back(
    low: Tensor, n: int, *, dim: int = -1, signs: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    """The matrix whose lines of length ``n`` along ``dim`` have these coefficients, and zeros where ``index`` leaves some out.

    Args:
        low: what :func:`hadamard` gives, float32. n: length of a line. dim, signs, index: as for :func:`hadamard`.

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
    result: Tensor = _op.fwht_inverse(low, _signs(signs, n), index, columns, n)
    return result


@fake("lowtide::fwht_forward")
def _(x: Tensor, signs: Tensor | None, index: Tensor | None, columns: bool) -> Tensor:
    shape = list(x.shape)
    if index is not None:
        shape[0 if columns else 1] = index.shape[0]
    return x.new_empty(shape, dtype=torch.float32)


@fake("lowtide::fwht_inverse")
def _(low: Tensor, signs: Tensor | None, index: Tensor | None, columns: bool, n: int) -> Tensor:
    return low.new_empty((n, low.shape[1]) if columns else (low.shape[0], n))
