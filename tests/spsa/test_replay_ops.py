# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import _core, ops
from lowtide.spsa import _reference

INF = math.inf
DTYPES = [torch.float32, torch.bfloat16]


def schedule(steps: list[tuple[int, float, list[tuple[int, int, float]]]]) -> tuple[Tensor, ...]:
    """Tensors of [(round_step, decay, [(dir_step, slot, coeff)])]."""
    flat = [d for _, _, directions in steps for d in directions]
    counts = torch.tensor([0, *(len(d) for _, _, d in steps)])
    return (
        torch.tensor([s for s, _, _ in steps], dtype=torch.int64),
        torch.tensor([d for _, d, _ in steps], dtype=torch.float32),
        counts.cumsum(0),
        torch.tensor([d[0] for d in flat], dtype=torch.int64),
        torch.tensor([d[1] for d in flat], dtype=torch.int64),
        torch.tensor([d[2] for d in flat], dtype=torch.float32),
    )


STEPS = [
    (3, 1.0, [(3, 0, 1e-3)]),
    (4, 0.99, [(4, 0, -2e-3), (4, 7, 5e-4), (1, 2, 1e-3)]),
    (5, 0.999, []),
    (6, 1.0, []),
    (7, 1.0, [(7, j, 1e-3 * (j - 4)) for j in range(9)]),
]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("dist", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_what_the_plain_loop_gives(isa: str, dtype: torch.dtype, dist: int) -> None:
    shapes, scales, thresholds, floors = [(700,), (33, 65)], [1.0, 0.3], [INF, 0.8], [-INF, 0.0]
    ws = [torch.randn(s, generator=torch.Generator().manual_seed(1)).to(dtype) for s in shapes]
    wants = [w.clone() for w in ws]
    for i, w in enumerate(wants):
        for step, decay, directions in STEPS:
            terms = [(c, _reference.direction(w.shape, 11, s, j, 5 + i, dist)) for s, j, c in directions]
            if terms or decay != 1.0:
                _reference.apply(
                    w, terms, scale=scales[i], threshold=thresholds[i], floor=floors[i], decay=decay, seed=11,
                    round_step=step, param=5 + i,
                )  # fmt: skip
    versions = [w._version for w in ws]
    ops.spsa_replay_list_(ws, [5, 6], scales, thresholds, floors, 11, dist, *schedule(STEPS))
    for w, want, version in zip(ws, wants, versions, strict=True):
        assert same(w, want)
        assert w._version > version


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_replay_is_step_by_step_and_shards_are_the_whole(dtype: torch.dtype) -> None:
    w = torch.randn(9001, generator=torch.Generator().manual_seed(2)).to(dtype)
    digests = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        whole, stepwise, shards = w.clone(), w.clone(), w.clone()
        tail = ([1.0], [INF], [-INF], 3, 1)
        ops.spsa_replay_list_([whole], [0], *tail, *schedule(STEPS))
        for one in STEPS:
            ops.spsa_replay_list_([stepwise], [0], *tail, *schedule([one]))
        cuts = [0, 1, 4097, 9001]
        for a, b in itertools.pairwise(cuts):
            ops.spsa_replay_list_([shards[a:b]], [0], *tail, *schedule(STEPS), [a])
        assert same(whole, stepwise)
        assert same(whole, shards)
        digests.add(int(ops.spsa_digest(whole)))
    assert len(digests) == 1


def test_a_host_that_flushes_denormals_changes_nothing() -> None:
    one = [(3, 1.0, [(3, 0, 1.0)])]
    a, b = torch.zeros(3000), torch.zeros(3000)
    ops.spsa_replay_list_([a], [0], [1e-40], [INF], [-INF], 1, 1, *schedule(one))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        ops.spsa_replay_list_([b], [0], [1e-40], [INF], [-INF], 1, 1, *schedule(one))
    finally:
        torch.set_flush_denormal(False)
    assert same(a, b)
    assert a.any()


def test_numpy_gives_the_same_bits() -> None:
    x = np.random.default_rng(3).standard_normal(3001).astype(np.float32)
    arrays = [t.numpy() for t in schedule(STEPS)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        w = torch.from_numpy(x).to(dtype)
        a = (
            w.view(torch.int16).numpy().view(np.uint16).copy()
            if dtype == torch.bfloat16
            else w.numpy().copy()
        )
        _core.spsa_replay(a, dtype == torch.bfloat16, 4, 0.5, INF, -INF, 11, 1, *arrays, 0)
        ops.spsa_replay_list_([w], [4], [0.5], [INF], [-INF], 11, 1, *schedule(STEPS))
        assert w.view(torch.uint8).numpy().tobytes() == a.tobytes()


def _call(**changes: Any) -> None:
    names = ("round_steps", "decays", "first", "dir_steps", "dir_slots", "coeffs")
    args: dict[str, Any] = {
        "ws": [torch.zeros(4)], "params": [0], "scales": [1.0], "thresholds": [INF], "floors": [-INF], "seed": 1,
        "dist": 0, **dict(zip(names, schedule(STEPS), strict=True)), "offsets": None,
    }  # fmt: skip
    ops.spsa_replay_list_(**{**args, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ws": [torch.zeros(4, dtype=torch.int32)]}, "float32"),
        ({"ws": [torch.zeros(4, 4).t()[1:]]}, "contiguous"),
        ({"params": [0, 1]}, "params"),
        ({"params": [-1]}, "params"),
        ({"scales": []}, "scales"),
        ({"scales": [math.nan]}, "scales"),
        ({"thresholds": [-1.0]}, "thresholds"),
        ({"floors": [math.nan]}, "floors"),
        ({"offsets": [-1]}, "offsets"),
        ({"seed": -1}, "seed"),
        ({"dist": 4}, "dist"),
        ({"decays": torch.ones(3)}, "round_steps"),
        ({"coeffs": torch.ones(3)}, "dir_steps"),
        ({"coeffs": torch.ones(13, dtype=torch.float64)}, "coeffs"),
        ({"coeffs": torch.full((13,), math.inf)}, "coeffs"),
        ({"first": torch.tensor([0, 1, 4, 3, 4, 13])}, "first"),
        ({"ws": [torch.zeros(4, requires_grad=True)]}, "no_grad"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((lt.LowtideError, RuntimeError), match=words):
        _call(**changes)


def test_the_op_itself_never_writes_out_of_bounds() -> None:
    w = torch.zeros(4)
    tail = (1, 0, *schedule(STEPS))
    for ws, params in (([w, w], [0, 0]), ([w], [0, 1])):
        n = len(ws)
        with pytest.raises(RuntimeError, match="lowtide"):
            torch.ops.lowtide.spsa_replay_list_(ws, params, [1.0] * n, [INF] * n, [-INF] * n, *tail)
    assert not w.any()


def test_nothing_to_do() -> None:
    ops.spsa_replay_list_([], [], [], [], [], 1, 0, *schedule(STEPS))
    w = torch.tensor([-0.0, 1.0])
    _call(
        ws=[w],
        **dict(
            zip(
                ("round_steps", "decays", "first", "dir_steps", "dir_slots", "coeffs"),
                schedule([]),
                strict=True,
            )
        ),
    )
    assert math.copysign(1, float(w[0])) == -1


def test_opcheck_and_compile() -> None:
    args = ([5], [1.0], [INF], [-INF], 1, 1, *schedule(STEPS))
    torch.library.opcheck(torch.ops.lowtide.spsa_replay_list_.default, ([torch.randn(70)], *args))

    def f(x: Tensor, *tensors: Tensor) -> Tensor:
        y = x * 2
        ops.spsa_replay_list_([y], [5], [1.0], [INF], [-INF], 1, 1, *tensors)
        return y + 1

    x = torch.randn(70)
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x, *schedule(STEPS))
    assert torch.equal(got, f(x, *schedule(STEPS)))
