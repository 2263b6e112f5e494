# SPDX-License-Identifier: Apache-2.0
"""The masters' kernels against plain torch, bit for bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lowtide.spsa import Entry, Manifest, Masters, Method, StepUpdate, _reference

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ((), (0,), (1,), (63,), (5, 13), (130, 7), (3, 1025))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def masters(method: Method, seed: int = 11) -> Masters:
    def low(shape: tuple[int, ...]) -> bool:  # neither masked nor floored
        return method.rank > 0 and len(shape) >= 2

    tensors, entries = {}, []
    generator = torch.Generator().manual_seed(0)
    for i, (shape, dtype) in enumerate(itertools.product(SHAPES, DTYPES)):
        name = f"{i}"
        tensors[name] = torch.randn(shape, generator=generator).to(dtype)
        entries.append(
            Entry(
                name, i, shape, str(dtype).removeprefix("torch."), group=i % 2, decay=len(shape) >= 2,
                scale=(1.0, 0.3)[i % 5 == 0], threshold=(math.inf, 0.8)[i % 3 == 0 and not low(shape)],
                floor=(-math.inf, -0.5)[i % 4 == 0 and not low(shape)],
            )
        )  # fmt: skip
    return Masters(tensors, Manifest(tuple(entries)), seed=seed, method=method)


def direction(m: Masters, e: Entry, step: int, slot: int) -> Tensor:
    if m.low_rank(e):
        v_step = step - step % m.method.interval
        return _reference.low_rank_direction(e.shape, m.seed, step, v_step, slot, e.param, m.method.rank)
    return _reference.direction(e.shape, m.seed, step, slot, e.param, m.method.dist_id)


def expected(m: Masters, e: Entry, updates: list[StepUpdate]) -> Tensor:
    w = m.tensors[e.param].clone()
    for u in updates:
        decay, coeffs = u.of_group(e.group)
        decay = decay if e.decay else 1.0
        if not coeffs and decay == 1.0:
            continue
        terms = [(c, direction(m, e, s, j)) for (s, j, _), c in zip(u.directions, coeffs, strict=True)]
        _reference.apply(
            w, terms, scale=e.scale, threshold=e.threshold, floor=e.floor, decay=decay, seed=m.seed,
            round_step=u.step, param=e.param,
        )  # fmt: skip
    return w


UPDATES = [
    StepUpdate(3, 0.5, ((3, 0, 0.25), (3, 1, -0.0625), (2, 0, 0.001)), ((1.0, (0.1, 0.2, 0.3)),)),
    StepUpdate(4, 1.0, (), ((1.0, ()),)),
    StepUpdate(5, 0.99, (), ((0.5, ()),)),
    StepUpdate(6, 1.0, ((1 << 62, 7, -0.7),), ((0.75, (1e-9,)),)),
]


@pytest.mark.parametrize("dist", ["rademacher", "gaussian", "ih4", "lut8"])
@pytest.mark.parametrize("rank", [0, 2])
def test_updates_and_probes_have_the_bits_of_plain_torch(dist: str, rank: int) -> None:
    method = Method(dist=dist, rank=rank, interval=2)
    m = masters(method)
    want = [expected(m, e, UPDATES) for e in m.manifest]
    outs = [torch.empty_like(t, dtype=DTYPES[i % 2]) for i, t in enumerate(m.tensors)]
    m.perturb(outs, range(len(outs)), -0.3, (9, 1))
    for e, out, w in zip(m.manifest, outs, m.tensors, strict=True):
        other = torch.empty_like(out)
        _reference.perturb(other, w, -0.3 * e.scale, direction(m, e, 9, 1), e.threshold)
        assert torch.equal(out, other), e
    whole, steps = masters(method), masters(method)
    whole.apply(UPDATES)
    for u in UPDATES:
        steps.apply([u])
    for e, w, x, y in zip(m.manifest, want, whole.tensors, steps.tensors, strict=True):
        assert torch.equal(w, x), e
        assert torch.equal(w, y), e
    assert whole.digest() == steps.digest() != m.digest()
    assert whole.tensor_digests() == [_reference.digest(t) for t in want]
