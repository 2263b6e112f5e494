# SPDX-License-Identifier: Apache-2.0
"""GradNormSmooth on LogSumExp and on networks: steps by the formula, dense and by conjugate gradients, and what it refuses."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.curvature import GGNOperator, HessianOperator, MatrixOperator

MU = 0.3
A = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
A = A - (torch.zeros(60, dtype=torch.float64).softmax(0) @ A)  # the minimum is near the origin
B = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def log_sum_exp(x: Tensor) -> Tensor:
    """Paper's test problem: mu log sum exp((a_i x - b_i) / mu)."""
    return MU * torch.logsumexp((A @ x - B) / MU, 0)


def derivatives(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, gradient and Hessian, in closed form."""
    p = ((A @ x - B) / MU).softmax(0)
    g = A.T @ p
    return float(log_sum_exp(x)), g, (A.T @ (p[:, None] * A) - torch.outer(g, g)) / MU


def reference(x: Tensor, steps: int, weighted: bool = False) -> tuple[Tensor, list[float]]:
    """Algorithm and closed forms, in double; ``weighted`` drops the rank-one part of the Hessian."""
    gamma, losses = 1.0, []
    for _ in range(steps):
        f, g, h = derivatives(x)
        losses.append(f)
        if weighted:
            h = h + torch.outer(g, g) / MU
        for _ in range(40):
            lam = g.norm() / (gamma + 1e-8)
            new = x - torch.linalg.solve(h + lam * torch.eye(12, dtype=torch.float64), g)
            f_new, g_new, _ = derivatives(new)
            if f - f_new >= g_new.norm() ** 2 / (8 * lam):
                x, gamma = new, max(2 * gamma, 1e-9)
                break
            gamma /= 2
    return x, losses


class Weighted(MatrixOperator):
    """A' diag(softmax) A / mu at the weights as they are."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(torch.eye(12, dtype=torch.float64), positive=True)
        self.x = x

    def _product(self, v: Tensor, out: Tensor) -> None:
        p = ((A @ self.x.detach() - B) / MU).softmax(0)
        out.copy_(A.T @ (p * (A @ v)) / MU)


def start() -> nn.Parameter:
    return nn.Parameter(3.0 * torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("weighted", [False, True])
def test_follows_the_paper_on_log_sum_exp(solver: str, weighted: bool) -> None:
    x = start()
    opt = lt.optim.GradNormSmooth(
        [x], solver=solver, operator=Weighted(x) if weighted else None, cg_tol=1e-12
    )
    steps = 20 if weighted else 10  # the exact one has only rounding left to compare after that
    want, losses = reference(x.detach().clone(), steps, weighted)
    got = [opt.step(lambda: log_sum_exp(x)) for _ in range(steps)]
    assert got == pytest.approx(losses, rel=1e-9)
    assert float((x.detach() - want).norm()) < 1e-6 * float(want.norm())
    assert all(b < a for a, b in itertools.pairwise(got))
    assert opt.last is not None
    assert opt.last.accepted
    assert opt.last.products == 12 or solver == "cg"
    assert set(opt.last.to_dict()) >= {"loss", "gamma", "trials"}


def test_converges_to_the_minimum_and_then_stays() -> None:
    x = start()
    opt = lt.optim.GradNormSmooth([x])
    for _ in range(40):
        opt.step(lambda: log_sum_exp(x))
    assert float(derivatives(x.detach())[1].norm()) < 1e-8
    assert opt.last is not None
    gamma, at = opt.last.gamma, x.detach().clone()
    if not opt.last.accepted:
        assert torch.equal(at, x)
        assert opt.param_groups[0]["gamma"] == gamma
    flat = nn.Parameter(torch.zeros(3))
    still = lt.optim.GradNormSmooth([flat])
    still.step(lambda: (flat**2).sum())
    assert not still.last.accepted  # type: ignore[union-attr]
    assert not flat.any()


def test_an_indefinite_start_is_damped_until_it_descends() -> None:
    """Rosenbrock's valley from where its Hessian has a negative eigenvalue."""
    p = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))

    def rosenbrock() -> Tensor:
        return (1 - p[0]) ** 2 + 10 * (p[1] - p[0] ** 2) ** 2

    hessian = torch.autograd.functional.hessian(
        lambda q: (1 - q[0]) ** 2 + 10 * (q[1] - q[0] ** 2) ** 2, p.detach()
    )
    assert float(torch.linalg.eigvalsh(hessian)[0]) < 0
    for solver in ("dense", "cg"):
        with torch.no_grad():
            p.copy_(torch.tensor([0.0, 1.0], dtype=torch.float64))
        opt = lt.optim.GradNormSmooth([p], solver=solver, gamma=100.0)
        losses = [opt.step(rosenbrock) for _ in range(60)]
        assert all(b <= a for a, b in itertools.pairwise(losses))
        assert float((p.detach() - 1.0).norm()) < 1e-4


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    return nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)), x, (x[:, :3] * 2).argmax(1)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_operators_of_a_model_bring_their_own_loss(kind: Any, solver: str) -> None:
    model, x, y = regression()
    params = list(model.parameters())
    operator = kind(model, None, (x, y), "cross_entropy")
    opt = lt.optim.GradNormSmooth(params, operator=operator, solver=solver)
    losses = [opt.step() for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in params)
    assert opt.last.products > 0  # type: ignore[union-attr]


def test_the_closure_and_the_operator_take_the_same_steps() -> None:
    ends = []
    for way in ("closure", "operator"):
        model, x, y = regression()
        model, x = model.double(), x.double()
        params = list(model.parameters())
        loss = nn.CrossEntropyLoss()
        if way == "closure":
            opt = lt.optim.GradNormSmooth(params)
            for _ in range(5):
                opt.step(lambda m=model, x=x, y=y: nn.functional.cross_entropy(m(x), y))
        else:
            opt = lt.optim.GradNormSmooth(
                params, operator=HessianOperator(model, None, (x, y), loss, method="double")
            )
            for _ in range(5):
                opt.step()
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-8


def test_gamma_is_saved() -> None:
    x, y = start(), start()
    one, other = lt.optim.GradNormSmooth([x]), lt.optim.GradNormSmooth([y])
    for _ in range(3):
        one.step(lambda: log_sum_exp(x))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        y.copy_(x)
    for _ in range(3):
        one.step(lambda: log_sum_exp(x))
        other.step(lambda: log_sum_exp(y))
    assert torch.equal(x, y)
    assert one.param_groups[0]["gamma"] != 1.0


def test_a_loss_that_raises_leaves_the_weights() -> None:
    x = start()
    opt = lt.optim.GradNormSmooth([x])
    calls = []

    def closure() -> Tensor:
        calls.append(x.detach().clone())
        if len(calls) == 2:
            raise ValueError("broken")
        return log_sum_exp(x)

    with pytest.raises(ValueError, match="broken"):
        opt.step(closure)
    assert not torch.equal(calls[0], calls[1])
    assert torch.equal(calls[0], x)
    with pytest.raises(lt.LowtideRuntimeError, match="inf"):
        opt.step(lambda: (x * float("inf")).sum())
    assert torch.equal(calls[0], x)


def test_bad_choices_are_named() -> None:
    p = nn.Parameter(torch.zeros(4))
    q = nn.Linear(2, 2)
    operator = HessianOperator(q, None, (torch.ones(3, 2), torch.ones(3, 2)), "mse")
    for bad, match in (
        (lambda: lt.optim.GradNormSmooth([p], gamma=0.0), "gamma"),
        (lambda: lt.optim.GradNormSmooth([p], solver="qr"), "solver"),
        (lambda: lt.optim.GradNormSmooth([p], cg_tol=1.0), "cg_tol"),
        (lambda: lt.optim.GradNormSmooth([p], max_trials=0), "max_trials"),
        (lambda: lt.optim.GradNormSmooth([nn.Parameter(p.bfloat16())]), "float32"),
        (lambda: lt.optim.GradNormSmooth([{"params": [p], "lr": 1.0}]), "lr"),
        (lambda: lt.optim.GradNormSmooth([{"params": [p]}, {"params": [q.weight]}]), "one group"),
        (lambda: lt.optim.GradNormSmooth([p], operator=operator), "operator"),
        (lambda: lt.optim.GradNormSmooth([q.bias, q.weight], operator=operator), "operator"),
        (lambda: lt.optim.GradNormSmooth([p]).step(), "closure"),
        (lambda: lt.optim.GradNormSmooth([p]).step(lambda: 1.0), "closure"),
    ):
        with pytest.raises(lt.LowtideError, match=match):
            bad()
