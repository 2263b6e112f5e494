# SPDX-License-Identifier: Apache-2.0
"""Which side is projected, both sides at once, and tensors of more than two dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.optim.groups import PROJ_TYPES

LR, RANK, EPS = 1e-2, 5, 1e-2
SHAPES = {"tall": (70, 33), "wide": (33, 70), "square": (40, 40)}


def gradient(shape: tuple[int, ...], t: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(t))


def off_identity(b: torch.Tensor) -> float:
    return float((b.double() @ b.double().T - torch.eye(len(b), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("kind", ["exact", "randomized", "random"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_two_sides_follow_the_formula(shape: tuple[int, int], kind: str) -> None:
    p = nn.Parameter(torch.zeros(shape))
    subspaces = {
        "exact": lt.optim.ExactSVD(),
        "randomized": lt.optim.RandomizedSVD(),
        "random": lt.optim.RandomOrthonormal(),
    }
    opt = lt.optim.Composed(
        [{"params": [p], "rank": RANK, "update_proj_gap": 4, "proj_type": "full"}],
        lr=LR,
        # At a refresh an exact R is diagonal but for round-off, to which Adam would give the size of all else.
        rule=lt.optim.AdamRule(eps=EPS),
        subspace=subspaces[kind],
    )
    w = torch.zeros(shape, dtype=torch.float64)
    m = v = torch.zeros(RANK, RANK, dtype=torch.float64)
    for t in range(10):
        p.grad = gradient(shape, t)
        opt.step()
        state = opt.state[p]
        right, left = state["basis"].double(), state["basis.left"].double()
        assert right.shape == (RANK, shape[1])
        assert left.shape == (RANK, shape[0])
        assert off_identity(right) < 1e-5
        assert off_identity(left) < 1e-5
        if shape[0] == shape[1]:
            assert float((right - left).abs().max()) > 0.1
        r = left @ p.grad.double() @ right.T
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
        n = m / (1 - 0.9 ** (t + 1)) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + EPS)
        w -= LR * left.T @ n @ right
        assert float((p.detach() - w).norm() / w.norm()) < 1e-4, t
    assert opt.state_bytes()["states"] == 8 * RANK**2
    assert opt.state_bytes()["basis"] == 4 * RANK * sum(shape)


def test_two_sides_in_int4_with_a_residual_resume() -> None:
    shape = (64, 96)
    make = lambda p: lt.optim.Composed(  # noqa: E731
        [{"params": [p], "rank": 8, "update_proj_gap": 3, "proj_type": "full"}],
        lr=LR,
        subspace=lt.optim.RandomizedSVD(),
        basis=lt.optim.BasisStore("int4", 32),
        residual=lt.optim.ErrorFeedback("int8"),
    )
    p = nn.Parameter(torch.zeros(shape))
    opt = make(p)
    for t in range(5):
        p.grad = gradient(shape, t)
        opt.step()
    q = nn.Parameter(p.detach().clone())
    other = make(q)
    other.load_state_dict(opt.state_dict())
    for t in range(5, 9):
        p.grad = q.grad = gradient(shape, t)
        opt.step()
        other.step()
    assert torch.equal(p, q)
    assert float(p.detach().abs().max()) > 0


@pytest.mark.parametrize(
    "axes",
    [
        {"subspace": lt.optim.TopIndices()},
        {"subspace": lt.optim.RandomGaussian()},
        {"subspace": lt.optim.PowerQR()},
        {"subspace": lt.optim.Fixed({})},
        {"refresh": lt.optim.LazyDoubling()},
        {"transport": lt.optim.Rotate()},
        {"residual": lt.optim.ScaledResidual()},
        {"residual": lt.optim.ScaledGradient()},
    ],
    ids=lambda axes: type(next(iter(axes.values()))).__name__,
)
def test_what_has_one_side_says_so(axes: dict[str, Any]) -> None:
    with pytest.raises(lt.LowtideError, match=r"'full' projects both sides, but .* use 'std'"):
        lt.optim.Composed(
            [{"params": [nn.Parameter(torch.zeros(4, 4))], "rank": 2, "proj_type": "full"}], **axes
        )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_random_elements_follow_adam_and_others_signsgd(shape: tuple[int, int]) -> None:
    p = nn.Parameter(torch.zeros(shape))
    opt = lt.optim.FRUGAL(
        [{"params": [p], "rank": RANK, "update_proj_gap": 3}],
        lr=LR, weight_decay=0.0, subspace="elements", residual_lr_scale=0.5,
    )  # fmt: skip
    w = torch.zeros(shape, dtype=torch.float64)
    m = v = torch.zeros_like(w)
    axis = 1 if shape[0] >= shape[1] else 0
    seen = torch.zeros(shape)
    for t in range(9):
        p.grad = gradient(shape, t)
        opt.step()
        chosen = torch.zeros(shape).scatter_(axis, opt.state[p]["basis.indices"].long(), 1.0).bool()
        assert bool((chosen.sum(axis) == RANK).all())
        if t % 3 == 0:
            m = v = torch.zeros_like(w)
            seen += chosen
        g, s = p.grad.double(), t % 3 + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        adam = m / (1 - 0.9**s) / ((v / (1 - 0.999**s)).sqrt() + 1e-8)
        w -= LR * torch.where(chosen, adam, 0.5 * g.sign())
        assert float((p.detach() - w).abs().max()) < 1e-6
    assert float(seen.sum()) == 3 * RANK * max(shape)
    assert int((seen > 0).sum()) > 1.5 * RANK * max(shape)  # other ones each time
    held = opt.state_bytes()
    assert (held["states"], held["basis"]) == (8 * RANK * max(shape), 4 * RANK * max(shape))
    report = lt.optim.memory(
        nn.Linear(*shape[::-1], bias=False), lambda q: lt.optim.FRUGAL(q, subspace="elements"), rank=RANK
    )
    assert (report.states, report.basis) == (held["states"], held["basis"])


@pytest.mark.parametrize("proj", ["svd", "random", "hadamard", "rademacher"])
def test_galore_projects_as_told(proj: str) -> None:
    shape = (33, 70)
    p = nn.Parameter(torch.zeros(shape))
    opt = lt.optim.GaLore(
        [{"params": [p], "rank": RANK, "scale": 0.5}],
        LR,
        lt.optim.SGDRule(0.0),
        proj=proj,
        svd="exact",
        seed=7,
    )
    g = p.grad = gradient(shape, 0)
    opt.step()
    if proj in ("svd", "random"):
        b = opt.state[p]["basis"]
    else:
        hadamard = proj == "hadamard"
        P = lt.lowrank.RandomHadamard(RANK) if hadamard else lt.lowrank.RandomProjection(RANK, proj)
        b = P.basis(g, side="left", seed=7)
        assert opt.state_bytes()["basis"] == 0
    torch.testing.assert_close(p.detach(), -0.5 * LR * b.T @ (b @ g), atol=1e-6, rtol=1e-4)
    with pytest.raises(lt.LowtideError, match="proj must be one of"):
        lt.optim.GaLore([p], proj="best")


METHODS = {
    "galore": lambda g, **k: lt.optim.GaLoreAdamW(g, lr=LR, **k),
    "qgalore": lambda g, **k: lt.optim.QGaLoreAdamW(g, lr=LR, **k),
    "fira": lambda g, **k: lt.optim.FiraAdamW(g, lr=LR, **k),
    "frugal": lambda g, **k: lt.optim.FRUGAL(g, lr=LR, **k),
    "apollo": lambda g, **k: lt.optim.APOLLO(g, lr=LR, **k),
    "ldadam": lambda g, **k: lt.optim.LDAdam(g, lr=LR, **k),
    "dct": lambda g, **k: lt.optim.DCTAdamW(g, lr=LR, **k),
    "subtrack": lambda g, **k: lt.optim.SubTrack(g, lr=LR, **k),
    "flora": lambda g, **k: lt.optim.Flora(g, lr=LR, **k),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(24, 6, 3, 3), (6, 40, 5), (8, 3, 2, 2, 2)], ids=["2d", "1d", "3d"])
def test_convolutions_are_trained_as_matrices(method: str, shape: tuple[int, ...]) -> None:
    """A weight of shape (out, in, ...) is taken as out x (in ...): bit for bit as that matrix."""
    conv, matrix = nn.Parameter(gradient(shape, 99)), nn.Parameter(gradient(shape, 99).reshape(shape[0], -1))
    keys = {"rank": 4, "update_proj_gap": 2}
    a, b = (METHODS[method]([{"params": [p], **keys}]) for p in (conv, matrix))
    for t in range(5):
        conv.grad = gradient(shape, t)
        matrix.grad = conv.grad.reshape(matrix.shape).clone()
        a.step()
        b.step()
    assert conv.shape == shape
    assert torch.equal(conv.detach().reshape(matrix.shape), matrix.detach())
    assert not torch.equal(conv.detach(), gradient(shape, 99))


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_a_convolution_network_learns_on_any_side(proj_type: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    weights = [m.weight for m in model if isinstance(m, nn.Conv2d)]
    rest = [p for p in model.parameters() if all(p is not w for w in weights)]
    opt = lt.optim.GaLoreAdamW(
        [{"params": weights, "rank": 3, "scale": 1.0, "update_proj_gap": 5, "proj_type": proj_type}, {"params": rest}],
        lr=1e-2,
    )  # fmt: skip
    x = torch.randn(32, 3, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    sides = {"std": "left", "reverse_std": "right", "left": "left", "right": "right", "full": "full"}
    assert opt.state[weights[0]]["side"] == sides[proj_type]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_an_exact_basis_misses_the_tail_of_the_spectrum(shape: tuple[int, int]) -> None:
    g = gradient(shape, 0)
    for side in ("left", "right"):
        b = lt.optim.ExactSVD().find(lt.optim.RefreshRequest(g, RANK, side)).double()
        rest = g.double() - (b.T @ b @ g.double() if side == "left" else g.double() @ b.T @ b)
        tail = torch.linalg.svdvals(g.double())[RANK:].square().sum()
        assert float(rest.square().sum() / tail) == pytest.approx(1, abs=1e-5)


def test_at_full_rank_momentum_is_the_same_in_every_basis() -> None:
    """r = min(m, n): a method without elementwise moments does not see the rotation; Adam does."""
    shape = (12, 30)
    p, q, a, c = (nn.Parameter(torch.zeros(shape)) for _ in range(4))
    low = {"rank": 12, "update_proj_gap": 100}
    opts = [
        lt.optim.Composed([{"params": [p], **low}], lr=LR, rule=lt.optim.SGDRule(0.9)),
        lt.optim.SGD([q], lr=LR, momentum=0.9),
        lt.optim.Composed([{"params": [a], **low}], lr=LR),
        lt.optim.AdamW([c], lr=LR, weight_decay=0.0),
    ]
    for t in range(8):
        for w in (p, q, a, c):
            w.grad = gradient(shape, t)
        for opt in opts:
            opt.step()
    with torch.no_grad():
        assert float((p - q).norm() / q.norm()) < 1e-5
        assert float((a - c).norm() / c.norm()) > 0.1
