# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a softmax head's Hessian in closed form.

Rows carry a factor ``r`` (a sample's weight over the sum of weights). With logits ``Z = X W' + b``, ``P = softmax(Z)`` and
``E[a] = sum_c P a`` of a row, the loss's Hessian in a row's logits is ``r (diag(p) - p p')``; its derivative along
directions u and q is the third cumulant, ``r p (u_c q_c - E[u_c q_c])`` of the centred ``u_c = u - E[u]``, ``q_c = q - E[q]``.
The backward passes below are made of that: a few matrix products, no graph retained. Under ``create_graph=True`` they are
recorded themselves and can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._logit_rows import cumulant_rows, diagonal_rows, product_rows


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight' + bias``, (N, C)."""
    return torch.nn.functional.linear(x, weight, bias)


class _SoftmaxProduct(torch.autograd.Function):
    """(H V) of a softmax head as (weight part, bias part); the backward pass is the gradient of <Q, H V>."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor, v_b: Tensor | None, r: Tensor
    ) -> tuple[Tensor, Tensor]:
        z = logits_of(x, weight, bias)
        u = logits_of(x, v, v_b)
        s = product_rows(z, u, r)
        ctx.save_for_backward(x, weight, bias, v, v_b, r, z, u, s)
        return s.T @ x, s.sum(0)

    @staticmethod
    def backward(ctx: Any, q: Tensor, q_b: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, v, v_b, r, z, u, s = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what forward computed has no graph
            z = logits_of(x, weight, bias)
            u = logits_of(x, v, v_b)
            s = product_rows(z, u, r)
        need_x, need_w, need_b, need_v, need_vb, _ = ctx.needs_input_grad
        q_rows = logits_of(x, q, q_b)
        s_bar = product_rows(z, q_rows, r)
        g_z = cumulant_rows(z, u, q_rows, r) if need_x or need_w or need_b else None
        g_x = s @ q + s_bar @ v + g_z @ weight if g_z is not None and need_x else None
        g_w = g_z.T @ x if g_z is not None and need_w else None
        g_b = g_z.sum(0) if g_z is not None and need_b else None
        return g_x, g_w, g_b, s_bar.T @ x if need_v else None, s_bar.sum(0) if need_vb else None, None


class _SoftmaxDiagonal(torch.autograd.Function):
    """diag(H) of a softmax head as (weight part, bias part)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, r: Tensor) -> tuple[Tensor, Tensor]:
        z = logits_of(x, weight, bias)
        h = diagonal_rows(z, r)
        ctx.save_for_backward(x, weight, bias, r, z, h)
        return h.T @ (x * x), h.sum(0)

    @staticmethod
    def backward(ctx: Any, q: Tensor, q_b: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, r, z, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            z = logits_of(x, weight, bias)
            h = diagonal_rows(z, r)
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        # d/dz of sum_c m_c p_c (1 - p_c), m the cotangent of a row's h: the covariance of p with m (1 - 2 p).
        m = logits_of(x * x, q, q_b)
        g_z = product_rows(z, (1 - 2 * torch.softmax(z, 1)) * m, r)
        g_x = g_z @ weight + 2 * x * (h @ q) if need_x else None
        return g_x, g_z.T @ x if need_w else None, g_z.sum(0) if need_b else None, None


def softmax_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor, v_b: Tensor | None, r: Tensor
) -> tuple[Tensor, Tensor]:
    """``H (v, v_b)`` of the softmax head, differentiable in x, weight, bias, v and v_b.

    Args:
        x: (N, D). weight, v: (C, D). bias, v_b: (C,) or None. r: (N,), not differentiated.

    Returns:
        The weight part (C, D) and the bias part (C,); the latter is computed without a bias, too.
    """
    return _SoftmaxProduct.apply(x, weight, bias, v, v_b, r)  # type: ignore[no-any-return, no-untyped-call]


def softmax_diagonal(x: Tensor, weight: Tensor, bias: Tensor | None, r: Tensor) -> tuple[Tensor, Tensor]:
    """``diag(H)`` of the softmax head, (C, D) and (C,), differentiable in x, weight and bias."""
    return _SoftmaxDiagonal.apply(x, weight, bias, r)  # type: ignore[no-any-return, no-untyped-call]
