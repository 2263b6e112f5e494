# SPDX-License-Identifier: Apache-2.0
"""HARPG: products that are unbiased for the Hessian of an expected return, steps by the formula, and what it learns."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.optim.hessian_aided import hessian_product

REWARDS = torch.tensor([0.2, 1.0, -0.5, 0.4], dtype=torch.float64)
#: A chain of two states and two actions: where each action leads from each state, and what it pays.
NEXT, PAYS = ((0, 1), (1, 0)), ((0.0, -0.3), (1.0, 0.2))
HORIZON = 3


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bandit(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Returns and log-probabilities of all arms."""
    return REWARDS.to(theta.dtype), theta.log_softmax(0)


def chain(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Returns and log-probabilities of all trajectories of the chain; theta is (state, action)."""
    logs, paid, found = theta.log_softmax(1), [], []
    for actions in itertools.product((0, 1), repeat=HORIZON):
        state, total, log = 0, 0.0, torch.zeros((), dtype=theta.dtype)
        for a in actions:
            log, total, state = log + logs[state, a], total + PAYS[state][a], NEXT[state][a]
        paid.append(total)
        found.append(log)
    return torch.tensor(paid, dtype=theta.dtype), torch.stack(found)


@pytest.mark.parametrize(("world", "shape"), [(bandit, (4,)), (chain, (2, 2))])
def test_products_are_unbiased(world: Any, shape: tuple[int, ...]) -> None:
    """The mean over all trajectories, each by its probability, of the estimate from one is the Hessian times v."""
    theta = noise(shape, 0).requires_grad_()
    v = noise(shape, 1)

    def expected(t: Tensor) -> Tensor:
        paid, logs = world(t)
        return -(logs.exp() * paid).sum()

    want = torch.autograd.functional.hvp(expected, theta.detach(), v)[1]
    paid, logs = world(theta)
    got = torch.zeros(shape, dtype=torch.float64)
    for i in range(len(paid)):
        paid, logs = world(theta)
        one = hessian_product(-(paid * logs)[i : i + 1], logs[i : i + 1], [theta], [v])[0]
        got += logs[i].detach().exp() * one
    assert float((got - want).abs().max()) < 1e-14
    assert float(want.abs().max()) > 0.01
    # A batch is the mean of its trajectories.
    paid, logs = world(theta)
    batch = hessian_product(-(paid * logs)[:2], logs[:2], [theta], [v])[0]
    singles = []
    for i in range(2):
        paid, logs = world(theta)
        singles.append(hessian_product(-(paid * logs)[i : i + 1], logs[i : i + 1], [theta], [v])[0])
    assert float((batch - (singles[0] + singles[1]) / 2).abs().max()) < 1e-14


SHAPES = [(5, 3), (7,), ()]


def loss_of(params: list[Any]) -> Tensor:
    total: Any = 0.0
    for i, p in enumerate(params):
        c = noise(tuple(p.shape), 30 + i).abs().to(p.dtype) + 0.5
        total = total + (0.5 * c * p * p + 0.05 * p**4).sum()
    return total  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["HARPG", "NHARPG"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_follows_the_paper_in_double(name: str, eta: float) -> None:
    lr = 0.2 if name == "HARPG" else 1.5
    params = [nn.Parameter(noise(s, i, torch.float32)) for i, s in enumerate(SHAPES)]
    opt = getattr(lt.optim, name)(params, lr=lr, eta=eta, seed=4)
    now = [p.detach().double() for p in params]
    before: list[Tensor] = now
    d: list[Tensor] = []
    for t in range(25):
        leaves = [p.clone().requires_grad_() for p in now]
        g = list(torch.autograd.grad(loss_of(leaves), leaves))
        if t == 0:
            d = g
        else:
            b = float(torch.rand((), generator=torch.Generator().manual_seed(4 * 1_000_003 + t)))
            v = [x - y for x, y in zip(now, before, strict=True)]
            at = [(y + b * w).requires_grad_() for y, w in zip(before, v, strict=True)]
            grads = torch.autograd.grad(loss_of(at), at, create_graph=True)
            hv = torch.autograd.grad(grads, at, v)
            rate = min(1.0, eta * 2 / (t + 2))
            d = [(1 - rate) * (x + h) + rate * y for x, h, y in zip(d, hv, g, strict=True)]
        norm = float(torch.cat([x.flatten() for x in d]).norm()) if name == "NHARPG" else 1.0
        gamma = lr * (2 / (t + 2)) ** (1.0 if name == "NHARPG" else 0.5)
        before, now = now, [p - gamma * x / norm for p, x in zip(now, d, strict=True)]
        loss = opt.step(lambda: loss_of(params))
        assert float(loss) == pytest.approx(float(loss_of(before)), rel=1e-4)
    for p, q in zip(params, now, strict=True):
        assert float((p.detach() - q).norm()) <= 1e-5
    assert float(loss_of(now)) < 0.5 * float(loss_of([noise(s, i) for i, s in enumerate(SHAPES)]))


@pytest.mark.parametrize("name", ["HARPG", "NHARPG"])
def test_learns_the_chain_from_samples(name: str) -> None:
    """From a return of 0.3 to nine tenths of the best policy's."""
    theta = nn.Parameter(torch.zeros(2, 2))
    opt = getattr(lt.optim, name)([theta], lr=1.0)
    generator = torch.Generator().manual_seed(0)

    def closure() -> tuple[Tensor, Tensor]:
        paid, logs = chain(theta)
        drawn = torch.multinomial(logs.detach().exp(), 16, replacement=True, generator=generator)
        return -paid[drawn] * logs[drawn], logs[drawn]

    best = float(chain(theta)[0].max())
    start = float((chain(theta)[1].exp() * chain(theta)[0]).sum().detach())
    for _ in range(150):
        opt.step(closure)
    end = float((chain(theta)[1].exp() * chain(theta)[0]).sum().detach())
    assert start < 0.5 * best
    assert end > 0.9 * best


def test_weights_come_back_when_a_closure_raises() -> None:
    p = nn.Parameter(noise((6,), 0, torch.float32))
    opt = lt.optim.NHARPG([p])
    opt.step(lambda: (p**2).sum())
    before, saved = (
        p.detach().clone(),
        {k: v.clone() for k, v in opt.state[p].items() if isinstance(v, Tensor)},
    )
    seen = []

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        raise ValueError("the simulator died")

    with pytest.raises(ValueError, match="simulator"):
        opt.step(closure)
    assert not torch.equal(seen[0], before)
    assert torch.equal(p, before)
    assert all(torch.equal(v, opt.state[p][k]) for k, v in saved.items())


def test_bad_closures_and_settings_are_named() -> None:
    p = nn.Parameter(noise((6,), 0, torch.float32))
    opt = lt.optim.NHARPG([p])
    for result, match in (
        (3.0, "float"),
        (torch.zeros(()), "graph"),
        ((p, p[:3]), "log-probabilities"),
        (p * 1.0, "dimensions"),
    ):
        with pytest.raises(lt.LowtideTypeError, match=match):
            opt.step(lambda result=result: result)
    opt.step(lambda: (p**2).sum())
    with pytest.raises(lt.LowtideRuntimeError, match="correct"):
        opt.step()
    with pytest.raises(lt.LowtideValueError, match="shape"):
        opt.correct({p: torch.zeros(3)})
    with pytest.raises(lt.LowtideValueError, match="eta"):
        lt.optim.HARPG([p], eta=0.0)
