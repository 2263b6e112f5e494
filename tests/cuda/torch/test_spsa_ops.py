# SPDX-License-Identifier: Apache-2.0
"""Zeroth-order kernels on the emulated device: perturbed, replayed and digested weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from emulated import compare, on_device
from torch import Tensor

from lowtide import ops

_op = torch.ops.lowtide
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 63, 257, 2049)
DISTS = range(4)


def noise(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def schedule(steps: int = 3) -> tuple[Tensor, ...]:
    """Two directions a step, the second step without any, the third without decay."""
    first = torch.tensor([0, 2, 2, 4])[: steps + 1]
    directions = int(first[-1])
    return (
        torch.arange(1, steps + 1),
        torch.tensor([0.99, 0.9, 1.0])[:steps],
        first,
        torch.arange(1, directions + 1),
        torch.arange(directions) % 2,
        torch.linspace(-1e-2, 2e-2, directions),
    )


@pytest.mark.parametrize("dist", DISTS)
def test_perturbations(dist: int) -> None:
    for n, (w_type, out_type) in itertools.product(SIZES, itertools.product(FLOATS, FLOATS)):
        w, out = noise(n, n, w_type), torch.empty(n, dtype=out_type)
        at = (1e-2, 11, 12, 1, 5, 3, dist, 1.5)
        compare(_op.spsa_perturb.default, (out, w, *at))
        compare(_op.spsa_perturb_pair.default, (out, torch.empty_like(out), w, *at))
        compare(_op.spsa_perturb_.default, (w, *at))


def test_lists_of_perturbations() -> None:
    ws = [noise(n, n, FLOATS[i % 3]) for i, n in enumerate(SIZES)]
    n = len(ws)
    rest = ([0.01 * (i + 1) for i in range(n)], 11, 12, 1, list(range(n)), 1, [math.inf] * n)
    compare(_op.spsa_perturb_list.default, ([torch.empty_like(w) for w in ws], ws, *rest))
    compare(_op.spsa_perturb_list_.default, (ws, *rest, [7 * i for i in range(n)]))
    with pytest.raises(RuntimeError, match="apart"):
        on_device(_op.spsa_perturb.default, (ws[3][1:], ws[3][:-1], *rest[:0], 1.0, 1, 1, 1, 1, 0, 1, 1.0))


@pytest.mark.parametrize("dist", DISTS)
def test_replays(dist: int) -> None:
    for steps in (0, 1, 3):
        ws = [noise(n, n, FLOATS[i % 3]) for i, n in enumerate(SIZES)]
        n = len(ws)
        args = (ws, list(range(n)), [1.0] * n, [1.5] * n, [-math.inf] * n, 9, dist, *schedule(steps))
        compare(_op.spsa_replay_list_.default, (*args, [256 * i for i in range(n)]))


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize(
    ("bits", "scheme"), [(8, "symmetric"), (4, "symmetric"), (8, "asymmetric"), (4, "asymmetric")]
)
def test_replays_on_codes(bits: int, scheme: str, dist: int) -> None:
    for rows, cols in ((3, 70), (1, 1), (5, 257), (0, 5)):
        x = noise(rows * cols, 1).reshape(rows, cols)
        codes, scale, zero = ops.quantize_group(x, bits=bits, group=64, scheme=scheme)
        args = (codes, scale, zero, cols, bits, 64, 7, 2.0, 9, dist, *schedule(), 3)
        compare(_op.spsa_replay_codes_.default, args)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_directions_of_low_rank(rank: int) -> None:
    for dtype, (rows, cols) in itertools.product(FLOATS, ((5, 70), (1, 1), (33, 17), (0, 4))):
        w = noise(rows * cols, 2, dtype).reshape(rows, cols)
        out = torch.empty(rows, cols)
        compare(_op.spsa_low_rank_perturb.default, (out, w, 1e-2, 9, 4, 2, 1, 7, rank, 6))
        steps = schedule()
        compare(
            _op.spsa_low_rank_replay_.default,
            (w, 1.0, 9, 7, rank, *steps[:4], steps[3] // 2, *steps[4:], 6),
        )


def test_digests() -> None:
    for n, dtype in itertools.product((*SIZES, 40001), (torch.float32, torch.bfloat16, torch.uint8)):
        w = torch.randint(0, 255, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
        for offset in (0, 3):
            compare(_op.spsa_digest.default, (w, offset))
            compare(_op.spsa_digest.default, (w[1:], offset))  # an address of the element's alignment only


def test_schedules_are_host_memory() -> None:
    bad = list(schedule())
    bad[1] = bad[1].double()
    with pytest.raises(RuntimeError, match="decays must be a contiguous float32 CPU tensor"):
        on_device(
            _op.spsa_replay_list_.default, ([torch.ones(4)], [0], [1.0], [1.0], [-math.inf], 9, 0, *bad)
        )
