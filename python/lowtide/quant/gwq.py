# SPDX-License-Identifier: Apache-2.0
"""GWQ: gradient-aware weight quantization (Shao et al. 2024, arXiv 2411.00850, section 3).

One backward pass over a calibration sample tells which weights matter: the 1 % with the largest gradients stay in
16 bit as a sparse side tensor, the rest is quantized in groups whose scales no longer see them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._dense_sparse import DenseSparse, check_matrix, split
from lowtide.quant._format import SCHEMES, check_format, choice
from lowtide.quant._model import _check, _layers
from lowtide.quant._outlier_linear import replace_layers_

__all__ = ["DenseSparse", "kth_largest", "quantize", "quantize_model_", "select"]

_CHUNK = 1 << 20


def _check_fraction(fraction: float) -> None:
    if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise LowtideValueError(f"fraction must be a number in [0, 1], got {fraction!r}")


def _chunks(grads: Sequence[Tensor]) -> list[Tensor]:
    return [c for g in grads for c in torch.split(g.detach().reshape(-1), _CHUNK)]


def _bits(chunk: Tensor) -> Tensor:
    return chunk.float().abs().view(torch.int32)


def _descend(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest element, and its rank (from 1) within the bin."""
    above = counts.flip(0).cumsum(0)
    i = int(torch.searchsorted(above, k))
    inside = k - (int(above[i - 1]) if i else 0)
    return counts.numel() - 1 - i, inside


def kth_largest(grads: Tensor | Sequence[Tensor], k: int) -> tuple[float, int]:
    """The k-th largest |g| over one or more tensors, exactly, by two histograms of float bits instead of a sort.

    Args:
        grads: floating point tensors, taken as float32; finite. k: 1 to the number of elements.

    Returns:
        (value, ties): the value, and how many elements equal to it belong to the k largest.
    """
    tensors = [grads] if isinstance(grads, Tensor) else list(grads)
    for g in tensors:
        check_matrix(g, "grads")
    total = sum(g.numel() for g in tensors)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= total:
        raise LowtideValueError(f"k must be an integer between 1 and {total}, got {k!r}")
    high = torch.zeros(1 << 15, dtype=torch.int64)
    for c in _chunks(tensors):
        high += torch.bincount(_bits(c) >> 16, minlength=1 << 15).cpu()
    top, rank = _descend(high, k)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for c in _chunks(tensors):
        bits = _bits(c)
        low += torch.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=1 << 16).cpu()
    bottom, ties = _descend(low, rank)
    pattern = torch.tensor((top << 16) | bottom, dtype=torch.int32)
    return float(pattern.view(torch.float32)), ties


def _masks(grads: Sequence[Tensor], fraction: float) -> list[Tensor]:
    k = math.floor(fraction * sum(g.numel() for g in grads))
    if k == 0:
        return [torch.zeros(g.shape, dtype=torch.bool, device=g.device) for g in grads]
    value, ties = kth_largest(grads, k)
    masks = []
    for g in grads:
        a = g.detach().float().abs()
        mask = a > value
        if ties:
            at = (a == value).reshape(-1).nonzero()[:ties, 0]
            mask.view(-1)[at] = True
            ties -= at.numel()
        masks.append(mask)
    return masks


def select(grad: Tensor, fraction: float = 0.01) -> Tensor:
    """The mask of the ``floor(fraction N)`` elements with the largest |grad|; among equals the first ones.

    Args:
        grad: floating point, any shape, finite. fraction: 0.01 is the paper's 99 % quantile.
    """
    _check_fraction(fraction)
    check_matrix(grad, "grad")
    return _masks([grad], fraction)[0]


def quantize(
    w: Tensor,
    grad: Tensor,
    *,
    bits: int = 4,
    group: int = 128,
    fraction: float = 0.01,
    scheme: str = "symmetric",
    value_dtype: torch.dtype | None = None,
) -> DenseSparse:
    """Quantize ``w`` in groups, with the ``fraction`` of largest |grad| kept aside in 16 bit.

    Args:
        w: float32, bfloat16 or float16, (..., cols). grad: dL/dw of a calibration sample, of the same shape; finite.
        bits, group, scheme: see :func:`lowtide.quant.quantize`; scales are those of the rest of each group.
        value_dtype: of the outliers, see :class:`DenseSparse`.

    >>> import torch, lowtide as lt
    >>> w, grad = torch.randn(64, 256), torch.randn(64, 256)
    >>> q = lt.quant.gwq.quantize(w, grad, group=128)
    >>> q.outliers, round(q.bits_per_weight, 2)
    (163, 4.7)
    """
    check_matrix(w)
    check_matrix(grad, "grad")
    if w.shape != grad.shape:
        raise LowtideValueError(f"grad must have the shape of w, {tuple(w.shape)}, got {tuple(grad.shape)}")
    return split(w, select(grad, fraction), bits=bits, group=group, scheme=scheme, value_dtype=value_dtype)


def quantize_model_(
    model: nn.Module,
    *,
    bits: int = 4,
    group: int = 128,
    fraction: float = 0.01,
    skip: Sequence[str] = ("lm_head",),
    scheme: str = "symmetric",
    scope: str = "layer",
    grads: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Replace the ``nn.Linear`` layers of ``model`` by :class:`lowtide.quant.OutlierLinear`, in place, for inference.

    Call it after ``loss.backward()`` on a calibration sample (the paper takes one): the gradients are read from
    ``layer.weight.grad``, and go with the dense weights.

    Args:
        model: any module. bits, group, scheme, fraction: see :func:`quantize`.
        skip: see :func:`lowtide.quant.quantize_model_`.
        scope: ``"layer"``: the fraction of each layer; ``"model"``: of all layers together, one threshold.
        grads: layer name -> gradient, to be used instead of ``.grad``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument or a missing gradient; the model is unchanged.
    """
    choice(scheme, "scheme", SCHEMES)
    choice(scope, "scope", ("layer", "model"))
    check_format(bits, group)
    _check_fraction(fraction)
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    places = _layers(model, [skip] if isinstance(skip, str) else list(skip))
    _check(model, places)
    found: list[Tensor] = []
    for at in places:
        layer, name = getattr(at[0][0], at[0][1]), at[0][2]
        g = layer.weight.grad if grads is None else next((grads[n] for _, _, n in at if n in grads), None)
        if not isinstance(g, Tensor) or g.shape != layer.weight.shape:
            raise LowtideValueError(
                f"{name}.weight has no gradient of its shape; call loss.backward() on a calibration sample first, "
                "with weights that require grad"
            )
        check_matrix(g, f"the gradient of {name}.weight")
        found.append(g)
    masks = _masks(found, fraction) if scope == "model" else [_masks([g], fraction)[0] for g in found]
    del found
    replace_layers_(places, masks, bits=bits, group=group, scheme=scheme)
    return model
