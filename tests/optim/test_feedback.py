# SPDX-License-Identifier: Apache-2.0
"""LDAdam, DCT-AdamW and GRASS against their formulas in float64: moving subspaces, moments that move along, error feedback."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lowtide as lt

SHAPES = {"tall": (70, 33), "wide": (33, 70), "square": (40, 40)}
LR, RANK = 1e-2, 5


def gradient(shape: tuple[int, int], t: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(90 + t)
    low = torch.randn(shape[0], 3, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        3, shape[1], generator=g
    )
    return low + 0.3 * torch.randn(shape, generator=g)


def matrix_of(opt: lt.optim.Composed, p: torch.nn.Parameter) -> torch.Tensor:
    """The basis in use, r x d, in float64."""
    state = opt.state[p]
    if "basis" in state:
        return state["basis"].double()
    if isinstance(opt, lt.optim.DCTAdamW):
        dim = state["dim"]
        i, j = state["basis.indices"].double()[:, None], torch.arange(dim, dtype=torch.float64)[None, :]
        rows = (2 / dim) ** 0.5 * torch.cos(torch.pi * i * (2 * j + 1) / (2 * dim))
        return torch.where(i == 0, rows / 2**0.5, rows)
    return torch.eye(state["dim"], dtype=torch.float64)[state["basis.indices"].long()]


class Reference:
    """One matrix in float64; right sides are taken as the left side of the transpose."""

    betas, generalized, feedback = (0.9, 0.999), False, True

    def __init__(self, shape: tuple[int, int]) -> None:
        self.left = shape[0] < shape[1]
        d, n = shape if self.left else shape[::-1]
        self.w = torch.zeros(d, n, dtype=torch.float64)
        self.e = torch.zeros(d, n, dtype=torch.float64)
        self.m = self.v = torch.zeros(RANK, n, dtype=torch.float64)
        self.basis: torch.Tensor | None = None
        self.t = 0

    def weight(self) -> torch.Tensor:
        return self.w if self.left else self.w.T

    def corrections(self, t: int) -> tuple[float, float]:
        return 1 - self.betas[0] ** t, 1 - self.betas[1] ** t

    def turn(self, c: torch.Tensor) -> None:
        """Express m and v in the new basis."""
        raise NotImplementedError

    def step(self, g: torch.Tensor, basis: torch.Tensor) -> None:
        g = (g if self.left else g.T).double() + self.e
        r = basis @ g
        error = g - basis.T @ r
        if self.basis is not None:
            before = self.basis.T @ self.m
            self.turn(basis @ self.basis.T)
            if self.generalized:
                error = error + self.betas[0] / (1 - self.betas[0]) * (before - basis.T @ self.m)
        if self.feedback:
            self.e = error
        self.basis, self.t = basis, self.t + 1
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * r
        self.v = self.betas[1] * self.v + (1 - self.betas[1]) * r * r
        bc1, bc2 = self.corrections(self.t)
        self.w -= LR * basis.T @ (self.m / bc1 / ((self.v / bc2).sqrt() + 1e-8))


class LDAdam(Reference):
    betas, generalized = (0.908, 0.99), True

    def turn(self, c: torch.Tensor) -> None:
        bc1, bc2 = self.corrections(self.t)
        turned = c @ self.m
        spread = c.square() @ (self.v / bc2 - self.m.square() / bc1**2)
        self.v = bc2 * (spread + turned.square() / bc1**2).abs()
        self.m = turned


class DCT(Reference):
    def turn(self, c: torch.Tensor) -> None:
        c = c.round()
        self.m, self.v = c @ self.m, (c @ self.v).abs()


class Grass(Reference):
    feedback = False

    def turn(self, c: torch.Tensor) -> None:
        if self.t % 4 == 0:
            self.m, self.v = torch.zeros_like(self.m), torch.zeros_like(self.v)

    def corrections(self, t: int) -> tuple[float, float]:
        return super().corrections((t - 1) % 4 + 1)


METHODS = {
    "ldadam": (lt.optim.LDAdam, LDAdam, {}),
    "dct": (lambda g, **k: lt.optim.DCTAdamW(g, weight_decay=0.0, error_feedback="fp32", **k), DCT, {}),
    "grass": (lt.optim.GRASSAdamW, Grass, {"update_proj_gap": 4}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("method", METHODS)
def test_follows_its_paper(method: str, shape: tuple[int, int]) -> None:
    make, reference, keys = METHODS[method]
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = make([{"params": [p], "rank": RANK, **keys}], lr=LR)
    want = reference(shape)
    for t in range(12):
        p.grad = gradient(shape, t)
        opt.step()
        want.step(gradient(shape, t), matrix_of(opt, p))
        # fp32 round-off; the difference under |.| of LDAdam's v, and Adam elements near zero, magnify it.
        assert float((p.detach() - want.weight()).norm() / want.w.norm()) < 2e-4, t
    if want.feedback:
        error = opt.state[p]["error"].double()
        assert float((error - (want.e if want.left else want.e.T)).norm() / want.e.norm()) < 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_power_iteration_finds_the_papers_subspace(shape: tuple[int, int]) -> None:
    side = "left" if shape[0] < shape[1] else "right"
    g, mean = gradient(shape, 0), gradient(shape, 1)
    d = min(shape)
    prev = torch.linalg.qr(torch.randn(d, RANK, generator=torch.Generator().manual_seed(2)))[0].T.contiguous()
    request = lt.optim.RefreshRequest(g, RANK, side, prev, mean, step=1)
    found = lt.optim.PowerQR(0.7).find(request).double()
    b = (0.3 * g + 0.7 * mean).double()
    b = b if side == "left" else b.T
    want = torch.linalg.qr(b @ (b.T @ prev.double().T))[0]
    assert float((found @ found.T - torch.eye(RANK)).abs().max()) < 1e-5
    # The same projector, whatever the signs; fp32 round-off over the smallest of the five singular values.
    assert float((found.T @ found - want @ want.T).abs().max()) < 1e-3


def test_cosines_and_rows_are_the_largest() -> None:
    g = gradient((33, 70), 0)
    dct = lt.optim.Cosines("l2").find(lt.optim.RefreshRequest(g, RANK, "left"))
    full = lt.lowrank.DCTBasis(torch.arange(33, dtype=torch.int32), 33).project(g, "left")
    assert set(dct.tolist()) == set(full.norm(dim=1).topk(RANK).indices.tolist())
    for side, norms in (("left", g.norm(dim=1)), ("right", g.norm(dim=0))):
        rows = lt.optim.TopIndices().find(lt.optim.RefreshRequest(g, RANK, side))
        assert rows.tolist() == sorted(norms.topk(RANK).indices.tolist())


@pytest.mark.parametrize("store", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("make", [lt.optim.LDAdam, lt.optim.DCTAdamW], ids=["ldadam", "dct"])
def test_the_error_is_kept_in_few_bytes(make: Any, store: str) -> None:
    shape = (64, 512)
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = make([{"params": [p], "rank": 8}], lr=LR, error_feedback=store)
    kept = []
    for t in range(3):
        p.grad = gradient(shape, t)
        opt.step()
        state = opt.state[p]
        held = sum(
            v.nbytes for k, v in state.items() if k.startswith("error") and isinstance(v, torch.Tensor)
        )
        kept.append(held / p.numel())
    want = {"fp32": 4, "bf16": 2, "int8": 1 + 5 / 256, "int4": 0.5 + 5 / 256}[store]
    assert kept == [want] * 3
    exact = make(
        [{"params": [torch.nn.Parameter(torch.zeros(shape))], "rank": 8}], lr=LR, error_feedback="fp32"
    )
    q = exact.param_groups[0]["params"][0]
    for t in range(3):
        q.grad = gradient(shape, t)
        exact.step()
    near = {"fp32": 0.0, "bf16": 0.05, "int8": 0.1, "int4": 0.8}[store]
    assert float((p.detach() - q.detach()).norm() / q.detach().norm()) <= near


def test_error_feedback_loses_nothing_of_the_gradient() -> None:
    """What went into the subspace and what is kept are the sum of all gradients."""
    shape = (33, 70)
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.Composed(
        [{"params": [p], "rank": RANK, "update_proj_gap": 2}],
        lr=1.0,
        rule=lt.optim.SGDRule(0.0),
        subspace=lt.optim.RandomIndices(),
        transport=lt.optim.Reset(),
        residual=lt.optim.ErrorFeedback(),
    )
    total = torch.zeros(shape)
    for t in range(9):
        p.grad = gradient(shape, t)
        total += p.grad
        opt.step()
    assert float((opt.state[p]["error"] - p.detach() - total).abs().max()) < 1e-5


def test_rotation_between_matrices_keeps_a_full_moment() -> None:
    """At full rank nothing is lost: the moment is the same matrix in every basis."""
    shape = (8, 20)
    p = torch.nn.Parameter(torch.zeros(shape))
    opt = lt.optim.LDAdam([{"params": [p], "rank": 8}], lr=LR)
    mean = torch.zeros(shape)
    for t in range(6):
        p.grad = gradient(shape, t)
        opt.step()
        mean = 0.908 * mean + 0.092 * p.grad
        full = matrix_of(opt, p).T.float() @ opt.state[p]["exp_avg"]
        assert torch.allclose(full, mean, atol=1e-4)
    assert float(opt.state[p]["error"].abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: lt.optim.LDAdam(g, rho=1.0), "rho"),
        (lambda g: lt.optim.LDAdam(g, error_feedback="int2"), "error_feedback"),
        (lambda g: lt.optim.DCTAdamW(g, power="l3"), "power"),
        (
            lambda g: lt.optim.Composed(g, transport=lt.optim.Rotate(), state=lt.optim.StateStore("int8")),
            "fp32",
        ),
        (
            lambda g: lt.optim.Composed(g, transport=lt.optim.Rotate(), subspace=lt.optim.RandomGaussian()),
            "stored",
        ),
        (
            lambda g: lt.optim.Composed(g, transport=lt.optim.Rotate(), rule=lt.optim.AdaBeliefRule()),
            "AdaBelief",
        ),
    ],
)
def test_bad_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "rank": 2}])
