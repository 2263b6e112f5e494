# SPDX-License-Identifier: Apache-2.0
"""The Hessian of cross entropy in the logits, row by row, straight from the logits.

``p = softmax(z)`` of a row, ``r`` its factor (sample weight over the sum of weights), ``E[a] = sum_c p a``. One pass reads what
the sums need, a second one writes; the bits are the same for every instruction set and thread count. A logit of -inf has
``p = 0`` exactly; a row with a NaN, with +inf, or with -inf only, becomes NaN. No op has an autograd formula: the closed forms
of ``lowtide.curvature`` are built on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated

_op = torch.ops.lowtide


def _check(z: Tensor, r: Tensor, **others: Tensor) -> None:
    for name, t in {"z": z, "r": r, **others}.items():
        if not isinstance(t, Tensor) or t.dtype != torch.float32:
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise LowtideTypeError(f"{name} must be a float32 tensor, got {got}")
    if z.dim() != 2:
        raise LowtideValueError(f"z must have two dimensions, rows and classes, got shape {tuple(z.shape)}")
    if r.shape != z.shape[:1]:
        raise LowtideValueError(
            f"r must have shape ({z.shape[0]},), one factor for each row, got {tuple(r.shape)}"
        )
    for name, t in others.items():
        if t.shape != z.shape:
            raise LowtideValueError(f"{name} must have z's shape {tuple(z.shape)}, got {tuple(t.shape)}")


def _plain(t: Tensor) -> Tensor:
    return t.detach().contiguous()


def _check_in_place(t: Tensor, name: str) -> None:
    check_mutable([t], name)
    if not t.is_contiguous():
        raise LowtideValueError(
            f"{name} is changed in place and must be contiguous; pass {name}.contiguous()"
        )


def curvature_ce_product(z: Tensor, u: Tensor, r: Tensor) -> Tensor:
    """``r p (u - E[u])``: the loss's Hessian in the logits times ``u``.

    Args:
        z: (N, C) logits, float32, CPU. Copied if not contiguous, as the others.
        u: (N, C) direction.
        r: (N,) factors of the rows.

    Returns:
        (N, C), float32.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.
    """
    _check(z, r, u=u)
    result: Tensor = _op.curvature_ce_product(_plain(z), _plain(u), _plain(r))
    return result


def curvature_ce_product_(u: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """:func:`curvature_ce_product`, written over ``u``, which must be contiguous; returns ``u``."""
    _check(z, r, u=u)
    _check_in_place(u, "u")
    _op.curvature_ce_product_(u.detach(), _plain(z), _plain(r))
    mutated(u)
    return u


def curvature_ce_cumulant(z: Tensor, u: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """``r p (v w - E[v w])`` with ``v = u - E[u]``, ``w = q - E[q]``: the gradient in the logits of ``<q, H u>``.

    Shapes, dtypes and errors as in :func:`curvature_ce_product`; q is (N, C).
    """
    _check(z, r, u=u, q=q)
    result: Tensor = _op.curvature_ce_cumulant(_plain(z), _plain(u), _plain(q), _plain(r))
    return result


def curvature_ce_diagonal(z: Tensor, r: Tensor) -> Tensor:
    """``r p (1 - p)``, (N, C): the Hessian's diagonal. Its error is that of a float beside 1, as p comes near 1.

    Shapes, dtypes and errors as in :func:`curvature_ce_product`.
    """
    _check(z, r)
    result: Tensor = _op.curvature_ce_diagonal(_plain(z), _plain(r))
    return result


def curvature_ce_weighted(z: Tensor, r: Tensor) -> Tensor:
    """``r p``, (N, C): softmax with a factor a row; the gradient once the targets are subtracted.

    Shapes, dtypes and errors as in :func:`curvature_ce_product`.
    """
    _check(z, r)
    result: Tensor = _op.curvature_ce_weighted(_plain(z), _plain(r))
    return result


def curvature_ce_weighted_(z: Tensor, r: Tensor) -> Tensor:
    """:func:`curvature_ce_weighted`, written over ``z``, which must be contiguous; returns ``z``."""
    _check(z, r)
    _check_in_place(z, "z")
    _op.curvature_ce_weighted_(z.detach(), _plain(r))
    mutated(z)
    return z


def curvature_ce_trace(z: Tensor, r: Tensor) -> Tensor:
    """``r (1 - sum_c p^2)``, (N,): the trace of each row's Hessian, 0 or more for r >= 0.

    Shapes, dtypes and errors as in :func:`curvature_ce_product`.
    """
    _check(z, r)
    result: Tensor = _op.curvature_ce_trace(_plain(z), _plain(r))
    return result


@fake("lowtide::curvature_ce_product")
def _(z: Tensor, u: Tensor, r: Tensor) -> Tensor:
    return z.new_empty(z.shape)


@fake("lowtide::curvature_ce_product_")
def _(u: Tensor, z: Tensor, r: Tensor) -> None:
    return None


@fake("lowtide::curvature_ce_cumulant")
def _(z: Tensor, u: Tensor, q: Tensor, r: Tensor) -> Tensor:
    return z.new_empty(z.shape)


@fake("lowtide::curvature_ce_diagonal")
def _(z: Tensor, r: Tensor) -> Tensor:
    return z.new_empty(z.shape)


@fake("lowtide::curvature_ce_weighted")
def _(z: Tensor, r: Tensor) -> Tensor:
    return z.new_empty(z.shape)


@fake("lowtide::curvature_ce_weighted_")
def _(z: Tensor, r: Tensor) -> None:
    return None


@fake("lowtide::curvature_ce_trace")
def _(z: Tensor, r: Tensor) -> Tensor:
    return z.new_empty((z.shape[0],))
