# SPDX-License-Identifier: Apache-2.0
"""Where the second moment of AdaHessian and Sophia comes from: products with the Hessian, sampled gradients, or from outside."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_of(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(7)
    x, y = torch.randn(16, 6, generator=g), torch.randint(3, (16,), generator=g)
    return nn.functional.cross_entropy(model(x), y)


def diagonal(model: nn.Module) -> list[Tensor]:
    """The Hessian's, exact, in double."""
    params = {k: p.detach().double() for k, p in model.named_parameters()}

    g = torch.Generator().manual_seed(7)
    x, y = torch.randn(16, 6, generator=g).double(), torch.randint(3, (16,), generator=g)

    def f(values: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    rows = torch.func.hessian(f)(params)
    return [rows[k][k].reshape(p.numel(), p.numel()).diagonal().reshape(p.shape) for k, p in params.items()]


def closure_of(model: nn.Module, opt: Any, graph: bool) -> Any:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(model)
        loss.backward(create_graph=graph and opt.curvature_due)
        return loss

    return closure


@pytest.mark.parametrize("products", ["double", "fd"])
def test_products_average_to_the_diagonal(products: str) -> None:
    """400 probes: within 4 standard errors of Rademacher probes, sqrt(sum of squares beside the diagonal / probes)."""
    model = model_of()
    opt = lt.optim.SophiaH(
        model.parameters(), lr=0.0, betas=(0.0, 0.0), update_each=1, products=products, probes=400
    )
    opt.step(closure_of(model, opt, products == "double"))
    for p, d in zip(model.parameters(), diagonal(model), strict=True):
        assert float((opt.state[p]["hessian"] - d).abs().max()) < 4 * 0.2 / 400**0.5
    assert max(float(d.abs().max()) for d in diagonal(model)) > 0.1


def test_both_kinds_of_products_agree() -> None:
    got = []
    for products in ("double", "fd"):
        model = model_of()
        opt = lt.optim.SophiaH(
            model.parameters(), lr=1e-3, betas=(0.9, 0.0), update_each=1, products=products
        )
        loss = opt.step(closure_of(model, opt, products == "double"))
        assert float(loss.detach()) == float(loss_of(model_of()).detach())
        got.append(torch.cat([opt.state[p]["hessian"].flatten() for p in model.parameters()]))
    # Central differences in float32: the error of a product is some 1e-3 of it (docs/curvature.md).
    assert float((got[0] - got[1]).norm() / got[0].norm()) < 5e-3


def test_probes_are_a_function_of_the_seed() -> None:
    def moments(seed: int) -> Tensor:
        model = model_of()
        opt = lt.optim.AdaHessian(model.parameters(), lr=0.1, seed=seed)
        opt.step(closure_of(model, opt, True))
        return torch.cat([opt.state[p]["exp_hessian_diag_sq"].flatten() for p in model.parameters()])

    assert torch.equal(moments(1), moments(1))
    assert not torch.equal(moments(1), moments(2))


def test_differences_change_nothing_but_what_a_step_changes() -> None:
    """Weights bit for bit, buffers as after one forward, random numbers as after one evaluation; also when the loss raises."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(16, 6)
    calls = []
    opt = lt.optim.AdaHessian(model.parameters(), lr=0.0, products="fd")

    def closure() -> Tensor:
        opt.zero_grad()
        calls.append([p.detach().clone() for p in model.parameters()])
        if len(calls) == 5:
            raise RuntimeError("out of data")
        loss = model(x).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    loss = opt.step(closure)
    random_after = torch.get_rng_state()
    assert len(calls) == 3
    assert not any(torch.equal(a, b) for a, b in zip(calls[0], before, strict=True))
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    stats = [b.clone() for b in model.buffers()]
    twin = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        for p, value in zip(twin.parameters(), before, strict=True):
            p.copy_(value)
    torch.manual_seed(1)
    assert float(twin(x).square().mean().detach()) == float(loss.detach())
    assert torch.equal(torch.get_rng_state(), random_after)
    assert all(torch.equal(a, b) for a, b in zip(stats, twin.buffers(), strict=True))
    with pytest.raises(RuntimeError, match="out of data"):
        opt.step(closure)
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stats, model.buffers(), strict=True))


def test_bartlett_squares_sampled_gradients() -> None:
    model = model_of()
    opt = lt.optim.SophiaG(model.parameters(), betas=(0.9, 0.75), batch_size=16, update_each=3)
    due = []
    for t in range(5):
        due.append(opt.curvature_due)
        if opt.curvature_due:
            opt.update_curvature(closure_of(model, opt, False))
            if t == 0:
                for p in model.parameters():
                    want = 0.25 * 16 * p.grad.square()
                    assert torch.allclose(opt.state[p]["hessian"], want, rtol=1e-6)
            assert not opt.curvature_due
        opt.step(closure_of(model, opt, False))
    assert due == [True, False, False, True, False]


def test_a_step_without_curvature_is_refused() -> None:
    model = model_of()
    opt = lt.optim.AdaHessian(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model).backward()
    with pytest.raises(lt.LowtideRuntimeError, match="create_graph"):
        opt.step()
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert not any(opt.state.get(p) for p in model.parameters())
    with pytest.raises(lt.LowtideRuntimeError, match="create_graph"):
        opt.update_curvature()
    opt.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the cycle that the step breaks
        loss_of(model).backward(create_graph=True)
    opt.step()
    assert not any(p.grad.requires_grad for p in model.parameters())
    assert not any(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_samples_from_outside() -> None:
    model = model_of()
    opt = lt.optim.AdaHessian(model.parameters(), betas=(0.9, 0.0))
    d = dict(zip(model.parameters(), diagonal(model), strict=True))
    opt.update_curvature(samples=d)
    for p, want in d.items():
        assert torch.allclose(opt.state[p]["exp_hessian_diag_sq"], want.float().square())
    with pytest.raises(lt.LowtideValueError, match="shape"):
        opt.update_curvature(samples={model[0].weight: torch.zeros(3)})
    with pytest.raises(lt.LowtideValueError, match="in no group"):
        opt.update_curvature(samples={nn.Parameter(torch.zeros(3)): torch.zeros(3)})


def test_bad_choices_are_named() -> None:
    p = [nn.Parameter(torch.zeros(4, 4))]
    for bad, match in (
        (lambda: lt.optim.Composed(p, rule=lt.optim.SophiaRule()), "curvature"),
        (lambda: lt.optim.Composed(p, curvature=lt.optim.Hutchinson()), "curvature"),
        (lambda: lt.optim.AdaHessian(p, products="triple"), "products"),
        (lambda: lt.optim.AdaHessian(p, update_each=0), "every"),
        (lambda: lt.optim.AdaHessian(p, hessian_power=2.0), "power"),
        (lambda: lt.optim.SophiaG(p, batch_size=0), "batch_size"),
        (lambda: lt.optim.SophiaG(p, batch_size=1, rho=0.0), "rho"),
        (lambda: lt.optim.AdaHessian([{"params": p, "rank": 2}]), "rank"),
        (lambda: lt.optim.in_backward(lt.optim.AdaHessian(p), nn.Linear(2, 2)), "in_backward"),
        (lambda: lt.optim.Hutchinson(probes=0), "probes"),
        (lambda: lt.optim.Hutchinson(fd_step=0.0), "fd_step"),
    ):
        with pytest.raises(lt.LowtideError, match=match):
            bad()
    with pytest.raises(lt.LowtideRuntimeError, match="AdaHessian"):
        lt.optim.AdamW(p).update_curvature()
    half = [nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))]
    opt = lt.optim.AdaHessian(half, products="fd")
    with pytest.raises(lt.LowtideTypeError, match="double"):
        opt.step(lambda: None)


def test_parameters_without_gradients_ask_for_nothing_and_late_ones_wait() -> None:
    """A parameter that is never used does not make every step due; one that comes between estimates waits for the next."""
    used, unused, late = (nn.Parameter(torch.ones(5)) for _ in range(3))
    opt = lt.optim.AdaHessian([used, unused, late], lr=0.1, update_each=3)
    due = []
    for t in range(6):
        opt.zero_grad()
        loss = (used**2).sum() + ((late**2).sum() if t >= 1 else 0.0)
        due.append(opt.curvature_due)
        loss.backward(create_graph=opt.curvature_due)
        opt.step()
        assert torch.equal(unused, torch.ones(5))
        assert torch.equal(late, torch.ones(5)) == (t < 3)
    assert due == [True, False, False, True, False, False]
    assert not opt.state.get(unused)
