# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt against a Krylov basis in float32, bfloat16 or INT8, and the three-term step of Lanczos.

Vectors are contiguous float32 CPU tensors. Sums are double over tiles of 1024; no bit depends on the instruction set
or the threads. Every function raises LowtideValueError or LowtideTypeError that names a bad argument, before anything is
changed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops._cuda import native

_op = torch.ops.lowtide
_GROUP = 256


def curvature_project_(
    w: Tensor, basis: Tensor, scale: Tensor | None = None, *, again: float = 1e-4
) -> tuple[Tensor, float, float, int]:
    """``w -= Q' (Q w)`` for the rows of ``basis``, and a second time where that left more than ``again`` times the norm
    of ``w`` along the basis. The basis is read twice, or three times.

    Args:
        w: float32 ``(n,)``, apart from the basis.
        basis: ``(m, n)``, float32 or bfloat16, or uint8 codes with the value ``(code - 128) * scale``.
        scale: of uint8 codes: float32 ``(m, ceil(n / 256))``, one for each group of 256 in a row.
        again: 1e-4 keeps the basis orthogonal to that, far below the square root of float32's eps at which Ritz values
            would start to suffer (Simon 1984); 0 subtracts twice, inf once.

    Returns:
        The coefficients ``Q w``, both passes together, float64 ``(m,)``; the norms of ``w`` before and after; how many
        times it was subtracted.
    """
    _vector("w", w, None)
    if not isinstance(basis, Tensor) or basis.dtype not in (torch.float32, torch.bfloat16, torch.uint8):
        got = basis.dtype if isinstance(basis, Tensor) else type(basis).__name__
        raise LowtideTypeError(f"basis must be a float32, bfloat16 or uint8 tensor, got {got}")
    if basis.dim() != 2 or basis.shape[1] != w.numel() or not basis.is_contiguous():
        raise LowtideValueError(
            f"basis must be contiguous with rows of {w.numel()} numbers, as many as w has, got {tuple(basis.shape)}"
        )
    if (basis.dtype == torch.uint8) != (scale is not None):
        raise LowtideValueError("scale comes with a uint8 basis, and only with that")
    if scale is not None:
        shape = (basis.shape[0], (w.numel() + _GROUP - 1) // _GROUP)
        if scale.dtype != torch.float32 or tuple(scale.shape) != shape or not scale.is_contiguous():
            raise LowtideValueError(
                f"scale must be contiguous float32 of shape {shape}, got {scale.dtype} {tuple(scale.shape)}"
            )
    if not again >= 0:
        raise LowtideValueError(f"again must be a number >= 0, got {again!r}")
    check_mutable((w,), "w")
    result: Tensor = _op.curvature_project_(w, basis.detach(), scale, float(again))
    mutated(w)
    before, after, _, passes = result[-4:].tolist()
    return result[:-4], math.sqrt(before), math.sqrt(after), int(passes)


def curvature_lanczos_step_(
    w: Tensor, q: Tensor, previous: Tensor | None = None, beta: float = 0.0
) -> tuple[float, float]:
    """``w -= beta previous``; ``alpha = <w, q>``; ``w -= alpha q``: two passes.

    Args:
        w: float32 ``(n,)``: the product with ``q``; apart from the others.
        q: float32 of the same size, the Lanczos vector.
        previous: the one before it, if there is one.
        beta: what joined the two.

    Returns:
        ``alpha``, and the norm of the new ``w``.
    """
    _vector("w", w, None)
    _vector("q", q, w)
    if previous is not None:
        _vector("previous", previous, w)
    check_mutable((w,), "w")
    result: Tensor = _op.curvature_lanczos_step_(w, q, previous, float(beta))
    mutated(w)
    alpha, norm2 = result.tolist()
    return alpha, math.sqrt(norm2)


def _vector(name: str, x: Tensor, like: Tensor | None) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or not native(x.device):
        got = f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
        raise LowtideTypeError(f"{name} must be a float32 CPU tensor, got {got}")
    if not x.is_contiguous() or (like is not None and x.numel() != like.numel()):
        wanted = "" if like is None else f" and have {like.numel()} elements, as many as w"
        raise LowtideValueError(f"{name} must be contiguous{wanted}, got {tuple(x.shape)}")


@fake("lowtide::curvature_project_")
def _(w: Tensor, basis: Tensor, scale: Tensor | None, again: float) -> Tensor:
    return w.new_empty((basis.shape[0] + 4,), dtype=torch.float64)


@fake("lowtide::curvature_lanczos_step_")
def _(w: Tensor, q: Tensor, previous: Tensor | None, beta: float) -> Tensor:
    return w.new_empty((2,), dtype=torch.float64)
