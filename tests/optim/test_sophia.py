# SPDX-License-Identifier: Apache-2.0
"""Sophia by its formula in double, with exact diagonals; clipping is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

LR, RHO = 2e-2, 0.7
SHAPES = [(6, 5), (300,), (3, 2, 4), ()]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def follow(
    params: list[nn.Parameter], opt: Any, steps: int, every: int, signed: bool, batch: int = 8
) -> tuple[list[Tensor], list[float]]:
    """Steps both; returns the reference's weights and its clipped shares. Curvatures of both signs where ``signed``."""
    want = [p.detach().double() for p in params]
    ms = [torch.zeros_like(p) for p in want]
    hs = [torch.zeros_like(p) for p in want]
    shares = []
    for t in range(steps):
        if opt.curvature_due:
            samples = []
            for i, p in enumerate(params):
                s = noise(tuple(p.shape), 1000 + 10 * t + i)
                if signed:
                    samples.append(s)
                else:
                    p.grad = s
            if signed:
                opt.update_curvature(samples=dict(zip(params, samples, strict=True)))
            else:
                opt.update_curvature()
        clipped = 0
        for i, p in enumerate(params):
            if t % every == 0:
                s = noise(tuple(p.shape), 1000 + 10 * t + i).double()
                hs[i] = 0.9 * hs[i] + 0.1 * (s if signed else batch * s * s)
            p.grad = noise(tuple(p.shape), 10 * t + i)
            ms[i] = 0.8 * ms[i] + 0.2 * p.grad.double()
            ratio = ms[i] / (RHO * hs[i]).clamp(min=1e-12)
            clipped += int((ratio.abs() >= 1).sum())
            want[i] = want[i] * (1 - LR * 0.1) - LR * ratio.clamp(-1, 1)
        opt.step()
        shares.append(clipped / sum(p.numel() for p in params))
        # A ratio next to 1 may fall to the other side in float32.
        assert abs(opt.clip_share - shares[-1]) <= 1.5 / sum(p.numel() for p in params)
    return want, shares


@pytest.mark.parametrize("kind", ["G", "H"])
@pytest.mark.parametrize("every", [1, 5])
def test_follows_the_paper_in_double(kind: str, every: int) -> None:
    params = [nn.Parameter(noise(s, 90 + i)) for i, s in enumerate(SHAPES)]
    common: dict[str, Any] = {
        "lr": LR, "betas": (0.8, 0.9), "rho": RHO, "weight_decay": 0.1, "update_each": every, "eps": 1e-12,
    }  # fmt: skip
    if kind == "G":
        opt: Any = lt.optim.SophiaG(params, batch_size=8, **common)
    else:
        opt = lt.optim.SophiaH(params, **common)
    want, shares = follow(params, opt, 40, every, kind == "H")
    assert any(0.05 < share < 0.95 for share in shares)
    for p, q in zip(params, want, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= 2e-6


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_low_bit_states_lower_the_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5))
    x = torch.randn(128, 20)
    y = (x[:, :5] * 2).argmax(1)
    opt = lt.optim.SophiaG(
        model.parameters(), lr=1e-2, batch_size=128, rho=0.05, state=lt.optim.StateStore(kind, 64)
    )
    losses = []
    for _ in range(40):
        if opt.curvature_due:
            opt.zero_grad()
            out = model(x)
            labels = torch.distributions.Categorical(logits=out.detach()).sample()
            nn.functional.cross_entropy(out, labels).backward()
            opt.update_curvature()
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert 0.0 < opt.clip_share < 1.0


def test_without_any_curvature_directions_are_signs() -> None:
    p = nn.Parameter(noise((40,), 0))
    before = p.detach().clone()
    opt = lt.optim.SophiaG([p], lr=0.5, weight_decay=0.0, batch_size=1)
    p.grad = noise((40,), 1)
    opt.step()
    assert opt.clip_share == 1.0
    assert torch.allclose(before - p.detach(), 0.5 * p.grad.sign())
