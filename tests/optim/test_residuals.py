# SPDX-License-Identifier: Apache-2.0
"""Fira, FRUGAL and APOLLO against their formulas in float64, and what only they do."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import lowtide as lt

SHAPES = {"tall": (70, 33), "wide": (33, 70), "square": (40, 40)}
LR, RANK, GAP = 1e-2, 5, 4


def gradient(shape: tuple[int, int], t: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(50 + t)) * (1.0 + 2.0 * (t == 5))


class Reference:
    """One matrix in float64. ``bases[t]`` is the basis (d x r) from step t on."""

    def __init__(self, shape: tuple[int, int], reset: bool = False) -> None:
        self.left = shape[0] < shape[1]
        self.w = torch.zeros(shape, dtype=torch.float64)
        self.reset = reset
        self.t, self.age, self.prev = 0, 0, 0.0

    def step(self, g: torch.Tensor, basis: torch.Tensor, new: bool) -> None:
        g, basis = g.double(), basis.double()
        r = basis @ g if self.left else g @ basis.T
        if self.t == 0 or (new and self.reset):
            self.m, self.v, self.age = torch.zeros_like(r), torch.zeros_like(r), 0
        self.t, self.age = self.t + 1, self.age + 1
        self.m = 0.9 * self.m + 0.1 * r
        self.v = 0.999 * self.v + 0.001 * r * r
        n = self.m / (1 - 0.9**self.age) / ((self.v / (1 - 0.999**self.age)).sqrt() + 1e-8)
        self.w -= LR * self.combine(g, r, n, lambda x: basis.T @ x if self.left else x @ basis)

    def channels(self, x: torch.Tensor) -> torch.Tensor:
        return x.norm(dim=0 if self.left else 1, keepdim=True)

    def limited(self, u: torch.Tensor) -> torch.Tensor:
        norm = float(u.norm())
        c = 1.0 if self.prev == 0 else 1.0 / max(norm / (1.01 * self.prev), 1.0)
        self.prev = norm * c
        return u * c

    def combine(self, g: Any, r: Any, n: Any, up: Any) -> torch.Tensor:
        raise NotImplementedError


class Fira(Reference):
    def combine(self, g: Any, r: Any, n: Any, up: Any) -> torch.Tensor:
        k = self.channels(n) / (self.channels(r) + 1e-8)
        return 0.25 * (up(n) + self.limited((g - up(r)) * k))


class Frugal(Reference):
    def combine(self, g: Any, r: Any, n: Any, up: Any) -> torch.Tensor:
        return up(n) + 0.3 * torch.sign((g - up(r)).float().double())


class Apollo(Reference):
    def combine(self, g: Any, r: Any, n: Any, up: Any) -> torch.Tensor:
        return 2.0 * self.limited(g * self.channels(n) / (self.channels(r) + 1e-8))


class Mini(Reference):
    def combine(self, g: Any, r: Any, n: Any, up: Any) -> torch.Tensor:
        return math.sqrt(128) * self.limited(g * n.norm() / (r.norm() + 1e-8))


def basis_of(opt: lt.optim.Composed, p: torch.nn.Parameter) -> torch.Tensor:
    """The basis in use as a matrix."""
    state = opt.state[p]
    rank, dim = state["rank"], state["dim"]
    if "basis" in state:
        return state["basis"].clone()
    if "basis.indices" in state:
        return torch.eye(dim)[state["basis.indices"].long()]
    g = torch.empty(p.shape)
    address = {name: state[f"basis.{name}"] for name in ("seed", "step", "param")}
    return lt.lowrank.RandomProjection(rank).basis(g, side=state["side"], **address)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    ("make", "reference", "rank", "scale"),
    [
        (lt.optim.FiraAdamW, Fira, RANK, 0.25),
        (lambda g, **k: lt.optim.FRUGAL(g, weight_decay=0.0, residual_lr_scale=0.3, **k), Frugal, RANK, 1.0),
        (lt.optim.APOLLO, Apollo, RANK, 4.0),
        (lt.optim.APOLLOMini, Mini, 1, 128.0),
    ],
    ids=["fira", "frugal", "apollo", "mini"],
)
def test_follows_its_paper(
    shape: tuple[int, int], make: Any, reference: Any, rank: int, scale: float
) -> None:
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = make([{"params": [p], "rank": rank, "update_proj_gap": GAP, "scale": scale}], lr=LR, seed=3)
    want = reference(shape, reset=reference is Frugal)
    seen = []
    for t in range(14):
        g = gradient(shape, t)
        p.grad = g.clone()
        opt.step()
        basis = basis_of(opt, p)
        seen.append(basis)
        want.step(g, basis, t % GAP == 0)
        # fp32 round-off; an Adam element near zero divides by its own size.
        assert float((p.detach() - want.w).norm() / want.w.norm()) < 2e-5, t
        assert torch.equal(p.grad, g)
    assert torch.equal(seen[0], seen[GAP - 1])
    assert not torch.equal(seen[0], seen[GAP])


@pytest.mark.parametrize("make", [lt.optim.APOLLO, lt.optim.APOLLOMini], ids=["apollo", "mini"])
def test_a_random_projection_is_stored_as_its_address(make: Any) -> None:
    p = torch.nn.Parameter(torch.zeros(64, 256))
    opt = make([{"params": [p], "rank": 16}], lr=LR)
    p.grad = gradient((64, 256), 0)
    opt.step()
    rank = 1 if make is lt.optim.APOLLOMini else 16
    tensors = {k: v for k, v in opt.state[p].items() if isinstance(v, torch.Tensor)}
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "exp_avg": (rank, 256),
        "exp_avg_sq": (rank, 256),
    }
    assert opt.state_bytes()["basis"] == 0


def test_the_projection_of_a_state_survives_another_seed() -> None:
    """A resumed run goes on in the subspace that its moments belong to."""
    runs = []
    for second_seed in (3, 4):
        p = torch.nn.Parameter(torch.zeros(20, 30))
        group = {"params": [p], "rank": 4, "update_proj_gap": 100}
        opt = lt.optim.APOLLO([group], lr=LR, seed=3)
        p.grad = gradient((20, 30), 0)
        opt.step()
        other = lt.optim.APOLLO([dict(group)], lr=LR, seed=second_seed)
        other.load_state_dict(opt.state_dict())
        p.grad = gradient((20, 30), 1)
        other.step()
        runs.append(p.detach().clone())
    assert torch.equal(*runs)


PRESETS = {
    "fira": lt.optim.FiraAdamW,
    "apollo": lt.optim.APOLLO,
    "mini": lt.optim.APOLLOMini,
    "frugal": lt.optim.FRUGAL,
}


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS.keys())
def test_a_zero_gradient_first_does_no_harm(make: Any) -> None:
    """Distributed checkpointing creates states by a step with zero gradients: the limiter must not start from zero."""
    p = torch.nn.Parameter(torch.zeros(24, 40))
    opt = make([{"params": [p], "rank": 4}], lr=LR)
    p.grad = torch.zeros(24, 40)
    opt.step()
    assert not p.detach().any()
    p.grad = gradient((24, 40), 0)
    opt.step()
    first = float(p.detach().norm())
    assert first > 1e-4


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS.keys())
def test_a_spoilt_gradient_leaves_matrix_and_moments(make: Any, bad: float) -> None:
    p = torch.nn.Parameter(torch.ones(24, 40))
    opt = make([{"params": [p], "rank": 4, "update_proj_gap": 50}], lr=LR)
    for t in range(3):
        p.grad = gradient((24, 40), t)
        opt.step()
    before, moment = p.detach().clone(), opt.state[p]["exp_avg"].clone()
    norm = opt.state[p].get("residual_norm")
    p.grad = gradient((24, 40), 3)
    p.grad[0, 0] = p.grad[23, 39] = bad  # blocks 0 and 3 of 256 elements
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opt.step()
    assert opt.skipped_blocks == 2
    assert torch.equal(p.detach(), before)
    assert torch.equal(opt.state[p]["exp_avg"], moment)
    assert opt.state[p].get("residual_norm") == norm


def test_full_rank_has_no_residual() -> None:
    """With rank = min(m, n) Fira and FRUGAL-by-SGD are GaLore."""
    shape = (20, 40)
    results = []
    for make in (
        lambda g: lt.optim.GaLoreAdamW(g, lr=LR, svd="exact"),
        lambda g: lt.optim.FiraAdamW(g, lr=LR, svd="exact"),
    ):
        p = torch.nn.Parameter(torch.zeros(shape))
        opt = make([{"params": [p], "rank": 64, "scale": 1.0}])
        for t in range(5):
            p.grad = gradient(shape, t)
            opt.step()
        results.append(p.detach().clone())
    # What round-off leaves of the residual, at the learning rate of its channel.
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 2e-3


def test_rank_as_a_fraction_of_the_shorter_side() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 6))
    opt = lt.optim.FRUGAL(lt.optim.param_groups(model, rank=0.25), lr=LR)
    model(torch.ones(1, 64)).sum().backward()
    opt.step()
    assert [opt.state[layer.weight]["rank"] for layer in model] == [16, 2]


def test_scale_defaults_to_the_method() -> None:
    model = torch.nn.Linear(8, 8)
    scales = {
        make.__name__: make(lt.optim.param_groups(model, rank=2), lr=LR).param_groups[0]["scale"]
        for make in (lt.optim.GaLoreAdamW, lt.optim.QGaLoreAdamW, *PRESETS.values())
    }
    assert scales == {
        "GaLoreAdamW": 0.25, "QGaLoreAdamW": 0.25, "FiraAdamW": 0.25, "APOLLO": 1.0, "APOLLOMini": 128.0, "FRUGAL": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: lt.optim.FiraAdamW(g, limiter=0.5), "limiter"),
        (lambda g: lt.optim.FiraAdamW(g, compat="galore_torch"), "compat"),
        (lambda g: lt.optim.APOLLO(g, scale_type="row"), "scale_type"),
        (lambda g: lt.optim.APOLLO(g, proj="dct"), "proj"),
        (lambda g: lt.optim.FRUGAL(g, subspace="block"), "subspace"),
        (lambda g: lt.optim.FRUGAL(g, residual="lion"), "kind"),
        (lambda g: lt.optim.FRUGAL(g, residual_lr_scale=-1.0), "lr_scale"),
        (lambda g: lt.optim.FRUGAL([{**g[0], "rank": 1.5}]), "rank"),
        (
            lambda g: lt.optim.Composed(
                g, subspace=lt.optim.RandomIndices(), refresh=lt.optim.LazyDoubling()
            ),
            "EveryT",
        ),
    ],
)
def test_bad_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "rank": 2}])


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS.keys())
def test_packed_weights_move_as_dense_ones(make: Any) -> None:
    layer = torch.nn.Linear(64, 96, bias=False)
    model = torch.nn.Sequential(layer)
    lt.quant.quantize_model_(model, weights="int8")
    packed = model[0].weight
    dense = torch.nn.Parameter(packed.quant.dequantize().clone())
    start = dense.detach().clone()
    packed.quant.main_grad = gradient((96, 64), 0)
    dense.grad = gradient((96, 64), 0)
    for p in (packed, dense):
        make([{"params": [p], "rank": 4, "scale": 1.0}], lr=1e-2, seed=3, weight_decay=0.0).step()
    assert packed.quant.main_grad is None or torch.equal(packed.quant.main_grad, dense.grad)
    moved, wanted = packed.quant.dequantize() - start, dense.detach() - start
    # Stochastic rounding: at most one code off, and none on average (5 sigma of a uniform fraction).
    code = float(packed.quant.scale.max())
    assert float((moved - wanted).abs().max()) <= 1.01 * code
    assert abs(float((moved - wanted).mean())) < 5 * 0.5 * code / math.sqrt(wanted.numel())
    slope = float((moved * wanted).sum() / wanted.square().sum())
    assert abs(slope - 1.0) < 5 * 0.5 * code / float(wanted.norm())
