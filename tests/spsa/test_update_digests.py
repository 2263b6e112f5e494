# SPDX-License-Identifier: Apache-2.0
"""What updates give is part of the format of run logs: a log of today must make the same weights in any later version.

``tests/data/update_digests.json`` holds the digests of fixed updates of fixed weights; every instruction set must give them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import ops

WANT = json.loads((Path(__file__).parent.parent / "data" / "update_digests.json").read_text())
DISTS = ("rademacher", "gaussian", "ih4", "lut8")
DTYPES = ("float32", "bfloat16", "float16")
INF = math.inf
# Round steps, decays, first, dir_steps, dir_slots, coeffs of three steps, the second without directions.
SCHEDULE = (
    torch.tensor([4, 5, 6]),
    torch.tensor([1.0, 0.99, 0.999]),
    torch.tensor([0, 3, 3, 4]),
    torch.tensor([4, 4, 1, 6]),
    torch.tensor([0, 2, 7, 0]),
    torch.tensor([1e-3, -2e-3, 5e-4, 3e-3]),
)
V_STEPS = torch.tensor([0, 0, 0, 5])


def weights(dtype: str) -> Tensor:
    return lt.random.sample((40, 77), seed=3, like="torch").mul_(0.05).to(getattr(torch, dtype))


def digest(t: Tensor) -> str:
    return f"{int(ops.spsa_digest(t)) & (1 << 64) - 1:016x}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dist", DISTS)
def test_dense(isa: str, dist: str, dtype: str) -> None:
    w = weights(dtype)
    ops.spsa_replay_list_([w], [4], [0.75], [INF], [-INF], 11, DISTS.index(dist), *SCHEDULE)
    masked = weights(dtype)
    ops.spsa_replay_list_([masked], [4], [0.75], [0.05], [-0.1], 11, DISTS.index(dist), *SCHEDULE)
    assert {"plain": digest(w), "masked": digest(masked)} == WANT["dense"][f"{dist} {dtype}"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_codes(isa: str, scheme: str, bits: int) -> None:
    q = lt.quant.quantize(weights("float32"), bits=bits, group=32, scheme=scheme)
    ops.spsa_replay_codes_(q.codes, q.scale, q.zero, 77, bits, 32, 4, 0.75, 11, 0, *SCHEDULE)
    assert digest(q.codes) == WANT["codes"][f"{scheme} {bits}"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank(isa: str, rank: int, dtype: str) -> None:
    w = weights(dtype)
    out = torch.empty_like(w)
    ops.spsa_low_rank_perturb(out, w, 1e-2, 11, 6, 5, 2, 4, rank)
    ops.spsa_low_rank_replay_(w, 0.75, 11, 4, rank, *SCHEDULE[:4], V_STEPS, *SCHEDULE[4:])
    assert {"perturb": digest(out), "replay": digest(w)} == WANT["low_rank"][f"{rank} {dtype}"]
