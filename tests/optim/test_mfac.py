# SPDX-License-Identifier: Apache-2.0
"""The optimizer M-FAC against dense inverses in double, its windows in fewer bits, and what it saves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

SHAPES = [(6, 5), (17,), (2, 3, 4), ()]
LR, DAMP, M = 0.05, 0.05, 6


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_follows_the_paper_in_double(scope: str, momentum: float) -> None:
    params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
    opt = lt.optim.MFAC(params, lr=LR, ngrads=M, damp=DAMP, momentum=momentum, weight_decay=0.1, scope=scope)
    blocks = [params] if scope == "model" else [[p] for p in params]
    want = [flat(b) for b in blocks]
    ms = [torch.zeros_like(w) for w in want]
    windows: list[list[Tensor]] = [[] for _ in blocks]
    for t in range(25):
        for i, p in enumerate(params):
            p.grad = noise(tuple(p.shape), 100 * t + i)
        opt.step()
        for k, block in enumerate(blocks):
            g = flat([p.grad for p in block])
            windows[k] = [*windows[k], g][-M:]
            rows = torch.stack(windows[k])
            fisher = DAMP * torch.eye(len(g), dtype=torch.float64) + rows.T @ rows / len(rows)
            ms[k] = momentum * ms[k] + torch.linalg.solve(fisher, g)
            want[k] = want[k] * (1 - LR * 0.1) - LR * ms[k]
    for block, w in zip(blocks, want, strict=True):
        assert float((flat(block) - w).norm() / w.norm()) <= 1e-5


def test_a_parameter_without_a_gradient_counts_as_zeros() -> None:
    params = [nn.Parameter(noise((9,), 0)), nn.Parameter(noise((7,), 1))]
    opt = lt.optim.MFAC(params, lr=LR, ngrads=3, damp=DAMP)
    want = flat(params)
    window: list[Tensor] = []
    for t in range(8):
        params[0].grad = noise((9,), 10 * t)
        params[1].grad = noise((7,), 10 * t + 1) if t % 3 else None
        g = torch.cat([params[0].grad, torch.zeros(7) if params[1].grad is None else params[1].grad]).double()
        window = [*window, g][-3:]
        rows = torch.stack(window)
        step = torch.linalg.solve(DAMP * torch.eye(16, dtype=torch.float64) + rows.T @ rows / len(rows), g)
        if params[1].grad is None:
            step[9:] = 0.0
        want = want - LR * step
        opt.step()
    assert float((flat(params) - want).norm() / want.norm()) <= 1e-5


@pytest.mark.parametrize(("window", "nbytes"), [("fp32", 4.0), ("bf16", 2.0), ("int8", 1.016)])
def test_windows_in_fewer_bits_train_alike(window: str, nbytes: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    x = torch.randn(256, 64)
    y = x[:, :8].argmax(1)
    opt = lt.optim.MFAC(model.parameters(), lr=0.02, ngrads=16, damp=1e-3, window=window, momentum=0.9)
    losses = []
    for t in range(60):
        rows = slice(64 * (t % 4), 64 * (t % 4) + 64)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    n = sum(p.numel() for p in model.parameters())
    report = lt.optim.memory(model, lambda p: lt.optim.MFAC(p, ngrads=16, window=window, momentum=0.9))
    assert report.states == opt.state_bytes()["states"]
    assert report.states - 4 * n - 8 * 16**2 == pytest.approx(nbytes * 16 * n, rel=0.02)


def test_nonfinite_gradients_skip_the_step_of_all() -> None:
    params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
    opt = lt.optim.MFAC(params, lr=LR, ngrads=3, damp=DAMP)
    for i, p in enumerate(params):
        p.grad = noise(tuple(p.shape), i)
    opt.step()
    before, state = flat(params), copy.deepcopy(opt.state_dict())
    params[1].grad[2] = torch.nan
    with pytest.warns(RuntimeWarning, match="skipped"):
        opt.step()
    assert torch.equal(flat(params), before)
    assert opt.skipped_blocks == 1
    saved = opt.state_dict()["state"]
    assert all(
        torch.equal(v, saved[k][name])
        for k, s in state["state"].items()
        for name, v in s.items()
        if name == "window"
    )


def test_states_of_another_window_are_refused() -> None:
    params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
    opt = lt.optim.MFAC(params, lr=LR, ngrads=3)
    for i, p in enumerate(params):
        p.grad = noise(tuple(p.shape), i)
    opt.step()
    with pytest.raises(lt.LowtideValueError, match="window"):
        lt.optim.MFAC(params, ngrads=4).load_state_dict(opt.state_dict())
    broken = copy.deepcopy(opt.state_dict())
    keeper = next(s for s in broken["state"].values() if "gram" in s)
    keeper["gram"] = keeper["gram"][:2, :2]
    with pytest.raises(lt.LowtideValueError, match="gram"):
        opt.load_state_dict(broken)


def test_bad_choices_are_named() -> None:
    p = [nn.Parameter(torch.zeros(4, 4))]
    for bad, match in (
        (lambda: lt.optim.MFAC(p, ngrads=0), "ngrads"),
        (lambda: lt.optim.MFAC(p, damp=0.0), "damp"),
        (lambda: lt.optim.MFAC(p, window="fp64"), "window"),
        (lambda: lt.optim.MFAC(p, window="int2"), "window"),
        (lambda: lt.optim.MFAC(p, scope="layer"), "scope"),
        (lambda: lt.optim.MFAC([{"params": p, "rank": 2}]), "rank"),
        (lambda: lt.optim.in_backward(lt.optim.MFAC(p), nn.Linear(2, 2)), "in_backward"),
    ):
        with pytest.raises(lt.LowtideError, match=match):
            bad()
