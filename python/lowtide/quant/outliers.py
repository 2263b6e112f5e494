# SPDX-License-Identifier: Apache-2.0
"""Outlier-safe groups: large values leave their group where that pays for the bits they take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._dense_sparse import DenseSparse, check_matrix, groups_of, split
from lowtide.quant._format import SCHEMES, check_format, choice
from lowtide.quant._model import _check, _layers
from lowtide.quant._outlier_linear import replace_layers_

__all__ = ["DenseSparse", "quantize", "quantize_model_", "select"]

#: Stored bits of an outlier: its value and its column.
_COST = 16 + 16


def select(w: Tensor, group: int = 128, *, limit: int | None = None) -> Tensor:
    """The mask of the values that are better kept aside.

    The rule: let ``a_1 >= a_2 >= ...`` be the magnitudes of a group of G. Without its k largest, the range of the
    group shrinks by ``a_1 / a_(k+1)``, which is worth ``log2(a_1 / a_(k+1))`` bits to each of the G - k others, and
    costs 32 bits for each value aside. So the k that maximizes ::

        (G - k) log2(a_1 / a_(k+1)) - 32 k

    is taken, 0 if nothing is positive. Of normal weights in groups of 128, 0.2 % go: one in every fourth group.

    Args:
        w: floating point, (..., cols), finite. group: columns that share a scale.
        limit: most values to take from a group; default ``group // 16``.

    Returns:
        bool of the shape of ``w``.
    """
    check_matrix(w)
    check_format(4, group)
    if limit is None:
        limit = group // 16
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < group:
        raise LowtideValueError(f"limit must be an integer in [0, {group}), got {limit!r}")
    cols = w.shape[-1]
    flat = w.detach().reshape(math.prod(w.shape[:-1]), cols)
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=w.device)
    rows = max(1, (1 << 20) // max(1, cols))  # bounds the copies
    for part, out in zip(torch.split(flat, rows), torch.split(mask, rows), strict=True):
        if not part.numel():
            continue
        magnitudes = groups_of(part.float().abs(), group)
        sizes = torch.full((magnitudes.shape[1], 1), group, device=w.device)
        sizes[-1] = cols - group * (magnitudes.shape[1] - 1)
        top, index = magnitudes.topk(min(limit + 1, group), dim=-1)
        k = torch.arange(top.shape[-1], device=w.device)
        # A rest of zeros needs no range at all; the floor keeps its gain finite.
        shrink = top[..., :1].clamp_min(torch.finfo(torch.float32).tiny) / top.clamp_min(
            torch.finfo(torch.float32).tiny
        )
        gain = (sizes - k).clamp_min(0) * torch.log2(shrink) - _COST * k
        best, count = gain.max(-1)
        count = torch.where(best > 0, count, 0)
        aside = torch.zeros(magnitudes.shape, dtype=torch.bool, device=w.device)
        aside.scatter_(-1, index, k < count[..., None])
        out.copy_(aside.reshape(part.shape[0], -1)[:, :cols])
    return mask.view(w.shape)


def quantize(
    w: Tensor,
    *,
    bits: int = 4,
    group: int = 128,
    scheme: str = "symmetric",
    limit: int | None = None,
    value_dtype: torch.dtype | None = None,
) -> DenseSparse:
    """Quantize ``w`` in groups, with the outliers that :func:`select` finds kept aside in 16 bit.

    Args:
        w: float32, bfloat16 or float16, (..., cols), finite.
        bits, group, scheme: see :func:`lowtide.quant.quantize`. limit: see :func:`select`.
        value_dtype: of the outliers, see :class:`DenseSparse`.

    >>> import torch, lowtide as lt
    >>> w = torch.ones(1, 128)
    >>> w[0, 5] = 100.0
    >>> q = lt.quant.outliers.quantize(w)
    >>> q.outliers, float((q.dequantize() - w).abs().max())
    (1, 0.0)
    """
    return split(
        w, select(w, group, limit=limit), bits=bits, group=group, scheme=scheme, value_dtype=value_dtype
    )


def quantize_model_(
    model: nn.Module,
    *,
    bits: int = 4,
    group: int = 128,
    skip: Sequence[str] = ("lm_head",),
    scheme: str = "symmetric",
    limit: int | None = None,
) -> nn.Module:
    """Replace the ``nn.Linear`` layers of ``model`` by :class:`lowtide.quant.OutlierLinear`, in place, for inference.

    Args:
        model: any module. bits, group, scheme, limit: see :func:`quantize`.
        skip: see :func:`lowtide.quant.quantize_model_`.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument; the model is unchanged.
    """
    choice(scheme, "scheme", SCHEMES)
    check_format(bits, group)
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    places = _layers(model, [skip] if isinstance(skip, str) else list(skip))
    _check(model, places)
    masks = [select(getattr(at[0][0], at[0][1]).weight, group, limit=limit) for at in places]
    replace_layers_(places, masks, bits=bits, group=group, scheme=scheme)
    return model
