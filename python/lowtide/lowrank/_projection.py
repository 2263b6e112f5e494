# SPDX-License-Identifier: Apache-2.0
"""Products with dense or packed bases."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import check_array, is_torch
from lowtide._operands import check_inner, is_packed, operand
from lowtide.errors import LowtideValueError

SIDES = ("right", "left")


def check_side(side: str) -> None:
    """Refuse anything but the two sides."""
    if side not in SIDES:
        raise LowtideValueError(f"side must be 'right' or 'left', got {side!r}; see lowtide.lowrank.side_for")


def uses_torch(*arrays: Any) -> bool:
    """True if the arrays (or the codes of packed ones) are torch tensors."""
    return any(is_torch(x.codes if is_packed(x) else x) for x in arrays)


def matmul(a: Any, b: Any, *, ta: bool = False, tb: bool = False, out: Any = None) -> Any:
    """``op(a) @ op(b)`` in float32 for dense and packed matrices, the same bits for NumPy and torch.

    Args:
        a, b: float32 matrices (torch: also bfloat16), or packed ones: :class:`lowtide.quant.Quantized`,
            :class:`Packed`, or anything with their attributes. Both NumPy or both torch.
        ta, tb: use the transpose of ``a``, of ``b``.
        out: float32 result to fill, contiguous; must not share memory with the operands.

    Returns:
        float32, op(a) rows x op(b) columns, or ``out``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.

    >>> import numpy as np, lowtide as lt
    >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> lt.lowrank.matmul(a, a, tb=True).tolist()
    [[5.0, 14.0], [14.0, 50.0]]
    """
    if uses_torch(a, b):
        from lowtide import ops

        return ops.matmul(a, b, ta=ta, tb=tb, out=out)
    x = operand(a, "a", ta, torch_only=False)
    y = operand(b, "b", tb, torch_only=False)
    check_inner(x, y)
    if out is None:
        out = np.empty((x.rows, y.cols), dtype=np.float32)
    else:
        check_array(out, "out", writable=True)
        if out.shape != (x.rows, y.cols):
            raise LowtideValueError(f"out must have shape ({x.rows}, {y.cols}), got {out.shape}")
    _core.matmul(out, *x.args, *y.args)
    return out


def _check_basis(matrix: Any, name: str, at: int, basis: Any, rows: int, what: str) -> None:
    if len(matrix.shape) != 2:
        raise LowtideValueError(f"{name} must have two dimensions, got shape {tuple(matrix.shape)}")
    want = tuple(basis.shape)[rows]
    if len(basis.shape) != 2 or matrix.shape[at] != want:
        raise LowtideValueError(
            f"{name} has shape {tuple(matrix.shape)} and the basis {tuple(basis.shape)} (r x d): {what} must be equal"
        )


def project(G: Any, basis: Any, side: str) -> Any:
    """The gradient in the subspace: ``G Bᵀ`` (right, m x r) or ``B G`` (left, r x n), float32.

    Args:
        G: m x n, float32 (torch: also bfloat16).
        basis: r x d, dense, packed or a :class:`DCTBasis`; d = n (right) or m (left).
        side: ``"right"`` or ``"left"``.
    """
    check_side(side)
    if _is_cosines(basis):
        return basis.project(G, side)
    if side == "right":
        _check_basis(G, "G", 1, basis, 1, "columns of G and d")
        return matmul(G, basis, tb=True)
    _check_basis(G, "G", 0, basis, 1, "rows of G and d")
    return matmul(basis, G)


def project_back(R: Any, basis: Any, side: str) -> Any:
    """Back to full size: ``R B`` (right, m x n) or ``Bᵀ R`` (left, m x n), float32.

    Args:
        R: m x r (right) or r x n (left), float32 (torch: also bfloat16).
        basis: r x d, as in :func:`project`. side: always the one that R was projected with.
    """
    check_side(side)
    if _is_cosines(basis):
        return basis.project_back(R, side)
    if side == "right":
        _check_basis(R, "R", 1, basis, 0, "columns of R and r")
        return matmul(R, basis)
    _check_basis(R, "R", 0, basis, 0, "rows of R and r")
    return matmul(basis, R, ta=True)


def _is_cosines(basis: Any) -> bool:
    from lowtide.lowrank._dct import DCTBasis

    return isinstance(basis, DCTBasis)


def dense(basis: Any, name: str) -> Any:
    """A packed matrix decoded to float32; dense ones as they are."""
    if not is_packed(basis):
        return basis
    operand(basis, name, False)  # all the checks
    bits, group, cols = int(basis.bits), int(basis.group), int(basis.shape[-1])
    if is_torch(basis.codes):
        from lowtide import ops

        return ops.dequantize_group(basis.codes, basis.scale, basis.zero, bits=bits, group=group, cols=cols)
    out = np.empty((basis.codes.shape[0], cols), dtype=np.float32)
    _core.dequantize_group(basis.codes, basis.scale, basis.zero, out, bits, group)
    return out
