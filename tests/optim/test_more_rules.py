# SPDX-License-Identifier: Apache-2.0
"""signSGD, Signum and diffGrad by their formulas, AdamP and SGDP step for step against the package adamp, GaLore with rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

SHAPES = [(70, 33), (33, 70), (3, 5, 7), (256,), (1, 9), ()]
LR = 1e-2


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


def gradient(shape: tuple[int, ...], t: int, i: int) -> Tensor:
    return noise(shape, 100 * t + i) * 10.0 ** (t % 3 - 2)


def start() -> list[nn.Parameter]:
    return [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]


def signum(p: Tensor, g: Tensor, s: dict[str, Tensor], step: int, beta: float = 0.9) -> Tensor:
    s["m"] = beta * s.get("m", torch.zeros_like(p)) + (1 - beta) * g
    return p * (1 - LR * 0.1) - LR * s["m"].sign()


def sign_sgd(p: Tensor, g: Tensor, s: dict[str, Tensor], step: int) -> Tensor:
    return signum(p, g, s, step, 0.0)


def diffgrad(p: Tensor, g: Tensor, s: dict[str, Tensor], step: int) -> Tensor:
    zero = torch.zeros_like(p)
    s["m"] = 0.9 * s.get("m", zero) + 0.1 * g
    s["v"] = 0.999 * s.get("v", zero) + 0.001 * g * g
    friction = (s.get("g", zero) - g).abs().sigmoid()
    s["g"] = g
    root = (s["v"] / (1 - 0.999**step)).sqrt() + 1e-8
    return p * (1 - LR * 0.1) - LR * friction * s["m"] / (1 - 0.9**step) / root


@pytest.mark.parametrize(
    ("name", "formula"), [("SignSGD", sign_sgd), ("Signum", signum), ("DiffGrad", diffgrad)]
)
def test_rules_follow_their_paper_in_double(isa: str, name: str, formula: Callable[..., Tensor]) -> None:
    ours = start()
    want = [p.detach().double() for p in ours]
    memory: list[dict[str, Tensor]] = [{} for _ in want]
    opt = getattr(lt.optim, name)(ours, lr=LR, weight_decay=0.1)
    for t in range(1, 41):
        for i, p in enumerate(ours):
            p.grad = gradient(tuple(p.shape), t, i)
            want[i] = formula(want[i], p.grad.double(), memory[i], t)
        opt.step()
    for p, q in zip(ours, want, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= 1e-6


def test_sign_sgd_keeps_nothing() -> None:
    params = start()
    opt = lt.optim.SignSGD(params)
    for i, p in enumerate(params):
        p.grad = gradient(tuple(p.shape), 1, i)
    opt.step()
    assert opt.state_bytes()["states"] == 0
    assert all(set(s) == {"step", "dim"} for s in opt.state.values())


@pytest.mark.parametrize(("bits", "limit"), [("int8", 0.06), ("int4", 0.3)])  # measured 0.041, 0.2
def test_coded_diffgrad_follows_fp32(bits: str, limit: float) -> None:
    target = noise((5000,), 99)
    runs = []
    for store in (None, lt.optim.StateStore(bits)):
        p = nn.Parameter(noise((5000,), 0))
        opt = lt.optim.DiffGrad([p], lr=LR, state=store)
        for _ in range(100):
            p.grad = p.detach() - target
            opt.step()
        runs.append(p.detach())
    plain, coded = runs
    assert float((coded - plain).norm()) < limit * float((plain - noise((5000,), 0)).norm())


def projected(p: Tensor, g: Tensor, view: tuple[int, ...]) -> bool:
    """Whether AdamP's test finds p scale-invariant in this view."""
    w, h = p.reshape(view), g.reshape(view)
    cosine = nn.functional.cosine_similarity(h, w, dim=1).abs().max()
    return float(cosine) < 0.1 / math.sqrt(w.shape[1])


@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_adamp_follows_adamp(name: str, nesterov: bool) -> None:
    """Gradients perpendicular to the rows, to the whole and to nothing: each branch of the test is taken."""
    package = pytest.importorskip("adamp")

    class peer(getattr(package, name)):
        def _projection(self, p: Tensor, grad: Tensor, perturb: Tensor, *rest: Any) -> Any:
            # Without nesterov its SGDP would change the momentum too, against algorithm 1 of the paper.
            return super()._projection(p, grad, perturb.clone(), *rest)

    sides = [start(), start()]
    if name == "AdamP":
        if nesterov:
            return  # ours has none
        a = lt.optim.AdamP(sides[0], lr=LR, weight_decay=0.1)
        b = peer(sides[1], lr=LR, weight_decay=0.1)
    else:
        # That package divides the decay by 1 - momentum.
        a = lt.optim.SGDP(sides[0], lr=LR, momentum=0.9, nesterov=nesterov, weight_decay=0.1 / (1 - 0.9))
        b = peer(sides[1], lr=LR, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    taken = {"row": 0, "whole": 0, "none": 0}
    for t in range(60):
        for i in range(len(SHAPES)):
            w = sides[1][i].detach()
            g = gradient(SHAPES[i], t, i)
            if w.dim() > 1 and t % 3 < 2:
                flat = w.reshape(w.shape[0], -1) if t % 3 == 0 else w.reshape(1, -1)
                h = g.reshape(flat.shape)
                g = (h - (h * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat).reshape(
                    w.shape
                )
            if w.dim() > 1:
                row, whole = (projected(w, g, v) for v in ((w.shape[0], -1), (1, -1)))
                taken["row" if row else "whole" if whole else "none"] += 1
            for side in sides:
                side[i].grad = g.clone()
        a.step()
        b.step()
        for p, q in zip(*sides, strict=True):
            assert float((p - q).detach().norm() / q.detach().norm()) <= 1e-5, f"step {t}"
    assert min(taken.values()) > 20, taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamp_steps_stay_perpendicular_in_a_subspace(dtype: torch.dtype) -> None:
    p = nn.Parameter(noise((40, 24), 0).to(dtype))
    opt = lt.optim.AdamP([{"params": [p], "rank": 4, "update_proj_gap": 3}], lr=1e-3)
    for t in range(5):
        w = p.detach().float().clone()
        g = noise((40, 24), t + 50)
        g -= (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
        p.grad = g.to(dtype)
        opt.step()
        moved = p.detach().float() - w
        along = (moved * w).sum(1).abs() / w.square().sum(1)
        # bf16: steps of 1e-3 are rounded stochastically to 2^-8 of the weight, rows of 24.
        assert float(along.max()) < (1e-7 if dtype == torch.float32 else 2e-3)
        assert float(moved.norm()) > 1e-3


def test_sgd_in_a_subspace_does_not_depend_on_its_basis_and_signs_do() -> None:
    """Two bases of one subspace, the second turned."""
    turn = torch.linalg.qr(noise((4, 4), 7))[0]
    basis = torch.linalg.qr(noise((24, 4), 8))[0].T.contiguous()

    def run(rule: Any, rows: Tensor) -> Tensor:
        p = nn.Parameter(noise((40, 24), 0))
        fixed = lt.optim.Fixed({0: rows})
        opt = lt.optim.Composed([{"params": [p], "rank": 4}], lr=LR, rule=rule, subspace=fixed)
        for t in range(5):
            p.grad = noise((40, 24), t)
            opt.step()
        return p.detach() - noise((40, 24), 0)

    for rule, same in (
        (lt.optim.SGDRule(), True),
        (lt.optim.LionRule(), False),
        (lt.optim.SignRule(), False),
    ):
        a, b = run(rule, basis), run(rule, (turn @ basis).contiguous())
        far = float((a - b).norm() / a.norm())
        assert far < 1e-5 if same else far > 0.1, rule


def test_galore_with_adam_is_galore_adamw() -> None:
    sides = [nn.Parameter(noise((40, 24), 0)) for _ in range(2)]
    groups = [[{"params": [p], "rank": 4, "update_proj_gap": 3}] for p in sides]
    opts = [lt.optim.GaLore(groups[0], 1e-2, lt.optim.AdamRule()), lt.optim.GaLoreAdamW(groups[1], 1e-2)]
    for t in range(7):
        for p, opt in zip(sides, opts, strict=True):
            p.grad = noise((40, 24), t)
            opt.step()
    assert torch.equal(*(p.detach() for p in sides))


@pytest.mark.parametrize(
    ("name", "method"),
    [("SignSGD", "signsgd"), ("Signum", "signum"), ("DiffGrad", "diffgrad"), ("DiffGrad8bit", "diffgrad8bit"),
     ("AdamP", "adamp"), ("SGDP", "sgdp")],
)  # fmt: skip
def test_counted_bytes_are_measured_bytes(name: str, method: str) -> None:
    model = nn.Sequential(nn.Linear(65, 96), nn.LayerNorm(96))
    opt = getattr(lt.optim, name)(model.parameters())
    model(torch.ones(2, 65)).square().sum().backward()
    opt.step()
    assert opt.state_bytes()["states"] == lt.optim.memory(model, method).states


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lt.optim.SignRule(1.0), "momentum must be"),
        (lambda: lt.optim.ScaleInvariant(delta=-1.0), "delta must be"),
        (lambda: lt.optim.ScaleInvariant(wd_ratio=2.0), "wd_ratio must be"),
        (lambda: lt.optim.ScaleInvariant(eps=0.0), "eps must be"),
        (lambda: lt.optim.Composed(start(), rule=lt.optim.DiffGradRule(), transport=lt.optim.Rotate()), "Rotate"),
        (lambda: lt.optim.Composed(start(), rule=lt.optim.SignRule(), subspace=lt.optim.PowerQR(0.5)), "running mean"),
        (lambda: lt.optim.GaLore(start(), svd="lazy"), "svd must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()
