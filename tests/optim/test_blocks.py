# SPDX-License-Identifier: Apache-2.0
"""FRUGAL's block mode: whole matrices take turns, and those that wait have no states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import lowtide as lt

SHAPES = [(8, 6), (6, 10), (12, 4), (5, 5), (4, 9)]
TOTAL = sum(a * b for a, b in SHAPES)
LR = 1e-2


def run(steps: int, **options: Any) -> tuple[list[torch.nn.Parameter], lt.optim.FRUGAL, list[set[int]]]:
    params = [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES]
    opt = lt.optim.FRUGAL(
        [{"params": params, "rank": 2, "update_proj_gap": 3}],
        lr=LR, weight_decay=0.0, subspace="blocks", **options,
    )  # fmt: skip
    active = []
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
        opt.step()
        active.append({i for i, p in enumerate(params) if opt.state[p]["rank"]})
    return params, opt, active


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "mirror"])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
def test_every_matrix_has_its_turn_within_the_budget(order: str, density: float) -> None:
    _, opt, active = run(60, density=density, block_order=order)
    turns = active[::3]
    assert all(active[i] == active[i - i % 3] for i in range(60))
    sizes = [a * b for a, b in SHAPES]
    for turn in turns:
        used = sum(sizes[i] for i in turn)
        assert used <= density * TOTAL or len(turn) == 1
    counts = [sum(i in turn for turn in turns) for i in range(5)]
    assert min(counts) >= 2
    # Of a sequence of rounds each matrix has come as often as any other, but for the round in progress (twice when it turns).
    assert max(counts) - min(counts) <= 2
    if density == 1.0:
        assert all(len(turn) == 5 for turn in turns)
    if order == "ascending" and density == 0.1:
        assert [next(iter(turn)) for turn in turns[:7]] == [0, 1, 2, 3, 4, 0, 1]
    if order == "descending" and density == 0.1:
        assert [next(iter(turn)) for turn in turns[:7]] == [4, 3, 2, 1, 0, 4, 3]
    if order == "mirror" and density == 0.1:
        assert [next(iter(turn)) for turn in turns[:7]] == [0, 1, 2, 3, 4, 4, 3]
    assert opt.state_bytes()["states"] == sum(8 * sizes[i] for i in active[-1])
    assert opt.state_bytes()["basis"] == 0


def test_active_matrices_follow_adam_from_fresh_and_others_signsgd() -> None:
    params, _, active = run(9, density=0.4, residual_lr_scale=0.5)
    assert len({frozenset(a) for a in active}) == 3
    for i, p in enumerate(params):
        w = torch.zeros(p.shape, dtype=torch.float64)
        m = v = torch.zeros_like(w)
        for t in range(9):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i)).double()
            if i not in active[t]:
                w -= LR * 0.5 * g.sign()
                continue
            if t % 3 == 0:
                m = v = torch.zeros_like(w)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            s = t % 3 + 1
            w -= LR * m / (1 - 0.9**s) / ((v / (1 - 0.999**s)).sqrt() + 1e-8)
        assert float((p.detach() - w).abs().max()) < 1e-6


def test_density_zero_is_signsgd_without_states() -> None:
    params, opt, active = run(4, density=0.0)
    assert not any(active)
    assert opt.state_bytes()["states"] == 0
    assert float(params[0].detach().abs().max()) <= 4 * LR * 1.000001


def test_a_state_of_another_turn_is_loaded() -> None:
    params, opt, _ = run(7, density=0.4)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = lt.optim.FRUGAL(
        [{"params": copies, "rank": 2, "update_proj_gap": 3}],
        lr=LR, weight_decay=0.0, subspace="blocks", density=0.4,
    )  # fmt: skip
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for t in range(7, 14):
        for i, (p, q) in enumerate(zip(params, copies, strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
            q.grad = p.grad.clone()
        opt.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))
    broken = copy.deepcopy(opt.state_dict())
    broken["state"][0]["rank"] = 3
    with pytest.raises(lt.LowtideError, match="rank"):
        other.load_state_dict(broken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 1.5}, "density"),
        ({"density": -0.1}, "density"),
        ({"block_order": "sorted"}, "order must"),
    ],
)
def test_bad_arguments_are_named(options: dict, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        lt.optim.FRUGAL([torch.nn.Parameter(torch.zeros(4, 4))], subspace="blocks", **options)


def test_blocks_need_fresh_moments() -> None:
    with pytest.raises(lt.LowtideError, match="Reset"):
        lt.optim.Composed([torch.nn.Parameter(torch.zeros(4, 4))], subspace=lt.optim.Blocks())


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_the_planner_counts_the_average_turn(density: float) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16, bias=False) for _ in range(4)))
    make = lambda params: lt.optim.FRUGAL(params, lr=LR, subspace="blocks", density=density)  # noqa: E731
    report = lt.optim.memory(model, make)
    opt = make(lt.optim.param_groups(model, update_proj_gap=1))
    for t in range(4):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
        opt.step()
        held = opt.state_bytes()
        assert (held["states"], held["basis"]) == (report.states, report.basis)
    assert report.states == int(density * 8 * 4 * 256)
