# SPDX-License-Identifier: Apache-2.0
"""Weights as magnitudes and directions: the gradients are autograd's, the steps those of training both explicitly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.optim import Composed, GradNormLoRP, WeightNorm
from lowtide.optim.rules_factored import AdafactorRule

Rule = lt.optim.Rule


def target(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(20, shape[1], generator=generator)
    y = torch.randn(20, shape[0], generator=generator)

    def loss(w: Tensor) -> Tensor:
        return (x @ w.T - y).square().mean()

    return loss


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 33), (40, 17)])
def test_gradients_are_those_of_autograd(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape)
    loss = target(shape)
    g = w.norm(dim=1).double().requires_grad_(True)
    v = w.double().requires_grad_(True)
    double = target(shape)

    def explicit(x: Tensor) -> Tensor:
        # The same loss in double, so that only the formulas are compared.
        return double(x.float()) if x.dtype == torch.float32 else _in_double(double, x)

    explicit(g[:, None] * v / v.norm(dim=1, keepdim=True)).backward()
    p = nn.Parameter(w.clone())
    loss(p).backward()
    assert p.grad is not None
    polar = WeightNorm().split(p, p.grad)
    assert g.grad is not None
    assert v.grad is not None
    # float32 sums of up to 40 terms.
    size = float(p.grad.abs().max())
    torch.testing.assert_close(polar.radial, g.grad.float(), rtol=1e-5, atol=1e-5 * size)
    torch.testing.assert_close(polar.grad, v.grad.float(), rtol=1e-5, atol=1e-5 * size)
    # The direction's gradient is at right angles to the direction.
    assert float((polar.grad * w).sum(1).abs().max()) <= 1e-5 * size * float(w.abs().max()) * shape[1]


def _in_double(loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    x, y = (c.cell_contents.double() for c in loss.__closure__ or ())
    return (x @ w.T - y).square().mean()


def explicit_training(w: Tensor, make: Callable[..., torch.optim.Optimizer], lr: float, steps: int) -> Tensor:
    """g and v as two parameters of torch; v is given the length g after each step."""
    loss = target(tuple(w.shape))
    g, v = nn.Parameter(w.norm(dim=1)), nn.Parameter(w.clone())
    optimizer = make([g, v], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(g[:, None] * v / v.norm(dim=1, keepdim=True)).backward()
        optimizer.step()
        with torch.no_grad():
            v *= (g / v.norm(dim=1))[:, None]
    return v.detach()


@pytest.mark.parametrize("shape", [(12, 12), (30, 17), (17, 30)])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_steps_are_those_of_training_both(shape: tuple[int, int], name: str) -> None:
    torch.manual_seed(1)
    w = torch.randn(shape)
    rule: Rule = {
        "sgd": lt.optim.SGDRule(0.0),
        "momentum": lt.optim.SGDRule(0.9),
        "adam": lt.optim.AdamRule((0.9, 0.999), 1e-8),
    }[name]
    make: Callable[..., torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD,
        "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "adam": torch.optim.Adam,
    }[name]
    # Small enough that no magnitude meets zero, where ours stays and the explicit one changes its sign.
    lr = {"sgd": 0.2, "momentum": 0.03, "adam": 1e-2}[name]
    p = nn.Parameter(w.clone())
    # All columns or rows: a subspace that changes no coordinate.
    group = {"params": [p], "rank": min(shape), "update_proj_gap": 100}
    opt = Composed([group], lr=lr, rule=rule, subspace=lt.optim.RandomIndices(), parametrization=WeightNorm())
    for _ in range(15):
        opt.zero_grad()
        target(shape)(p).backward()
        opt.step()
    want = explicit_training(w, make, lr, 15)
    assert float((want - w).norm()) > 0.1
    # 15 steps of float32; Adam divides by roots of small numbers.
    torch.testing.assert_close(p.detach(), want, rtol=1e-4, atol=2e-4 if name == "adam" else 1e-5)


def low(p: Tensor, **keys: object) -> list[dict[str, object]]:
    return [{"params": [p], "rank": 4, "scale": 1.0, **keys}]


def test_a_radial_gradient_moves_magnitudes_only() -> None:
    torch.manual_seed(2)
    p = nn.Parameter(torch.randn(16, 24))
    before = p.detach().clone()
    opt = Composed(low(p), lr=0.1, rule=lt.optim.SGDRule(0.0), parametrization=WeightNorm())
    for _ in range(3):
        p.grad = p.detach() / p.detach().norm(dim=1, keepdim=True)
        opt.step()
    cosines = nn.functional.cosine_similarity(p.detach(), before)
    torch.testing.assert_close(cosines, torch.ones(16), rtol=0, atol=1e-6)
    torch.testing.assert_close(before.norm(dim=1) - p.detach().norm(dim=1), torch.full((16,), 0.3))


def test_decay_shrinks_magnitudes() -> None:
    torch.manual_seed(3)
    p = nn.Parameter(torch.randn(16, 24))
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    GradNormLoRP(low(p), lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), 0.95 * before)


def test_magnitudes_do_not_become_negative() -> None:
    p = nn.Parameter(torch.full((4, 8), 1e-3))
    opt = GradNormLoRP(low(p, proj_type="std"), lr=1.0)
    p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(p.detach(), torch.zeros(4, 8))
    p.grad = -torch.ones_like(p)
    opt.step()  # rows of zeros move plainly
    assert bool((p > 0).all())


def test_rows_of_zeros_start() -> None:
    """B of a LoRA adapter: no direction yet."""
    torch.manual_seed(4)
    p = nn.Parameter(torch.zeros(24, 16))
    opt = GradNormLoRP(low(p), lr=2e-2)
    loss = target((24, 16))
    losses = []
    for _ in range(40):
        opt.zero_grad()
        value = loss(p)
        value.backward()
        opt.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
    assert bool(p.isfinite().all())


def test_both_sides_are_projected() -> None:
    """As in the paper: moments r x r, and a step within both subspaces of the direction's gradient."""
    torch.manual_seed(8)
    p = nn.Parameter(torch.randn(24, 40))
    before = p.detach().clone()
    p.grad = torch.randn(24, 40)
    G = WeightNorm().split(p, p.grad).grad
    opt = Composed(
        low(p, proj_type="full"), lr=0.1, rule=lt.optim.SGDRule(0.0), subspace=lt.optim.ExactSVD(),
        parametrization=WeightNorm(),
    )  # fmt: skip
    opt.step()
    u, s, vh = torch.linalg.svd(G)
    v = before - 0.1 * (u[:, :4] * s[:4]) @ vh[:4]
    magnitude = before.norm(dim=1) - 0.1 * (p.grad * before).sum(1) / before.norm(dim=1)
    want = v * (magnitude / v.norm(dim=1))[:, None]
    torch.testing.assert_close(p.detach(), want, rtol=1e-4, atol=1e-4)
    adam = GradNormLoRP(low(p), lr=1e-2)  # its default
    adam.step()
    assert adam.state[p]["exp_avg"].shape == (4, 4)


def test_conv_weights_and_state_bytes() -> None:
    torch.manual_seed(5)
    conv = nn.Conv2d(8, 16, 3)
    groups = [{"params": [conv.weight], "rank": 4, "proj_type": "std"}, {"params": [conv.bias]}]
    opt = GradNormLoRP(groups, lr=1e-2)
    conv(torch.randn(2, 8, 5, 5)).square().sum().backward()
    opt.step()
    state = opt.state[conv.weight]
    assert state["exp_avg"].shape == (4, 72)
    assert state["magnitude.exp_avg"].shape == state["magnitude.exp_avg_sq"].shape == (16,)
    assert "magnitude.exp_avg" not in opt.state[conv.bias]
    assert opt.state_bytes()["states"] == 2 * 4 * (4 * 72 + 16 + 16)


def test_what_does_not_go_together_is_refused() -> None:
    p = nn.Parameter(torch.randn(16, 24))
    with pytest.raises(lt.LowtideValueError, match="constraint cannot hold with a parametrization"):
        GradNormLoRP(low(p), constraint=lt.optim.Perpendicular())
    with pytest.raises(
        lt.LowtideValueError, match="needs an elementwise rule such as AdamRule, got AdafactorRule"
    ):
        Composed(low(p), rule=AdafactorRule(), parametrization=WeightNorm())
    saved = lt.optim.GaLoreAdamW(low(p))
    p.grad = torch.ones_like(p)
    saved.step()
    with pytest.raises(lt.LowtideValueError, match=r"'magnitude.exp_avg' does not fit"):
        GradNormLoRP(low(p, proj_type="std")).load_state_dict(saved.state_dict())


def test_dora_adapters_train() -> None:
    peft = pytest.importorskip("peft", reason="DoRA is PEFT's (pip install lowtide[peft])")
    torch.manual_seed(6)
    base = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, use_dora=True, target_modules=["0", "2"]))
    groups = lt.optim.param_groups(model, rank=4, scale=1.0)
    assert sum(p.numel() for g in groups if "rank" in g for p in g["params"]) == 8 * (32 + 64 + 64 + 8)
    opt = GradNormLoRP(groups, lr=1e-2)
    x, y = torch.randn(64, 32), torch.randn(64, 8)
    losses = []
    for _ in range(40):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
