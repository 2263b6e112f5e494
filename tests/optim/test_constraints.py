# SPDX-License-Identifier: Apache-2.0
"""The constraint axis: updates stay where they may, under every rule, path and store."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.optim import NullSpace, Perpendicular, Projection
from lowtide.testing import OPTIMIZER_CHECKS, optimizer_contract


def rows(k: int, d: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64))[0].T.float()


def flat(params: Any) -> list[Tensor]:
    """The tensors in what an optimizer takes: tensors, groups of them, or pairs with names."""
    params = list(params)
    if params and isinstance(params[0], dict):
        params = [p for group in params for p in group["params"]]
    return [p[1] if isinstance(p, tuple) else p for p in params]


def null_space(params: Any) -> NullSpace:
    """Two input directions of every matrix, a function of its shape alone."""
    shapes = {p: p.shape[1:].numel() for p in flat(params) if p.dim() > 1 and p.numel()}
    return NullSpace({p: rows(2, d) for p, d in shapes.items() if d > 2})


def low_rank(params: Any) -> list[dict]:
    params = list(params)
    found = params if params and isinstance(params[0], dict) else [{"params": params}]
    return [{"rank": 4, "update_proj_gap": 3, "scale": 1.0, **g} for g in found]


SETTINGS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW in a null space": lambda p, **k: lt.optim.AdamW(
        p := list(p), **{"lr": 1e-2, "weight_decay": 0.0, "constraint": null_space(p), **k}
    ),
    "AdamW8bit in a null space": lambda p, **k: lt.optim.AdamW8bit(
        p := list(p),
        **{"lr": 1e-2, "weight_decay": 0.0, "min_8bit_size": 0, "constraint": null_space(p), **k},
    ),
    "GaLoreAdamW in a null space": lambda p, **k: lt.optim.GaLoreAdamW(
        low_rank(p := list(p)), **{"lr": 2e-2, "constraint": null_space(p), **k}
    ),
    "APOLLOMini in a null space": lambda p, **k: lt.optim.APOLLOMini(
        low_rank(p := list(p)), **{"lr": 1e-2, "constraint": null_space(p), **k}
    ),
    "AdamW perpendicular": lambda p, **k: lt.optim.AdamW(
        p, **{"lr": 1e-2, "weight_decay": 0.0, "constraint": Perpendicular(), **k}
    ),
    "SGD perpendicular update": lambda p, **k: lt.optim.SGD(
        p, **{"lr": 0.1, "constraint": Perpendicular(of="update"), **k}
    ),
    "FRUGAL perpendicular": lambda p, **k: lt.optim.FRUGAL(
        low_rank(p), **{"lr": 5e-3, "weight_decay": 0.0, "constraint": Perpendicular(rescale=False), **k}
    ),
}
#: Their gradients lie along the weights (a loss of |w|², a gradient drawn from the weight's seed): nothing is left of them.
ALONG_THE_WEIGHT = ("closure", "scheduler")
CASES = [
    (name, check)
    for name in SETTINGS
    for check in OPTIMIZER_CHECKS
    if "perpendicular" not in name or check not in ALONG_THE_WEIGHT
]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_contract(name: str, check: str) -> None:
    optimizer_contract(SETTINGS[name], checks=[check])


RULES = {
    "adamw": lambda p, **k: lt.optim.AdamW(p, lr=1e-2, weight_decay=0.1, **k),
    "adamw4bit": lambda p, **k: lt.optim.AdamW4bit(p, lr=1e-2, weight_decay=0.1, min_4bit_size=0, **k),
    "lion": lambda p, **k: lt.optim.Lion(p, lr=1e-2, weight_decay=0.1, **k),
    "sgd": lambda p, **k: lt.optim.SGD(p, lr=1e-2, weight_decay=0.1, **k),
    "galore": lambda p, **k: lt.optim.GaLoreAdamW(low_rank(p), lr=1e-2, weight_decay=0.1, **k),
    "qgalore": lambda p, **k: lt.optim.QGaLoreAdamW(low_rank(p), lr=1e-2, weight_decay=0.1, **k),
    "fira": lambda p, **k: lt.optim.FiraAdamW(low_rank(p), lr=1e-2, weight_decay=0.1, **k),
    "apollo": lambda p, **k: lt.optim.APOLLO(low_rank(p), lr=1e-2, weight_decay=0.1, **k),
    "dct": lambda p, **k: lt.optim.DCTAdamW(low_rank(p), lr=1e-2, weight_decay=0.1, **k),
}


@pytest.mark.parametrize("shape", [(33, 65), (65, 33), (8, 3, 3, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_weights_do_not_move_in_the_null_space(rule: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(shape))
    start = w.detach().clone()
    basis = rows(7, start[0].numel())
    opt = RULES[rule]([w], constraint=NullSpace({w: basis}))
    for _ in range(8):
        w.grad = torch.randn(shape)
        opt.step()
    moved = (w.detach() - start).reshape(shape[0], -1)
    assert float(moved.norm()) > 1e-3
    # Eight steps round to fp32 weights of size 1: eps of the weights, not of what moved.
    assert float((moved @ basis.T).abs().max()) < 8 * 2**-23 * float(
        start.reshape(shape[0], -1).norm(dim=1).max()
    )


def test_the_gradient_alone_is_not_enough_under_adam() -> None:
    """Why updates are projected: the same basis applied to gradients lets Adam move the protected outputs."""
    torch.manual_seed(1)
    basis = rows(5, 24)
    x = torch.randn(10, 5) @ basis  # inputs of an old task
    moved = {}
    for form in ("gradient", "update"):
        w = nn.Parameter(torch.randn(16, 24))
        before = x @ w.detach().T
        constraint = NullSpace({w: basis}) if form == "update" else None
        opt = lt.optim.AdamW([w], lr=1e-2, weight_decay=0.0, constraint=constraint)
        for _ in range(20):
            g = torch.randn(16, 24)
            w.grad = g - g @ basis.T @ basis if form == "gradient" else g
            opt.step()
        moved[form] = float((x @ w.detach().T - before).abs().max())
    assert moved["gradient"] > 1e-2
    assert moved["update"] < 1e-5


def test_partial_kept_scaled_and_two_sided_projections() -> None:
    u = torch.randn(12, 20, generator=torch.Generator().manual_seed(3))
    b, left = rows(4, 20), rows(3, 12)
    lam = torch.tensor([0.0, 0.25, 0.5, 1.0])
    want = u - (u @ b.T * lam) @ b
    assert torch.allclose(Projection(b, lam)(u), want, atol=1e-5)
    assert torch.allclose(Projection(b, keep=True, scale=0.5)(u), 0.5 * u @ b.T @ b, atol=1e-5)
    assert torch.allclose(Projection(left, side="left")(u), u - left.T @ (left @ u), atol=1e-5)
    assert torch.equal(Projection(rows(0, 20))(u), u)
    assert not Projection(rows(0, 20), keep=True)(u).any()
    w = nn.Parameter(torch.zeros(12, 20))
    both = NullSpace({w: [Projection(left, side="left"), Projection(b)]})
    out, relief = both.of_update(w, u, u)
    assert relief == 0.0
    assert float((left @ out).abs().max()) < 1e-5
    assert float((out @ b.T).abs().max()) < 1e-5
    assert both.nbytes == 4 * (4 * 20 + 3 * 12)


@pytest.mark.parametrize("of", ["gradient", "update"])
def test_perpendicular_formula(of: str) -> None:
    torch.manual_seed(0)
    w, g = torch.randn(9, 11), torch.randn(9, 11)
    p = nn.Parameter(w.clone())
    opt = lt.optim.SGD([p], lr=0.1, momentum=0.0, constraint=Perpendicular(of=of))
    p.grad = g.clone()
    opt.step()
    apart = g - (w * g).sum() / (w * w).sum() * w
    want = w - 0.1 * apart * (g.norm() / apart.norm())
    assert torch.allclose(p.detach(), want, atol=1e-6)
    assert torch.equal(p.grad, g)


def test_only_the_update_form_keeps_adams_steps_perpendicular() -> None:
    along = {}
    for of in ("gradient", "update"):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(40, 30))
        opt = lt.optim.AdamW([p], lr=1e-3, weight_decay=0.0, constraint=Perpendicular(of=of))
        worst = 0.0
        for _ in range(5):
            before = p.detach().clone()
            p.grad = torch.randn(40, 30) + before * 3.0
            opt.step()
            step = p.detach() - before
            worst = max(worst, abs(float((step * before).sum() / (step.norm() * before.norm()))))
        along[of] = worst
    assert along["update"] < 1e-4
    assert along["gradient"] > 10 * along["update"]


def test_perpendicular_leaves_scalars_and_round_off_alone() -> None:
    p = nn.Parameter(torch.tensor(3.0))
    assert not Perpendicular().holds(p)
    q = nn.Parameter(torch.arange(1.0, 9.0))
    out = Perpendicular().of_gradient(q, 2.0 * q.detach())
    assert float(out.norm()) < 1e-4
    zero = nn.Parameter(torch.zeros(5))
    assert torch.equal(Perpendicular().of_gradient(zero, torch.ones(5)), torch.ones(5))


def test_packed_weights_are_constrained_too() -> None:
    """INT8 weights move outside of the basis only, up to the rounding of their codes."""
    moved = {}
    for constrained in (False, True):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(64, 48, bias=False))
        lt.quant.quantize_model_(layer, weights="int8", group=64, skip=())
        w = layer[0].weight
        basis = rows(6, 64)
        start = w.quant.dequantize()
        constraint = NullSpace({w: basis}) if constrained else None
        opt = lt.optim.AdamW([w], lr=3e-3, weight_decay=0.0, constraint=constraint)
        for t in range(10):
            g = torch.Generator().manual_seed(t)
            layer(torch.randn(4, 64, generator=g)).sum().backward()
            opt.step()
            opt.zero_grad()
        moved[constrained] = float(((w.quant.dequantize() - start) @ basis.T).norm())
        perpendicular = lt.optim.AdamW([w], lr=1e-3, constraint=Perpendicular())
        layer(torch.ones(4, 64)).sum().backward()
        perpendicular.step()
    assert moved[True] < 0.35 * moved[False]


def test_in_backward_takes_the_same_steps() -> None:
    results = []
    for handle in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
        bases = NullSpace({model[0].weight: rows(5, 20), model[2].weight: rows(5, 30)})

        def make(m: nn.Module, bases: NullSpace = bases) -> lt.optim.Composed:
            return lt.optim.AdamW(m.parameters(), lr=1e-2, constraint=bases)

        opt = lt.optim.in_backward(make, model) if handle else make(model)
        for t in range(5):
            opt.zero_grad()
            x = torch.randn(8, 20, generator=torch.Generator().manual_seed(t))
            model(x).square().mean().backward()
            opt.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_state_loads_only_under_its_constraint() -> None:
    def run(seed: int | None, steps: int = 3) -> tuple[nn.Parameter, lt.optim.Composed]:
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(10, 12))
        constraint = None if seed is None else NullSpace({w: rows(3, 12, seed)})
        opt = lt.optim.AdamW([w], lr=1e-2, constraint=constraint)
        for _ in range(steps):
            w.grad = torch.randn(10, 12)
            opt.step()
        return w, opt

    _, opt = run(0)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    run(0, 0)[1].load_state_dict(saved)
    for seed in (1, None):
        other = run(seed, 0)[1]
        with pytest.raises(lt.LowtideValueError, match="constraint it was saved with"):
            other.load_state_dict(saved)
        assert not other.state
    with pytest.raises(lt.LowtideValueError, match="no constraint"):
        run(0, 0)[1].load_state_dict(run(None)[1].state_dict())


def test_the_next_task_brings_another_constraint() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(10, 12))
    opt = lt.optim.AdamW([w], lr=1e-2)
    w.grad = torch.randn(10, 12)
    opt.step()
    basis = rows(4, 12)
    opt.constraint = NullSpace({w: basis})
    assert opt.state_bytes()["constraint"] == 4 * 12 * 4
    before = w.detach().clone()
    w.grad = torch.randn(10, 12)
    opt.step()
    # The moment still holds the first gradient; the step does not.
    assert float(((w.detach() - before) @ basis.T).abs().max()) < 1e-6
    again = lt.optim.AdamW([w], lr=1e-2, constraint=NullSpace({w: basis}))
    again.load_state_dict(opt.state_dict())
    opt.constraint = None
    assert "constraint" not in opt.state[w]


W = nn.Parameter(torch.zeros(6, 8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NullSpace({W: torch.eye(6)[:2]}), "right basis.*8 columns"),
        (lambda: NullSpace({W: Projection(torch.eye(8)[:2], side="left")}), "left basis.*6 columns"),
        (lambda: NullSpace({nn.Parameter(torch.zeros(8)): torch.eye(8)[:1]}), "shape \\(8,\\)"),
        (lambda: NullSpace({"weight": torch.eye(8)[:1]}), "keyed by parameters"),
        (lambda: NullSpace({W: [torch.eye(8)]}), "Projections"),
        (lambda: Projection(torch.ones(2, 8)), "orthonormal"),
        (lambda: Projection(torch.full((2, 8), float("nan"))), "inf or NaN"),
        (lambda: Projection(torch.eye(8)[:, :2]), "k <= d"),
        (lambda: Projection(torch.eye(8).double()), "float32"),
        (lambda: Projection(torch.eye(8)[:2], torch.ones(3)), "weights"),
        (lambda: Projection(torch.eye(8)[:2], torch.tensor([0.5, 1.5])), "in \\[0, 1\\]"),
        (lambda: Projection(torch.eye(8)[:2], torch.ones(2), keep=True), "keep"),
        (lambda: Projection(torch.eye(8)[:2], side="top"), "side"),
        (lambda: Projection(torch.eye(8)[:2], scale=0.0), "scale"),
        (lambda: Perpendicular(of="weight"), "of must"),
    ],
)
def test_bad_constraints_are_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make()
