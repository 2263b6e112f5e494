# SPDX-License-Identifier: Apache-2.0
"""INT8 and INT4 weights as masters: codes move by whole steps, stochastically rounded, scales stay (QuZO, 2502.12346)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowtide import ops
from lowtide.errors import LowtideTypeError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.quant._weight import QuantWeight
    from lowtide.spsa._manifest import Entry

#: round_steps, decays, first, dir_steps, dir_slots, coeffs of the replay ops.
ReplaySchedule = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: Rounds of probes lie behind those of updates: QuZO rounds a direction twice, independently.
_PROBE_ROUND = 1 << 61


def quant_of(t: Tensor) -> QuantWeight | None:
    """The packed weight that a parameter is the codes of, or None."""
    from lowtide.quant import is_quant_weight

    return t.quant if is_quant_weight(t) else None


def check_packed(e: Entry, quant: QuantWeight | None) -> QuantWeight:
    """Refuse codes that cannot move."""
    if quant is None:
        raise LowtideTypeError(
            f"tensors: {e.name} holds packed codes; give the parameter of its lt.quant.Linear, which knows their scales"
        )
    if quant.scheme == "nf4":
        raise LowtideValueError(
            f"params: {e.name} is NF4, whose levels are too uneven to step; train its scales with lt.spsa.QZO"
        )
    return quant


def replay_codes(
    codes: Tensor, quant: QuantWeight, e: Entry, seed: int, dist: int, schedule: ReplaySchedule
) -> None:
    """Take codes in the layout of ``quant`` through the steps of a schedule."""
    ops.spsa_replay_codes_(
        codes,
        quant.scale,
        quant.zero,
        quant.shape[1],
        quant.bits,
        quant.group,
        e.param,
        e.scale,
        seed,
        dist,
        *schedule,
    )


def perturb_codes(
    out: Tensor,
    codes: Tensor,
    quant: QuantWeight,
    e: Entry,
    eps: float,
    seed: int,
    dist: int,
    address: tuple[int, int],
) -> None:
    """out = codes moved by eps s z, rounded stochastically to whole steps; -eps gives the mirror image."""
    step, slot = address
    if out is not codes:
        out.copy_(codes)
    replay_codes(
        out,
        quant,
        e,
        seed,
        dist,
        schedule_of([(_PROBE_ROUND + (step << 16) + slot, 1.0, [(step, slot, eps)])]),
    )


def schedule_of(steps: Sequence[tuple[int, float, Sequence[tuple[int, int, float]]]]) -> ReplaySchedule:
    """(round_step, decay, directions) of each step as the arguments of the replay ops."""
    first = [0]
    every: list[tuple[int, int, float]] = []
    for _, _, directions in steps:
        every += directions
        first.append(len(every))

    def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    return (
        tensor([r for r, _, _ in steps], torch.int64),
        tensor([d for _, d, _ in steps], torch.float32),
        tensor(first, torch.int64),
        tensor([s for s, _, _ in every], torch.int64),
        tensor([j for _, j, _ in every], torch.int64),
        tensor([c for _, _, c in every], torch.float32),
    )
