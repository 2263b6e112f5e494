# SPDX-License-Identifier: Apache-2.0
"""SubTrack++, Flora, GoLore, Lotus, sampled GRASS and fixed subspaces against their formulas in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import lowtide as lt
from lowtide.optim import RefreshRequest

SHAPES = {"tall": (70, 33), "wide": (33, 70), "square": (40, 40)}
LR, RANK = 1e-2, 5


def gradient(shape: tuple[int, int], t: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(90 + t)
    low = torch.randn(shape[0], 3, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        3, shape[1], generator=g
    )
    return low + 0.3 * torch.randn(shape, generator=g)


def side_of(shape: tuple[int, int]) -> str:
    return lt.lowrank.side_for(shape)


def random_basis(dim: int, seed: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, RANK, generator=g))[0].T.contiguous()


def missed(g: torch.Tensor, b: torch.Tensor, side: str) -> float:
    """|G - up(down(G))|^2 in float64."""
    g, b = (g if side == "left" else g.T).double(), b.double()
    return float((g - b.T @ (b @ g)).square().sum())


def off_identity(b: torch.Tensor) -> float:
    b = b.double()
    return float((b @ b.T - torch.eye(len(b), dtype=torch.float64)).abs().max())


# --------------------------------------------------------------- Grassmann


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_small_grassmann_step_is_the_papers(shape: tuple[int, int]) -> None:
    side, g = side_of(shape), gradient(shape, 0)
    b = random_basis(min(shape))
    eta = 1e-5
    got = lt.optim.Grassmann(eta).find(RefreshRequest(g, RANK, side, b))
    # In the paper's words: S (d x r), dF = -2 (G - S A) A^T, its leading pair u, v.
    G, S = (g if side == "left" else g.T).double(), b.double().T
    A = S.T @ G
    u, sigma, vh = torch.linalg.svd(-2 * (G - S @ A) @ A.T, full_matrices=False)
    u, v, sigma = u[:, :1], vh[:1].T, sigma[0]
    assert float(sigma) > 1.0  # tall matrices, too: the published code's tangent is zero there
    turn = S @ v * math.cos(sigma * eta) - u * math.sin(sigma * eta)
    want = turn @ v.T + S @ (torch.eye(RANK, dtype=torch.float64) - v @ v.T)
    assert float((got.double() - b.double()).abs().max()) > 1e-3
    assert float((got.double().T - want).abs().max()) < 1e-6


@pytest.mark.parametrize("step_size", [1e-4, 10.0, None])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_grassmann_step_misses_less_at_any_size(shape: tuple[int, int], step_size: float | None) -> None:
    side, g = side_of(shape), gradient(shape, 0)
    b = random_basis(min(shape))
    best = lt.optim.ExactSVD().find(RefreshRequest(g, RANK, side))
    before, floor = missed(g, b, side), missed(g, best, side)
    kind = lt.optim.Grassmann(step_size)
    after = [before]
    for _ in range(30):
        b = kind.find(RefreshRequest(g, RANK, side, b))
        after.append(missed(g, b, side))
    assert after[1] < before
    # Round-off of fp32 in a sum of some thousand squares once there is nothing left to gain.
    assert all(y <= x * (1 + 1e-5) for x, y in itertools.pairwise(after))
    if step_size != 1e-4:  # the same gradient over and over: steps near what an SVD finds
        assert before - after[-1] > 0.95 * (before - floor)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_hundred_grassmann_steps_keep_rows_orthonormal(shape: tuple[int, int]) -> None:
    side, b = side_of(shape), None
    kind = lt.optim.Grassmann()
    for t in range(100):
        b = kind.find(RefreshRequest(gradient(shape, t), RANK, side, b, step=t))
    assert b is not None
    assert off_identity(b) < 1e-6


def test_a_gradient_inside_or_zero_turns_nothing() -> None:
    b = random_basis(33)
    for g in (torch.zeros(70, 33), torch.randn(70, RANK, generator=torch.Generator().manual_seed(0)) @ b):
        got = lt.optim.Grassmann().find(RefreshRequest(g, RANK, "right", b))
        assert off_identity(got) < 1e-6
        assert float((got - b).abs().max()) < 1e-5


class SubTrackReference:
    """One matrix in float64, the left side of the (transposed) gradient; bases are the optimizer's."""

    betas, scale, gap = (0.9, 0.999), 0.25, 4

    def __init__(self, shape: tuple[int, int]) -> None:
        self.left = shape[0] < shape[1]
        d, n = shape if self.left else shape[::-1]
        self.w = torch.zeros(d, n, dtype=torch.float64)
        self.m = self.v = torch.zeros(RANK, n, dtype=torch.float64)
        self.basis: torch.Tensor | None = None
        self.norm, self.t = 0.0, 0

    def step(self, g: torch.Tensor, b: torch.Tensor) -> None:
        g, b = (g if self.left else g.T).double(), b.double()
        if self.basis is not None and self.t % self.gap == 0:
            bc1, bc2 = (1 - beta**self.t for beta in self.betas)
            c = b @ self.basis.T
            turned = c @ self.m
            self.v = bc2 * (c.square() @ (self.v / bc2 - (self.m / bc1).square()) + (turned / bc1) ** 2).abs()
            self.m = turned
        self.basis, self.t = b, self.t + 1
        r = b @ g
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * r
        self.v = self.betas[1] * self.v + (1 - self.betas[1]) * r * r
        bc1, bc2 = (1 - beta**self.t for beta in self.betas)
        n = self.m / bc1 / ((self.v / bc2).sqrt() + 1e-8)
        s = (g - b.T @ r) * (n.norm(dim=0) / (r.norm(dim=0) + 1e-8))
        if self.norm:
            s = s / max(float(s.norm()) / (1.01 * self.norm), 1.0)
        self.norm = float(s.norm())
        self.w -= LR * self.scale * (b.T @ n + s)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_subtrack_follows_its_paper(shape: tuple[int, int]) -> None:
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.SubTrack([{"params": [p], "rank": RANK, "update_proj_gap": 4}], lr=LR, step_size=1e-3)
    want, bases = SubTrackReference(shape), []
    for t in range(13):
        p.grad = gradient(shape, t)
        opt.step()
        bases.append(opt.state[p]["basis"].clone())
        want.step(gradient(shape, t), bases[-1])
        got = p.detach() if want.left else p.detach().T
        # fp32 round-off, magnified where Adam's quotients are of small numbers.
        assert float((got - want.w).norm() / want.w.norm()) < 5e-4, t
    moved = [t for t in range(1, 13) if not torch.equal(bases[t], bases[t - 1])]
    assert moved == [4, 8, 12]


# ------------------------------------------------------- GoLore, Lotus, Fixed


def test_golore_switches_to_random_bases() -> None:
    shape = (33, 70)
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.GoLoreAdamW(
        [{"params": [p], "rank": RANK, "update_proj_gap": 2}], lr=LR, switch_step=5, svd="exact"
    )
    held = []
    for t in range(10):
        p.grad = gradient(shape, t)
        opt.step()
        b = opt.state[p]["basis"]
        assert off_identity(b) < 1e-5
        held.append(1 - missed(p.grad, b, "left") / float(p.grad.double().square().sum()))
    assert min(held[:6:2]) > 0.9  # refreshed at 0, 2 and 4: top singular vectors
    assert max(held[6:]) < 0.6  # at 6 and 8: five random directions of 33


def test_displacement_waits_for_the_gradient_to_stop() -> None:
    shape = (33, 70)

    def refreshes(gradients: Any, threshold: float, steps: int = 40) -> list[int]:
        p = torch.nn.Parameter(torch.zeros(shape))
        opt = lt.optim.LotusAdamW(
            [{"params": [p], "rank": RANK, "update_proj_gap": 4}], lr=LR, threshold=threshold
        )
        seen = []
        for t in range(steps):
            p.grad = gradients(t)
            before = opt.state[p].get("refreshes", 0) if opt.state[p] else 0
            opt.step()
            if opt.state[p]["refreshes"] != before:
                seen.append(t)
        return seen

    def white(t: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(t))

    # The same gradient is displaced by nothing: replaced at the first look, after steps 4, 8 ..
    assert refreshes(lambda t: gradient(shape, 0), 1e-3) == list(range(0, 40, 4))
    # Independent ones by sqrt(2) over t steps: below 0.1 from t = 15 on, looked at every 4th step.
    assert refreshes(white, 0.1) == [0, 16, 32]
    assert refreshes(white, 0.0) == [0]


def test_fixed_bases_stay_and_confine_the_update() -> None:
    shape = (33, 70)
    p, q = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    bases = {3: random_basis(33, 1), 8: random_basis(33, 2)}
    opt = lt.optim.Composed(
        [{"params": [p, q], "param_ids": [3, 8], "rank": RANK, "update_proj_gap": 2}],
        lr=LR,
        subspace=lt.optim.Fixed(bases),
    )
    for t in range(5):
        for w in (p, q):
            w.grad = gradient(shape, t)
        opt.step()
    for w, i in ((p, 3), (q, 8)):
        assert torch.equal(opt.state[w]["basis"], bases[i])
        assert missed(w.detach(), bases[i], "left") < 1e-9
        assert float(w.detach().norm()) > 0.01


# ------------------------------------------------------------ GRASS sampled


@pytest.mark.parametrize("side", ["left", "right"])
def test_sampled_rows_follow_their_energy(side: str) -> None:
    g = gradient((33, 70), 0)
    energy = g.square().sum(1 if side == "left" else 0)
    q = energy / energy.sum()
    kind, counts = lt.optim.SampledIndices(), torch.zeros(len(q))
    for s in range(2000):
        one = kind.find(RefreshRequest(g, 1, side, seed=s))
        counts[one.long()] += 1
    # Binomial counts: five standard deviations.
    assert bool(((counts - 2000 * q).abs() <= 5 * (2000 * q).sqrt() + 1).all())
    request = RefreshRequest(g, 12, side, seed=5)
    state: dict[str, Any] = {"dim": len(q), "side": side}
    chosen = kind.find(request)
    assert len(set(chosen.tolist())) == 12
    kind.keep(state, chosen, request, lt.optim.BasisStore())
    want = (12 * q[chosen.long()]).clamp(max=1).rsqrt()
    torch.testing.assert_close(state["basis.weights"], want)
    basis = kind.load(state, lt.optim.BasisStore())
    dense = torch.zeros(12, len(q))
    dense[torch.arange(12), chosen.long()] = want
    r = basis.down(g)
    torch.testing.assert_close(r, dense @ g if side == "left" else g @ dense.T)
    up = basis.up(r)
    torch.testing.assert_close(up, dense.T @ r if side == "left" else r @ dense)
    torch.testing.assert_close(basis.rest(g, r), g - up)


def test_sampling_a_zero_gradient_is_uniform() -> None:
    chosen = lt.optim.SampledIndices().find(RefreshRequest(torch.zeros(20, 9), 4, "right"))
    assert len(set(chosen.tolist())) == 4


# -------------------------------------------------------------------- Flora


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_reprojected_moment_is_the_papers(shape: tuple[int, int]) -> None:
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.Composed(
        [{"params": [p], "rank": RANK, "update_proj_gap": 3}],
        lr=LR,
        rule=lt.optim.SGDRule(0.9, 0.1),
        subspace=lt.optim.RandomGaussian(),
        transport=lt.optim.Reproject(),
    )
    side, a, m = side_of(shape), None, None
    w = torch.zeros(shape, dtype=torch.float64)
    for t in range(8):
        g = gradient(shape, t)
        p.grad = g
        opt.step()
        new = lt.lowrank.RandomProjection(RANK).basis(g, side=side, seed=0, step=t // 3 * 3, param=0).double()
        g = g.double() if side == "right" else g.double().T
        if a is not None and m is not None and t % 3 == 0:
            m = (m @ a) @ new.T
        a = new
        m = g @ a.T if m is None else 0.9 * m + 0.9 * (g @ a.T)
        up = m @ a
        w -= LR * (up if side == "right" else up.T)
        assert float((p.detach() - w).norm() / w.norm()) < 1e-5, t


def test_flora_keeps_a_seed_and_one_moment() -> None:
    shape = (64, 200)
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.Flora([{"params": [p], "rank": 8, "update_proj_gap": 2}], lr=LR)
    for t in range(5):
        p.grad = gradient(shape, t)
        opt.step()
    held = opt.state_bytes()
    assert held["basis"] == 0
    assert held["states"] == 4 * (8 * 200 + 8 + 200)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: lt.optim.SubTrack(g, step_size=0.0), "step_size"),
        (lambda g: lt.optim.LotusAdamW(g, threshold=-1.0), "threshold"),
        (lambda g: lt.optim.GoLoreAdamW(g, switch_step=-1), "at must be"),
        (lambda g: lt.optim.GRASSAdamW(g, selection="best"), "selection"),
        (lambda g: lt.optim.Composed(g, subspace=lt.optim.Switch(lt.optim.TopIndices())), "TopIndices"),
        (lambda g: lt.optim.Fixed({0: torch.ones(2, 4)}), "orthonormal"),
        (lambda g: lt.optim.Fixed({0: torch.eye(4).double()}), "float32"),
    ],
)
def test_bad_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "rank": 2}])


@pytest.mark.parametrize(
    ("bases", "words"),
    [({}, "none for parameter 0"), ({0: torch.eye(4)[:3]}, "2 x 4"), ({0: torch.eye(5)[:2]}, "2 x 4")],
)
def test_fixed_bases_must_fit(bases: dict, words: str) -> None:
    p = torch.nn.Parameter(torch.zeros(4, 4))
    opt = lt.optim.Composed([{"params": [p], "rank": 2}], lr=LR, subspace=lt.optim.Fixed(bases))
    p.grad = torch.ones(4, 4)
    with pytest.raises(lt.LowtideError, match=words):
        opt.step()
    assert not p.detach().any()
