# SPDX-License-Identifier: Apache-2.0
"""Weights moved along a random direction: ``out = w + scale z``.

``scale`` is rounded to float32, the product and the sum each to float32, the result to the dtype of ``out`` (nearest
even). z is element ``offset + i`` of the stream (seed, step, slot, param) of role z; ``dist`` is a number of
:data:`lowtide.random.DISTS`. Where ``|w| > threshold`` the weight goes through as it is (Sparse-MeZO, arXiv 2402.15751,
section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops._spsa_arguments import check_address, check_perturbation, check_weights

_op = torch.ops.lowtide


def spsa_perturb(
    out: Tensor,
    w: Tensor,
    scale: float,
    seed: int,
    step: int,
    slot: int,
    param: int,
    offset: int = 0,
    dist: int = 0,
    threshold: float = math.inf,
) -> None:
    """``out = w + scale z``; ``out`` may be ``w`` itself.

    Args:
        out, w: contiguous float32, bfloat16 or float16 CPU tensors with equally many elements, any shapes.
        scale: sigma times epsilon. threshold: largest ``|w|`` that moves.
        seed, step: 63 bits; slot, param: 32 bits; offset: global index of the first element; dist: number of
            the distribution.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named; nothing was changed.
    """
    check_weights("w", w)
    check_weights("out", out, w.numel())
    check_perturbation(scale, threshold, dist)
    check_address(seed, step, slot, param, offset)
    check_mutable((out,), "out")
    if out is w:
        _op.spsa_perturb_(w, scale, seed, step, slot, param, offset, dist, threshold)
    else:
        _op.spsa_perturb(out, w.detach(), scale, seed, step, slot, param, offset, dist, threshold)
    mutated(out)


def spsa_perturb_pair(
    plus: Tensor,
    minus: Tensor,
    w: Tensor,
    scale: float,
    seed: int,
    step: int,
    slot: int,
    param: int,
    offset: int = 0,
    dist: int = 0,
    threshold: float = math.inf,
) -> None:
    """``plus = w + scale z`` and ``minus = w - scale z`` from one reading of w and one z.

    Args:
        plus, minus: tensors of one dtype, apart from each other and from w. Others: see :func:`spsa_perturb`.
    """
    check_weights("w", w)
    check_weights("plus", plus, w.numel())
    check_weights("minus", minus, w.numel())
    if plus.dtype != minus.dtype:
        raise LowtideTypeError(f"minus must have plus's dtype {plus.dtype}, got {minus.dtype}")
    check_perturbation(scale, threshold, dist)
    check_address(seed, step, slot, param, offset)
    check_mutable((plus, minus), "plus")
    _op.spsa_perturb_pair(plus, minus, w.detach(), scale, seed, step, slot, param, offset, dist, threshold)
    mutated(plus, minus)


def spsa_perturb_list(
    outs: Sequence[Tensor],
    ws: Sequence[Tensor],
    scales: Sequence[float],
    seed: int,
    step: int,
    slot: int,
    params: Sequence[int],
    dist: int = 0,
    thresholds: Sequence[float] | None = None,
    offsets: Sequence[int] | None = None,
) -> None:
    """:func:`spsa_perturb` of many tensors in one parallel region.

    Args:
        outs, ws: the tensors; each output is its own weight or lies apart from all of them.
        scales, params, thresholds, offsets: one for each tensor; no thresholds: no masks; no offsets: whole tensors.
    """
    n = len(ws)
    lists = {"outs": outs, "scales": scales, "params": params, "thresholds": thresholds, "offsets": offsets}
    for name, values in lists.items():
        if values is not None and len(values) != n:
            raise LowtideValueError(f"{name} must have as many entries as ws, {n}, got {len(values)}")
    limits = [math.inf] * n if thresholds is None else [float(t) for t in thresholds]
    starts = [0] * n if offsets is None else list(offsets)
    for i, (out, w) in enumerate(zip(outs, ws, strict=True)):
        check_weights(f"ws[{i}]", w)
        check_weights(f"outs[{i}]", out, w.numel())
        check_perturbation(scales[i], limits[i], dist)
        check_address(seed, step, slot, params[i], starts[i])
    check_mutable(outs, "outs")
    # The op for tensors that change in place has a schema of its own: w must not be an alias of out.
    for in_place in (False, True):
        at = [i for i in range(n) if (outs[i] is ws[i]) is in_place]
        if not at:
            continue
        tail = (
            [float(scales[i]) for i in at], seed, step, slot, [params[i] for i in at], dist,
            [limits[i] for i in at], [starts[i] for i in at],
        )  # fmt: skip
        if in_place:
            _op.spsa_perturb_list_([ws[i] for i in at], *tail)
        else:
            _op.spsa_perturb_list([outs[i] for i in at], [ws[i].detach() for i in at], *tail)
    mutated(*outs)


def _nothing(*_: object) -> None: ...


for _name in ("", "_", "_pair", "_list", "_list_"):
    fake(f"lowtide::spsa_perturb{_name}")(_nothing)
