# SPDX-License-Identifier: Apache-2.0
"""Cross entropy's Hessian in the logits: native on float32 tensors of a CPU or, where its kernels are built, of CUDA, torch's operations on the others.

The torch forms record a graph and are used under autograd, too. z, u, q: (N, C); r: (N,) factors of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide import ops
from lowtide.ops._cuda import native

_PRODUCT = torch.ops.lowtide.curvature_ce_product_.default


def _native(*tensors: Tensor) -> bool:
    for t in tensors:
        if t.dtype != torch.float32 or not native(t.device) or (t.requires_grad and torch.is_grad_enabled()):
            return False
    return True


def _covariance(p: Tensor, u: Tensor, r: Tensor) -> Tensor:
    return p * (u - (p * u).sum(1, keepdim=True)) * r[:, None]


def product_rows(z: Tensor, u: Tensor, r: Tensor) -> Tensor:
    """``r p (u - E[u])``, (N, C)."""
    if _native(z, u, r):
        return ops.curvature_ce_product(z, u, r)
    return _covariance(torch.softmax(z, 1), u, r)


def product_rows_(u: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """:func:`product_rows` over contiguous ``u``, a temporary of the caller's; nothing is recorded, z and r are contiguous."""
    if _native(z, u, r):
        _PRODUCT(u, z, r)  # neither checks nor version: half of what a small head's product costs otherwise
        return u
    return u.copy_(_covariance(torch.softmax(z, 1), u, r))


def cumulant_rows(z: Tensor, u: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """``r p (v w - E[v w])`` with ``v = u - E[u]``, ``w = q - E[q]``, (N, C)."""
    if _native(z, u, q, r):
        return ops.curvature_ce_cumulant(z, u, q, r)
    p = torch.softmax(z, 1)
    v, w = (a - (p * a).sum(1, keepdim=True) for a in (u, q))
    return _covariance(p, v * w, r)


def diagonal_rows(z: Tensor, r: Tensor) -> Tensor:
    """``r p (1 - p)``, (N, C)."""
    if _native(z, r):
        return ops.curvature_ce_diagonal(z, r)
    p = torch.softmax(z, 1)
    return (p - p * p) * r[:, None]


def weighted_rows(z: Tensor, r: Tensor) -> Tensor:
    """``r p``, (N, C)."""
    if _native(z, r):
        return ops.curvature_ce_weighted(z, r)
    return torch.softmax(z, 1) * r[:, None]


def weighted_rows_(z: Tensor, r: Tensor) -> Tensor:
    """:func:`weighted_rows` over contiguous ``z``; nothing is recorded."""
    if _native(z, r):
        return ops.curvature_ce_weighted_(z, r)
    p = z.sub_(z.amax(1, keepdim=True)).exp_()
    return p.mul_((r / p.sum(1))[:, None])


def trace_rows(z: Tensor, r: Tensor) -> Tensor:
    """``r (1 - sum_c p^2)``, (N,)."""
    if _native(z, r):
        return ops.curvature_ce_trace(z, r)
    p = torch.softmax(z, 1)
    return (p - p * p).sum(1) * r
