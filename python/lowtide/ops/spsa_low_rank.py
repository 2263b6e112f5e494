# SPDX-License-Identifier: Apache-2.0
"""Directions of low rank: z = U V^T / sqrt(rank) (LOZO, arXiv 2410.07698)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops.spsa_replay import check_schedule

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MOST_RANK = 8


def _check_matrix(w: Tensor, name: str) -> None:
    if not isinstance(w, Tensor) or w.dtype not in _FLOATS:
        got = w.dtype if isinstance(w, Tensor) else type(w).__name__
        raise LowtideTypeError(f"{name} must be float32, bfloat16 or float16, got {got}")
    if w.dim() < 2:
        raise LowtideValueError(
            f"{name} must have at least two dimensions, got shape {tuple(w.shape)}; vectors take dense directions"
        )
    if not w.is_contiguous():
        raise LowtideValueError(f"{name} must be contiguous, got strides {w.stride()}; pass .contiguous()")


def _check_numbers(scale: float, rank: int, param: int, first_row: int) -> None:
    if not math.isfinite(scale):
        raise LowtideValueError(f"scale must be finite, got {scale!r}")
    if not 1 <= rank <= MOST_RANK:
        raise LowtideValueError(f"rank must be in 1 .. {MOST_RANK}, got {rank!r}")
    check_uint(param, "param", 32)
    check_uint(first_row, "first_row", 48)


def spsa_low_rank_perturb(
    out: Tensor,
    w: Tensor,
    scale: float,
    seed: int,
    step: int,
    v_step: int,
    slot: int,
    param: int,
    rank: int,
    first_row: int = 0,
) -> None:
    """``out = w + scale * z``: product and sum rounded to float32, the result to out's dtype, nearest even.

    The matrix is the first dimension by all others. z[i, j] is an fma chain over k of U[i, k] V[j, k], from 0, times
    float32(1 / sqrt(rank)). U (rows, rank) is Gaussian, drawn at (seed, step, slot, param, role u); V (cols, rank) at
    (seed, v_step, slot, param, role v).

    Args:
        out: float32, bfloat16 or float16 CPU tensor of w's shape, contiguous; may be w. w: of any of these types.
        v_step: step at which V was drawn last; LOZO keeps it for 50 to 100 steps.
        rank: 1 .. 8.
        first_row: for shards of whole rows: where they begin in the whole matrix.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    _check_matrix(out, "out")
    _check_matrix(w, "w")
    if out.shape != w.shape:
        raise LowtideValueError(f"out must have w's shape {tuple(w.shape)}, got {tuple(out.shape)}")
    _check_numbers(scale, rank, param, first_row)
    for value, name in ((seed, "seed"), (step, "step"), (v_step, "v_step")):
        check_uint(value, name, 63)
    check_uint(slot, "slot", 32)
    check_mutable((out,), "out")
    if out.data_ptr() == w.data_ptr() and out.dtype != w.dtype:
        raise LowtideValueError("out may share w's memory only if it has w's dtype")
    _op.spsa_low_rank_perturb(out, w.detach(), scale, seed, step, v_step, slot, param, rank, first_row)
    mutated(out)


def spsa_low_rank_replay_(
    w: Tensor,
    scale: float,
    seed: int,
    param: int,
    rank: int,
    round_steps: Tensor,
    decays: Tensor,
    first: Tensor,
    dir_steps: Tensor,
    v_steps: Tensor,
    dir_slots: Tensor,
    coeffs: Tensor,
    first_row: int = 0,
) -> None:
    """Take a matrix through T steps along directions of low rank, as :func:`lowtide.ops.spsa_replay_list_` does along dense ones.

    Direction j is that of :func:`spsa_low_rank_perturb` with ``step = dir_steps[j]``, ``v_step = v_steps[j]``. No mask, no floor.

    Args:
        w: float32, bfloat16 or float16 CPU tensor with at least two dimensions, contiguous; changed in place.
        scale: factor of its directions. rank, param, first_row: as :func:`spsa_low_rank_perturb`.
        round_steps, decays, first, dir_steps, dir_slots, coeffs: the schedule. v_steps: int64 [D].

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    _check_matrix(w, "w")
    _check_numbers(scale, rank, param, first_row)
    rounds, decay, starts, dirs, slots, cs = check_schedule(
        (round_steps, decays, first, dir_steps, dir_slots, coeffs), seed, 1
    )
    if not isinstance(v_steps, Tensor) or v_steps.dtype != torch.int64 or v_steps.shape != cs.shape:
        raise LowtideValueError(f"v_steps must be a 1-D int64 tensor of {cs.numel()} elements, as coeffs")
    check_mutable((w,), "w")
    _op.spsa_low_rank_replay_(
        w, scale, seed, param, rank, rounds, decay, starts, dirs, v_steps.contiguous(), slots, cs, first_row
    )
    mutated(w)


@fake("lowtide::spsa_low_rank_perturb")
def _(out: Tensor, *_: object) -> None: ...


@fake("lowtide::spsa_low_rank_replay_")
def _(w: Tensor, *_: object) -> None: ...
