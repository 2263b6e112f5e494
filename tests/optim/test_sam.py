# SPDX-License-Identifier: Apache-2.0
"""SAM and ASAM by their formulas in double, around several optimizers, and what they must leave alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.testing import OPTIMIZER_CHECKS, optimizer_contract


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(12, 7), (30,), (2, 3, 4), ()]
TARGETS = [noise(s, 40 + i) for i, s in enumerate(SHAPES)]


def loss_of(params: list[Any]) -> Tensor:
    total: Any = 0.0
    for p, t in zip(params, TARGETS, strict=True):
        d = p - t.to(p.dtype)
        total = total + (0.02 * d**4 + 0.5 * d * d).sum()
    return total  # type: ignore[no-any-return]


def closure_of(params: list[Any], opt: Any) -> Any:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(params)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("way", ["closure", "two steps"])
def test_follows_the_papers_in_double(adaptive: bool, way: str) -> None:
    rho, eta, lr = 0.3, 0.02, 0.03
    params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
    opt = lt.optim.SAM(
        params, lambda p: lt.optim.SGD(p, lr=lr, momentum=0.9), rho=rho, adaptive=adaptive, eta=eta
    )
    want = [p.detach().double() for p in params]
    ms = [torch.zeros_like(p) for p in want]
    for _ in range(25):
        leaves = [p.clone().requires_grad_() for p in want]
        gs = torch.autograd.grad(loss_of(leaves), leaves)
        ts = [p.abs() + eta if adaptive else torch.ones_like(p) for p in want]
        norm = torch.stack([(t * g).square().sum() for t, g in zip(ts, gs, strict=True)]).sum().sqrt()
        moved = [
            (p + rho * t * t * g / (norm + 1e-12)).requires_grad_()
            for p, t, g in zip(want, ts, gs, strict=True)
        ]
        gs = torch.autograd.grad(loss_of(moved), moved)
        ms = [0.9 * m + g for m, g in zip(ms, gs, strict=True)]
        want = [p - lr * m for p, m in zip(want, ms, strict=True)]
        if way == "closure":
            opt.step(closure_of(params, opt))
        else:
            loss_of(params).backward()  # type: ignore[no-untyped-call]
            opt.first_step(zero_grad=True)
            loss_of(params).backward()  # type: ignore[no-untyped-call]
            opt.second_step(zero_grad=True)
    for p, q in zip(params, want, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= 1e-5


def sam(**options: Any) -> Any:
    """Both steps by the contract's gradients, which do not depend on the weights: a closure that has nothing to evaluate."""

    class Twice(lt.optim.SAM):
        def second_step(self, zero_grad: bool = False) -> None:
            if not self._perturbed:
                self.first_step()
            super().second_step(zero_grad)

    def make(params: Any, **k: Any) -> torch.optim.Optimizer:
        return Twice(
            params, lambda p: lt.optim.AdamW8bit(p, **{"lr": 1e-2, "min_8bit_size": 0, **k}), **options
        )

    return make


@pytest.mark.parametrize("check", OPTIMIZER_CHECKS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_contract(check: str, adaptive: bool) -> None:
    optimizer_contract(sam(adaptive=adaptive), checks=[check])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    params = [nn.Parameter(noise(s, i).to(dtype)) for i, s in enumerate(SHAPES)]
    before = [p.detach().clone() for p in params]
    opt = lt.optim.SAM(params, lambda p: lt.optim.AdamW(p, lr=0.0), rho=0.5)
    loss_of(params).backward()  # type: ignore[no-untyped-call]
    opt.first_step()
    assert not any(torch.equal(a, p) for a, p in zip(before, params, strict=True))
    if dtype == torch.float32:
        moved = sum(float((p.detach() - a).square().sum()) for a, p in zip(before, params, strict=True))
        assert moved**0.5 == pytest.approx(0.5, rel=1e-5)
    assert opt.state_bytes()["perturbed"] == sum(p.nbytes for p in params)
    with pytest.raises(lt.LowtideRuntimeError, match="perturbed"):
        opt.state_dict()
    with pytest.raises(lt.LowtideRuntimeError, match="twice"):
        opt.first_step()
    opt.second_step()
    assert all(torch.equal(a, p) for a, p in zip(before, params, strict=True))
    assert opt.state_bytes()["perturbed"] == 0


def batch_normed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.randn(32, 5)


@pytest.mark.parametrize("named", [False, True])
def test_running_statistics_are_of_the_first_pass(named: bool) -> None:
    model, x = batch_normed()
    twin = copy.deepcopy(model)
    opt = lt.optim.SAM(
        model.parameters(), lambda p: lt.optim.SGD(p, lr=0.1), rho=1.0, model=model if named else None
    )

    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    loss = opt.step(closure)
    assert float(loss.detach()) == float(twin(x).square().mean().detach())
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    model(x)  # hooks are gone: statistics move again
    assert not any(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_a_loss_that_raises_leaves_all_as_it_was() -> None:
    model, x = batch_normed()
    opt = lt.optim.SAM(model.parameters(), lambda p: lt.optim.SGD(p, lr=0.1), rho=1.0)
    before = [t.clone() for t in model.state_dict().values()]
    calls = []

    def closure() -> Tensor:
        opt.zero_grad()
        calls.append(None)
        loss = model(x).square().mean()
        loss.backward()
        if len(calls) == 2:
            raise ValueError("broken")
        return loss  # type: ignore[no-any-return]

    twin = copy.deepcopy(model)
    twin(x)
    with pytest.raises(ValueError, match="broken"):
        opt.step(closure)
    for (name, value), old in zip(model.state_dict().items(), before, strict=True):
        want = twin.state_dict()[name] if "running" in name or "num_" in name else old
        assert torch.equal(value, want), name
    assert opt.step(closure) is not None


def test_without_a_neighbourhood_it_is_the_base() -> None:
    runs = []
    for wrap in (False, True):
        params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
        opt: Any = lt.optim.AdamW(params, lr=0.05)
        if wrap:
            opt = lt.optim.SAM(params, lambda p: lt.optim.AdamW(p, lr=0.05), rho=0.0)
        for _ in range(5):
            opt.step(closure_of(params, opt))
        runs.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_other_bases() -> None:
    """Low rank, and torch's own in double."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    x = torch.randn(64, 32)
    opt = lt.optim.SAM(
        lt.optim.param_groups(model, rank=4, scale=1.0), lambda p: lt.optim.GaLoreAdamW(p, lr=2e-2), rho=0.1
    )

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (model(x) - x[:, :4]).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    losses = [float(opt.step(closure).detach()) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    params = [nn.Parameter(noise(s, i).double()) for i, s in enumerate(SHAPES)]
    theirs = lt.optim.SAM(params, lambda p: torch.optim.SGD(p, lr=0.05))
    ends = [float(theirs.step(closure_of(params, theirs)).detach()) for _ in range(20)]
    assert ends[-1] < 0.2 * ends[0]
    with pytest.raises(lt.LowtideTypeError, match="bytes"):
        theirs.state_bytes()


def test_bad_choices_are_named() -> None:
    p = [nn.Parameter(torch.zeros(4))]
    packed = lt.quant.Linear.from_linear(nn.Linear(64, 64), bits=8)
    for bad, match in (
        (lambda: lt.optim.SAM(p, lt.optim.AdamW, rho=-1.0), "rho"),
        (lambda: lt.optim.SAM(p, lt.optim.AdamW, eta=float("nan")), "eta"),
        (lambda: lt.optim.SAM(p, None), "base"),  # type: ignore[arg-type]
        (lambda: lt.optim.SAM(p, lambda _: 3), "base"),  # type: ignore[arg-type,return-value]
        (lambda: lt.optim.SAM(p, lt.optim.AdaHessian), "base"),
        (lambda: lt.optim.SAM(packed.parameters(), lt.optim.AdamW), "dense"),
        (lambda: lt.optim.SAM(p, lt.optim.AdamW).step(), "closure"),
    ):
        with pytest.raises(lt.LowtideError, match=match):
            bad()
