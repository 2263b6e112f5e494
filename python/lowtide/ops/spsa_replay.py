# SPDX-License-Identifier: Apache-2.0
"""Zeroth-order updates: any number of steps along directions that are drawn again from their addresses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops.quant import _check_packed

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SCHEDULE = {
    "round_steps": torch.int64,
    "decays": torch.float32,
    "first": torch.int64,
    "dir_steps": torch.int64,
    "dir_slots": torch.int64,
    "coeffs": torch.float32,
}


def check_schedule(tensors: Sequence[Tensor], seed: int, dist: int) -> list[Tensor]:
    """Types and lengths of a schedule; its numbers are checked by the op, before anything is changed."""
    for (name, dtype), t in zip(_SCHEDULE.items(), tensors, strict=True):
        if not isinstance(t, Tensor) or t.dtype != dtype or t.dim() != 1:
            got = f"{t.dim()}-D {t.dtype}" if isinstance(t, Tensor) else type(t).__name__
            raise LowtideTypeError(
                f"{name} must be a 1-D {str(dtype).removeprefix('torch.')} tensor, got {got}"
            )
    round_steps, decays, first, dir_steps, dir_slots, coeffs = tensors
    steps, directions = decays.numel(), coeffs.numel()
    if round_steps.numel() != steps or first.numel() != steps + 1:
        raise LowtideValueError(
            f"round_steps must have one element a step ({steps}) and first one more, got {round_steps.numel()} and "
            f"{first.numel()}"
        )
    if dir_steps.numel() != directions or dir_slots.numel() != directions:
        raise LowtideValueError(
            f"dir_steps and dir_slots must have one element for each of the {directions} coeffs, got "
            f"{dir_steps.numel()} and {dir_slots.numel()}"
        )
    check_uint(seed, "seed", 63)
    if dist not in (0, 1, 2, 3):
        raise LowtideValueError(f"dist must be 0, 1, 2 or 3 (rademacher, gaussian, ih4, lut8), got {dist!r}")
    return [t.contiguous() for t in tensors]


def per_tensor(values: Sequence[float], name: str, count: int) -> list[float]:
    """One number a tensor, no NaN among them."""
    if len(values) != count:
        raise LowtideValueError(f"{name} must list one number for each of {count} tensors, got {len(values)}")
    if any(math.isnan(v) for v in values):
        raise LowtideValueError(f"{name} must not hold NaN")
    return [float(v) for v in values]


def spsa_replay_list_(
    ws: Sequence[Tensor],
    params: Sequence[int],
    scales: Sequence[float],
    thresholds: Sequence[float],
    floors: Sequence[float],
    seed: int,
    dist: int,
    round_steps: Tensor,
    decays: Tensor,
    first: Tensor,
    dir_steps: Tensor,
    dir_slots: Tensor,
    coeffs: Tensor,
    offsets: Sequence[int] | None = None,
) -> None:
    """Take masters through T steps in one read and one write of them; T = 1 is the update of one step.

    Step k, for each element, directions ``first[k] <= j < first[k + 1]`` in order::

        acc = fma(coeffs[j] * scale, z_j, acc)                  # from 0; the product is one float32
        w = w * decays[k] + (acc if |w| <= threshold else 0)    # in float32
        w = max(w, floor)

    then bfloat16 and float16 masters are rounded stochastically with the 16 bits of (seed, ``round_steps[k]``, slot 0,
    param, role weight_sr). ``z_j`` is drawn at (seed, ``dir_steps[j]``, ``dir_slots[j]``, param, role z). A step without
    directions and with decay 1 changes nothing. The result is bit for bit what one call for each step gives.

    Args:
        ws: float32, bfloat16 or float16 CPU tensors, contiguous, none twice; changed in place.
        params: id of each tensor in the manifest, 32 bits.
        scales: factor of each tensor's directions (layer scaling).
        thresholds: >= 0; ``inf`` for no mask (Sparse-MeZO, arXiv 2402.15751, algorithm 1).
        floors: ``-inf`` for none; 0 for the scales of quantized layers (QZO, arXiv 2505.13430).
        seed: of the run, 63 bits. dist: 0 rademacher, 1 gaussian, 2 ih4, 3 lut8.
        round_steps: int64 [T]. decays: float32 [T]. first: int64 [T + 1], from 0 to D, not descending.
        dir_steps, dir_slots: int64 [D]. coeffs: float32 [D], finite.
        offsets: for shards: the global index of each tensor's first element in the whole, flattened.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
        LowtideRuntimeError: a master requires grad while autograd records.
    """
    if not ws:
        return
    for i, w in enumerate(ws):
        if not isinstance(w, Tensor) or w.dtype not in _FLOATS:
            got = w.dtype if isinstance(w, Tensor) else type(w).__name__
            raise LowtideTypeError(f"ws[{i}] must be float32, bfloat16 or float16, got {got}")
        if not w.is_contiguous():
            raise LowtideValueError(
                f"ws[{i}] must be contiguous, got strides {w.stride()}; pass .contiguous() and copy back"
            )
    n = len(ws)
    if len(params) != n:
        raise LowtideValueError(f"params must list one id for each of {n} tensors, got {len(params)}")
    ids = [check_uint(p, "params", 32) for p in params]
    starts = [] if offsets is None else [check_uint(o, "offsets", 62) for o in offsets]
    if len(starts) not in (0, n):
        raise LowtideValueError(f"offsets must list one index for each of {n} tensors, got {len(starts)}")
    schedule = check_schedule((round_steps, decays, first, dir_steps, dir_slots, coeffs), seed, dist)
    numbers = [
        per_tensor(values, name, n)
        for name, values in (("scales", scales), ("thresholds", thresholds), ("floors", floors))
    ]
    if any(t < 0 for t in numbers[1]):
        raise LowtideValueError(f"thresholds must be >= 0 (inf: no mask), got {min(numbers[1])}")
    check_mutable(ws, "ws")
    _op.spsa_replay_list_(list(ws), ids, *numbers, seed, dist, *schedule, starts)
    mutated(*ws)


def spsa_replay_codes_(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    cols: int,
    bits: int,
    group: int,
    param: int,
    layer_scale: float,
    seed: int,
    dist: int,
    round_steps: Tensor,
    decays: Tensor,
    first: Tensor,
    dir_steps: Tensor,
    dir_slots: Tensor,
    coeffs: Tensor,
    offset: int = 0,
) -> None:
    """Take INT8 or INT4 weights through T steps in one read and one write of their codes (QuZO, arXiv 2502.12346).

    Scales and zero points stay. With acc as in :func:`spsa_replay_list_`, for each element and step::

        steps = (code - zero) * (decays[k] - 1) + acc * (1 / scale)
        code = clamp(code + stochastic_round(steps))

    Rounding takes 24 bits of a word of its own for each element (role weight_sr), for updates are a small part of a step. Codes
    saturate at the ends of their range; a group with scale 0 stays as it is.

    Args:
        codes: uint8 (rows, bytes of a row), changed in place. scale: float32 (rows, groups). zero: uint8 (rows, groups),
            or None for the symmetric scheme. Laid out as :class:`lowtide.quant.Quantized`.
        cols: columns of the matrix. bits: 8 or 4. group: columns that share a scale.
        param: id of the tensor in the manifest. layer_scale: factor of its directions.
        seed, dist, round_steps, decays, first, dir_steps, dir_slots, coeffs: as :func:`spsa_replay_list_`.
        offset: for shards of whole rows: the global index of element [0, 0].

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    _check_packed(codes, scale, zero, cols, bits, group)
    schedule = check_schedule((round_steps, decays, first, dir_steps, dir_slots, coeffs), seed, dist)
    (factor,) = per_tensor([layer_scale], "layer_scale", 1)
    address = check_uint(param, "param", 32), check_uint(offset, "offset", 62)
    _op.spsa_replay_codes_(
        codes, scale, zero, cols, bits, group, address[0], factor, seed, dist, *schedule, address[1]
    )
    mutated(codes)


@fake("lowtide::spsa_replay_codes_")
def _(codes: Tensor, *_: object) -> None: ...


@fake("lowtide::spsa_replay_list_")
def _(ws: list[Tensor], *_: object) -> None: ...
