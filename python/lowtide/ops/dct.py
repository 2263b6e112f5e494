# SPDX-License-Identifier: Apache-2.0
"""DCT-II of the rows or columns of a matrix, whole or in part."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.lowrank._dct_length import check_length

_op = torch.ops.lowtide


def _matrix(x: Tensor, name: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in dtypes:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise LowtideTypeError(f"{name} must be a {wanted} tensor, got {got}")
    if x.dim() != 2:
        raise LowtideValueError(f"{name} must have two dimensions, got shape {tuple(x.shape)}")
    return x.detach().contiguous()


def _columns(dim: int) -> bool:
    if dim not in (-2, -1, 0, 1):
        raise LowtideValueError(f"dim must be 0 or 1, got {dim!r}")
    return dim in (0, -2)


def _index(index: Tensor | None) -> Tensor | None:
    if index is None:
        return None
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
        raise LowtideTypeError("index must be a 1-D int32 or int64 tensor")
    return index.to(torch.int32).contiguous()


def _check_index(index: Tensor | None, n: int) -> None:
    if index is None or index.numel() == 0 or torch.compiler.is_compiling():
        return  # in a graph the op itself refuses
    if int(index[0]) < 0 or int(index[-1]) >= n or not bool((index[1:] > index[:-1]).all()):
        raise LowtideValueError(f"index must ascend within [0, {n}); sort it and drop what is twice")


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
    x, columns, index = _matrix(x, "x", (torch.float32, torch.bfloat16)), _columns(dim), _index(index)
    n = check_length(x.shape[0 if columns else 1])
    _check_index(index, n)
    result: Tensor = _op.dct_forward(x, index, columns)
    return result


def idct(low: Tensor, n: int, *, dim: int = -1, index: Tensor | None = None) -> Tensor:
    """The matrix whose lines of length ``n`` along ``dim`` have these coefficients, and zeros where ``index`` leaves some out.

    Args:
        low: what :func:`dct` gives, float32. n: length of a line. dim, index: as for :func:`dct`.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    low, columns, index = _matrix(low, "low", (torch.float32,)), _columns(dim), _index(index)
    count = check_length(n) if index is None else index.numel()
    if low.shape[0 if columns else 1] != count:
        raise LowtideValueError(
            f"low must have {count} coefficients along dim {0 if columns else 1}, got shape {tuple(low.shape)}"
        )
    _check_index(index, check_length(n))
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
    x, columns = _matrix(x, "x", (torch.float32, torch.bfloat16)), _columns(dim)
    check_length(x.shape[0 if columns else 1])
    result: Tensor = _op.dct_power(x, columns, bool(square))
    return result


@torch.library.register_fake("lowtide::dct_forward")
def _(x: Tensor, index: Tensor | None, columns: bool) -> Tensor:
    shape = list(x.shape)
    if index is not None:
        shape[0 if columns else 1] = index.shape[0]
    return x.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("lowtide::dct_inverse")
def _(low: Tensor, index: Tensor | None, columns: bool, n: int) -> Tensor:
    return low.new_empty((n, low.shape[1]) if columns else (low.shape[0], n))


@torch.library.register_fake("lowtide::dct_power")
def _(x: Tensor, columns: bool, square: bool) -> Tensor:
    return x.new_empty((x.shape[0 if columns else 1],), dtype=torch.float32)
