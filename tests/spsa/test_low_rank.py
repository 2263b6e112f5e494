# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import _core, ops
from lowtide.spsa import _reference

# Round steps, decays, first, dir_steps, v_steps, dir_slots, coeffs of three steps.
SCHEDULE = (
    torch.tensor([4, 5, 6]),
    torch.tensor([0.98, 1.0, 1.0]),
    torch.tensor([0, 2, 2, 3]),
    torch.tensor([4, 4, 2]),
    torch.tensor([0, 0, 0]),
    torch.tensor([0, 5, 1]),
    torch.tensor([3e-3, -2e-3, 1e-3]),
)


def weights(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "rank"), [((5, 7), 1), ((33, 300), 2), ((4, 3, 5), 8)])
def test_is_what_the_plain_loop_gives(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], rank: int
) -> None:
    w = weights(dtype, *shape)
    z = _reference.low_rank_direction(shape, 11, 9, 8, 3, 4, rank)
    want, got = torch.empty(shape), torch.empty(shape)
    _reference.perturb(want, w, 1e-3, z, math.inf)
    ops.spsa_low_rank_perturb(got, w, 1e-3, 11, 9, 8, 3, 4, rank)
    assert torch.equal(got, want)
    moved = w.clone()
    for k in (0, 2):
        terms = [
            (
                float(SCHEDULE[6][j]),
                _reference.low_rank_direction(
                    shape, 11, int(SCHEDULE[3][j]), int(SCHEDULE[4][j]), int(SCHEDULE[5][j]), 4, rank
                ),
            )
            for j in range(int(SCHEDULE[2][k]), int(SCHEDULE[2][k + 1]))
        ]
        _reference.apply(
            moved, terms, scale=0.5, threshold=math.inf, floor=-math.inf, decay=float(SCHEDULE[1][k]), seed=11,
            round_step=int(SCHEDULE[0][k]), param=4,
        )  # fmt: skip
    version = w._version
    ops.spsa_low_rank_replay_(w, 0.5, 11, 4, rank, *SCHEDULE)
    assert torch.equal(w, moved)
    assert w._version > version


def test_numpy_rows_and_threads_give_the_same_bits() -> None:
    whole = weights(torch.float32, 90, 401)
    rows, array = whole.clone(), whole.clone().numpy()
    ops.spsa_low_rank_replay_(whole, 1.0, 11, 4, 3, *SCHEDULE)
    torch.set_num_threads(2)
    for a, b in ((0, 7), (7, 90)):
        ops.spsa_low_rank_replay_(rows[a:b], 1.0, 11, 4, 3, *SCHEDULE, a)
    _core.spsa_low_rank_replay(array, 1.0, 11, 4, 3, *(t.numpy() for t in SCHEDULE), 0)
    assert torch.equal(whole, rows)
    assert torch.equal(whole, torch.from_numpy(array))
    out, other = torch.empty_like(whole), torch.empty(90, 401).numpy()
    ops.spsa_low_rank_perturb(out, whole, 0.1, 1, 2, 0, 3, 4, 2)
    _core.spsa_low_rank_perturb(other, whole.numpy(), 0.1, 1, 2, 0, 3, 4, 2, 0)
    assert torch.equal(out, torch.from_numpy(other))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"w": torch.zeros(5)}, "two dimensions"),
        ({"w": torch.zeros(4, 4, dtype=torch.int64)}, "float32"),
        ({"w": torch.zeros(4, 6).t()}, "contiguous"),
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "rank"),
        ({"scale": math.inf}, "scale"),
        ({"param": -1}, "param"),
        ({"first_row": -1}, "first_row"),
        ({"v_steps": torch.zeros(2, dtype=torch.int64)}, "v_steps"),
        ({"v_steps": torch.tensor([0, -1, 0])}, "v_steps"),
        ({"w": torch.zeros(4, 4, requires_grad=True)}, "no_grad"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], match: str) -> None:
    names = ("round_steps", "decays", "first", "dir_steps", "v_steps", "dir_slots", "coeffs")
    args = {"w": torch.zeros(4, 4), "scale": 1.0, "seed": 1, "param": 0, "rank": 2, "first_row": 0}
    args |= dict(zip(names, SCHEDULE, strict=True))
    with pytest.raises((lt.LowtideError, RuntimeError), match=match):
        ops.spsa_low_rank_replay_(**{**args, **changes})


def test_bad_outputs_are_named() -> None:
    w = torch.zeros(4, 4)
    with pytest.raises(lt.LowtideValueError, match="shape"):
        ops.spsa_low_rank_perturb(torch.zeros(4, 5), w, 1.0, 1, 2, 0, 0, 0, 2)
    with pytest.raises(lt.LowtideValueError, match="v_step"):
        ops.spsa_low_rank_perturb(w, w, 1.0, 1, 2, -1, 0, 0, 2)
    with pytest.raises(RuntimeError, match="lowtide"):
        torch.ops.lowtide.spsa_low_rank_perturb(torch.zeros(4, 3), w, 1.0, 1, 2, 0, 0, 0, 2)


def test_opcheck_and_compile() -> None:
    w = weights(torch.float32, 6, 9)
    perturb = (torch.empty(6, 9), w, 1e-3, 1, 2, 0, 3, 4, 2)
    torch.library.opcheck(torch.ops.lowtide.spsa_low_rank_perturb.default, perturb)
    torch.library.opcheck(torch.ops.lowtide.spsa_low_rank_replay_.default, (w, 1.0, 1, 4, 2, *SCHEDULE))

    def f(x: Tensor, *tensors: Tensor) -> Tensor:
        y = x * 2
        ops.spsa_low_rank_replay_(y, 1.0, 1, 4, 2, *tensors)
        return y + 1

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(w, *SCHEDULE)
    assert torch.equal(got, f(w, *SCHEDULE))
