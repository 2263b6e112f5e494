# SPDX-License-Identifier: Apache-2.0
"""Mean cross entropy of a large output matrix, its derivatives and curvature products; the logits are never whole.

For N rows and V classes the logits are N x V numbers: 10 GB in float32 for 16 sequences of 4096 tokens and 40 000 classes, and
their gradient as much again. Here they exist for ``chunk`` rows at a time and are computed again when they are needed.

With ``R = r (P - Y)`` and a direction (dh, dW), ``dZ = dh W' + h dW'`` and ``dR = r (P dZ - P E[dZ])``:

- Gauss-Newton product: ``(dR W, dR' h)``
- Hessian product in (h, W): ``(dR W + R dW, dR' h + R' dh)``
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowtide.curvature._logit_rows import product_rows_, weighted_rows_
from lowtide.errors import LowtideTypeError, LowtideValueError

_CHUNK_NUMBERS = 1 << 24  # logits at a time: 64 MiB in float32


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    causal: bool = False,
    ignore_index: int = -100,
    chunk: int | None = None,
) -> Tensor:
    """``torch.nn.functional.cross_entropy(hidden @ weight.T, labels)`` without the logits in memory.

    Differentiable in ``hidden`` and ``weight``, twice by reverse mode, and by forward over reverse.

    Args:
        hidden: (..., D), floating point.
        weight: (V, D), of hidden's dtype; may be tied to an embedding.
        labels: (...), integer classes.
        causal: position t predicts label t + 1, as in language models: ``hidden`` is (..., T, D), ``labels`` (..., T); the last
            position of each sequence predicts nothing.
        ignore_index: label of positions that do not count.
        chunk: rows of logits at a time; as many as make 64 MiB in float32 if left out. Memory beyond the gradients is about
            four times ``chunk * V`` numbers.

    Returns:
        The mean over the positions that count, float32 (float64 for float64 input), no dimensions.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named; no position counts.
    """
    h, y = _rows(hidden, weight, labels, causal)
    scale = _scale(y, weight.shape[0], ignore_index)
    loss: Tensor = _LinearCE.apply(h, weight, y, scale, _chunk_rows(chunk, weight.shape[0]))  # type: ignore[no-untyped-call]
    return loss


def ggn(
    hidden: Tensor,
    weight: Tensor,
    rhidden: Tensor | None,
    rweight: Tensor | None,
    labels: Tensor,
    *,
    causal: bool = False,
    ignore_index: int = -100,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss's Gauss-Newton matrix (in the logits) times a direction, up to where the model takes over.

    Args:
        hidden, weight, labels, causal, ignore_index, chunk: as in :func:`linear_cross_entropy`.
        rhidden: like hidden, the tangent of ``hidden``; None for zero.
        rweight: like weight, the tangent of ``weight``; None for zero.

    Returns:
        Cotangents of ``hidden`` and of ``weight``, in their shapes; propagated back through the model they give ``G v``.
    """
    h, y = _rows(hidden, weight, labels, causal)
    scale = _scale(y, weight.shape[0], ignore_index)
    rh = None if rhidden is None else _shifted(rhidden, causal)
    g_h, g_w = _products(h, weight, y, scale, rh, rweight, _chunk_rows(chunk, weight.shape[0]), full=False)
    if not causal:
        return g_h.view(hidden.shape), g_w
    out = hidden.new_zeros(hidden.shape)
    out[..., :-1, :] = g_h.view(*hidden.shape[:-2], hidden.shape[-2] - 1, hidden.shape[-1])
    return out, g_w


def _shifted(hidden: Tensor, causal: bool) -> Tensor:
    h = hidden[..., :-1, :] if causal else hidden
    return h.reshape(-1, hidden.shape[-1])


def _rows(hidden: Tensor, weight: Tensor, labels: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise LowtideTypeError(
            f"hidden and weight must have one floating dtype, got {hidden.dtype} and {weight.dtype}"
        )
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise LowtideValueError(
            f"hidden must be (..., D) and weight (V, D) with one D, got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if labels.shape != hidden.shape[:-1] or labels.is_floating_point():
        raise LowtideValueError(
            f"labels must be integers of shape {tuple(hidden.shape[:-1])}, got {tuple(labels.shape)} of {labels.dtype}"
        )
    if causal and (hidden.dim() < 2 or hidden.shape[-2] < 2):
        raise LowtideValueError(
            f"causal needs hidden of shape (..., T, D) with T of 2 or more, got {tuple(hidden.shape)}"
        )
    return _shifted(hidden, causal), (labels[..., 1:] if causal else labels).reshape(-1).long()


def _chunk_rows(chunk: int | None, classes: int) -> int:
    if chunk is None:
        return max(16, _CHUNK_NUMBERS // max(classes, 1))
    if chunk < 1:
        raise LowtideValueError(f"chunk must be 1 or more rows, got {chunk}")
    return chunk


def _scale(y: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(N,) float64: what each row's term is multiplied by; 0 where it does not count."""
    counted = y != ignore_index
    inside = (y >= 0) & (y < classes)
    if bool((counted & ~inside).any()):
        raise LowtideValueError(
            f"labels must lie in [0, {classes}) or be ignore_index={ignore_index}, "
            f"got values from {int(y.min())} to {int(y.max())}"
        )
    number = int(counted.sum())
    if number == 0:
        raise LowtideValueError("labels: no position counts, so the mean loss does not exist")
    return counted.double() / number


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _chunks(
    h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Slice, logits (chunk, V), classes (0 where ignored), row factors; in float32 or float64."""
    for begin in range(0, len(h), chunk):
        rows = slice(begin, min(begin + chunk, len(h)))
        r = scale[rows].to(_wide(h))
        yield rows, (h[rows] @ weight.T).to(_wide(h)), torch.where(r > 0, y[rows], 0), r


def _value(h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, chunk: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=h.device)
    for _, z, cls, r in _chunks(h, weight, y, scale, chunk):
        picked = z.gather(1, cls[:, None])[:, 0]
        terms = torch.logsumexp(z, 1).double() - picked.double()
        total += torch.where(r > 0, terms * r.double(), 0.0).sum()
    return total.to(_wide(h))


def _errors_(z: Tensor, cls: Tensor, r: Tensor) -> Tensor:
    """``r (P - Y)``, written over z."""
    return weighted_rows_(z, r).scatter_add_(1, cls[:, None], -r[:, None])


def _gradient(h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    g_h = torch.empty_like(h)
    g_w = torch.zeros_like(weight, dtype=_wide(h))
    for rows, z, cls, r in _chunks(h, weight, y, scale, chunk):
        delta = _errors_(z, cls, r)
        g_h[rows] = delta.to(h.dtype) @ weight
        g_w.addmm_(delta.T, h[rows].to(_wide(h)))
    return g_h, g_w.to(weight.dtype)


def _products(
    h: Tensor,
    weight: Tensor,
    y: Tensor,
    scale: Tensor,
    rh: Tensor | None,
    rw: Tensor | None,
    chunk: int,
    *,
    full: bool,
) -> tuple[Tensor, Tensor]:
    """Hessian (full) or Gauss-Newton product with (rh, rw), chunk by chunk."""
    g_h = torch.zeros_like(h)
    g_w = torch.zeros_like(weight, dtype=_wide(h))
    for rows, z, cls, r in _chunks(h, weight, y, scale, chunk):
        part = h[rows]
        u = torch.zeros_like(z)
        if rh is not None:
            u += rh[rows] @ weight.T
        if rw is not None:
            u += part @ rw.T
        d = product_rows_(u, z, r)
        g_h[rows] = d.to(h.dtype) @ weight
        g_w.addmm_(d.T, part.to(d.dtype))
        if not full:
            continue
        delta = _errors_(z, cls, r)
        if rw is not None:
            g_h[rows] += delta.to(h.dtype) @ rw
        if rh is not None:
            g_w.addmm_(delta.T, rh[rows].to(d.dtype))
    return g_h, g_w.to(weight.dtype)


class _LinearCE(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, chunk: int) -> Tensor:
        return _value(h, weight, y, scale, chunk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, weight, y, scale, ctx.chunk = inputs
        ctx.save_for_backward(h, weight, y, scale)
        ctx.save_for_forward(h, weight, y, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, y, scale = ctx.saved_tensors
        g_h, g_w = _LinearCEGradient.apply(h, weight, y, scale, ctx.chunk)  # type: ignore[no-untyped-call]
        return g_h * g.to(h.dtype), g_w * g.to(weight.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, t_h: Tensor | None, t_w: Tensor | None, *_: Any) -> Tensor:
        h, weight, y, scale = ctx.saved_tensors
        g_h, g_w = _LinearCEGradient.apply(h, weight, y, scale, ctx.chunk)  # type: ignore[no-untyped-call]
        out = torch.zeros((), dtype=_wide(h), device=h.device)
        if t_h is not None:
            out = out + (g_h * t_h).sum()
        return out if t_w is None else out + (g_w * t_w).sum()


class _LinearCEGradient(torch.autograd.Function):
    """The gradient as a function of its own: its derivative is the Hessian, so both modes are one product."""

    @staticmethod
    def forward(h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        return _gradient(h, weight, y, scale, chunk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        h, weight, y, scale, ctx.chunk = inputs
        ctx.save_for_backward(h, weight, y, scale)
        ctx.save_for_forward(h, weight, y, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q_h: Tensor, q_w: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, y, scale = ctx.saved_tensors
        return *_products(h, weight, y, scale, q_h, q_w, ctx.chunk, full=True), None, None, None

    @staticmethod
    def jvp(ctx: Any, t_h: Tensor | None, t_w: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
        h, weight, y, scale = ctx.saved_tensors
        return _products(h, weight, y, scale, t_h, t_w, ctx.chunk, full=True)
