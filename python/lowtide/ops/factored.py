# SPDX-License-Identifier: Apache-2.0
"""Ops of the optim family on whole matrices: second moments by row and column, products of rows.

A matrix is a contiguous tensor and a number of rows that divides its elements. Sums are taken in double in one order, so
results have the same bits for every instruction set and thread count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16)


def _check(name: str, t: Tensor, numel: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    if t.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise LowtideTypeError(f"{name} must be {wanted}, got {t.dtype}")
    if t.numel() != numel:
        raise LowtideValueError(f"{name} must have {numel} elements, got {t.numel()}")
    if not t.is_contiguous():
        raise LowtideValueError(f"{name} must be contiguous, got strides {t.stride()}; pass .contiguous()")


def _check_rows(rows: int, numel: int, name: str) -> None:
    if rows < 0 or (numel % rows if rows else numel):
        raise LowtideValueError(f"{name} has {numel} elements, which {rows} rows do not divide")


def _scalars(**values: float) -> None:
    for name, x in values.items():
        if not (math.isfinite(x) and x >= 0.0):
            raise LowtideValueError(f"{name} must be a finite number >= 0, got {x!r}")
        if name == "beta2" and x > 1.0:
            raise LowtideValueError(f"beta2 must be in [0, 1], got {x!r}")


def adafactor_(
    u: Tensor,
    g: Tensor | None,
    row: Tensor,
    col: Tensor,
    *,
    beta2: float,
    eps: float = 1e-30,
    least: float = 0.0,
    mean_least: float = 0.0,
    threshold: float = 1.0,
) -> Tensor:
    """Overwrite ``u`` by Adafactor's direction (Shazeer and Stern, ICML 2018, algorithm 4) and advance its second moments::

        row = beta2 row + (1 - beta2) mean of (g^2 + eps) over the row, col likewise
        u = g / sqrt(max(row col / max(mean(row), mean_least), least))
        u = u / max(1, rms(u) / threshold)

    Args:
        u: float32, contiguous. g: the gradient, float32 or bfloat16, as many elements; None: it is in ``u``.
        row: float32, one element a row. col: float32, one a column; empty: each row has a second moment of its own, of the
            whole row (the rule for vectors, as matrices of one column).

    Returns:
        int64 tensor with no dimensions: 1 if a second moment would not be finite; then ``u`` is zero and nothing else changed.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    g = g if g is None or g.is_contiguous() else g.contiguous()
    _check("u", u, u.numel())
    _check("row", row, row.numel())
    _check_rows(row.numel(), u.numel(), "u")
    _check("col", col, u.numel() // row.numel() if col.numel() and row.numel() else 0)
    if g is not None:
        _check("g", g, u.numel(), _FLOATS)
    _scalars(beta2=beta2, eps=eps, least=least, mean_least=mean_least)
    if not threshold > 0.0:
        raise LowtideValueError(f"threshold must be > 0, got {threshold!r}")
    check_mutable([u], "u")
    skipped: Tensor = _op.adafactor_(u, g, row, col, beta2, eps, least, mean_least, threshold)
    mutated(u, row, col)
    return skipped


def block_adam_(
    factor: Tensor, g: Tensor, v: Tensor, *, beta2: float, a: float, s: float, eps: float
) -> Tensor:
    """Adam-mini's second moments (Zhang et al., ICLR 2025, arXiv 2406.16793, algorithm 2), one a row of ``g``::

        v = beta2 v + (1 - beta2) mean(g^2),    factor = a / (sqrt(v) s + eps)

    Args:
        factor, v: float32, one element a row. g: float32 or bfloat16.

    Returns:
        int64 tensor with no dimensions: 1 if a moment would not be finite; then ``factor`` is zero and ``v`` as it was.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    g = g if g.is_contiguous() else g.contiguous()
    _check("v", v, v.numel())
    _check("factor", factor, v.numel())
    _check("g", g, g.numel(), _FLOATS)
    _check_rows(v.numel(), g.numel(), "g")
    _scalars(beta2=beta2, a=a, s=s, eps=eps)
    skipped: Tensor = _op.block_adam_(factor, g, v, beta2, a, s, eps)
    mutated(factor, v)
    return skipped


def row_dots(x: Tensor, y: Tensor, rows: int) -> Tensor:
    """Products of the rows of two matrices, float64, ``rows`` elements; x, y: float32 or bfloat16, as many elements each.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named.
    """
    x = x if x.is_contiguous() else x.contiguous()
    y = y if y.is_contiguous() else y.contiguous()
    _check("x", x, x.numel(), _FLOATS)
    _check("y", y, x.numel(), _FLOATS)
    _check_rows(rows, x.numel(), "x")
    dots: Tensor = _op.row_dots(x, y, rows)
    return dots


def shear_rows_(u: Tensor, c: Tensor, w: Tensor) -> None:
    """``u[i] = u[i] - c[i] w[i]`` for each row, in place; u, c: float32, w: float32 or bfloat16.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    w = w if w.is_contiguous() else w.contiguous()
    _check("u", u, u.numel())
    _check("c", c, c.numel())
    _check("w", w, u.numel(), _FLOATS)
    _check_rows(c.numel(), u.numel(), "u")
    check_mutable([u], "u")
    _op.shear_rows_(u, c, w)
    mutated(u)


def scale_rows_(u: Tensor, c: Tensor) -> None:
    """``u[i] = c[i] u[i]`` for each row, in place; float32.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    _check("u", u, u.numel())
    _check("c", c, c.numel())
    _check_rows(c.numel(), u.numel(), "u")
    check_mutable([u], "u")
    _op.scale_rows_(u, c)
    mutated(u)


@fake("lowtide::adafactor_")
@fake("lowtide::block_adam_")
def _(u: Tensor, *_: object) -> Tensor:
    return u.new_empty((), dtype=torch.int64)


@fake("lowtide::row_dots")
def _(x: Tensor, y: Tensor, rows: int) -> Tensor:
    return x.new_empty((rows,), dtype=torch.float64)


@fake("lowtide::shear_rows_")
def _(u: Tensor, *_: object) -> None: ...


@fake("lowtide::scale_rows_")
def _(u: Tensor, *_: object) -> None: ...
