# SPDX-License-Identifier: Apache-2.0
"""The inverse Fisher of M-FAC: the static recursion, the dynamic form and the dense inverse are one matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide.curvature import MFAC, Layout, StaticMFAC

LAYOUT = Layout(("a", "b"), ((30,), (5, 8)), torch.float64)
DAMP = 1e-2


def gradients(m: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of decaying size, with a direction in common, as gradients have."""
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(m, n, generator=g, dtype=torch.float64) + torch.randn(
        n, generator=g, dtype=torch.float64
    )
    return (rows * 0.9 ** torch.arange(m, dtype=torch.float64)[:, None]).to(dtype)


def dense_inverse(rows: Tensor, damp: float = DAMP) -> Tensor:
    rows = rows.double()
    eye = torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.linalg.inv(damp * eye + rows.T @ rows / len(rows))


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_dynamic_equals_the_dense_inverse_while_the_window_fills_and_turns() -> None:
    rows = gradients(40, LAYOUT.n)
    inverse = MFAC(LAYOUT, ngrads=16, damp=DAMP)
    for t, g in enumerate(rows):
        inverse.push(LAYOUT.views(g))
        if t in (0, 3, 15, 16, 39):
            want = dense_inverse(rows[max(0, t - 15) : t + 1])
            assert inverse.count == min(t + 1, 16)
            # The condition number is 1e5 at most: eps times that.
            assert far(inverse.dense(), want) < 1e-10
            assert far(inverse.diagonal(), want.diagonal()) < 1e-10
            assert far(inverse.column(7), want[7]) < 1e-10


def test_static_equals_the_dense_inverse_and_the_dynamic_form() -> None:
    rows = gradients(16, LAYOUT.n)
    static = StaticMFAC(rows, LAYOUT, damp=DAMP)
    inverse = MFAC(LAYOUT, ngrads=16, damp=DAMP)
    for g in rows:
        inverse.push(g)
    assert far(static.dense(), dense_inverse(rows)) < 1e-10
    assert far(static.diagonal(), dense_inverse(rows).diagonal()) < 1e-10
    assert far(static.dense(), inverse.dense()) < 1e-10


@pytest.mark.parametrize(("kind", "nbytes"), [("fp32", 4), ("bf16", 2), ("int8", 1.02)])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000])
def test_windows_in_fewer_bits_are_inverted_as_they_are(kind: str, nbytes: float, n: int) -> None:
    """The inverse is that of the stored rows; these are the gradients, up to a step of their format."""
    rows = gradients(20, n, torch.float32)
    inverse = MFAC(n, ngrads=8, damp=0.1, window=kind)
    for g in rows:
        inverse.push(g)
    stored = torch.stack([inverse._store.row(inverse._window, i) for i in range(8)])
    near = {"fp32": 0.0, "bf16": 2**-8, "int8": 1 / 127}[kind]
    pushed = torch.stack([rows[16 + i] if i < 4 else rows[8 + i] for i in range(8)])
    assert float((stored - pushed).abs().max()) <= near * float(pushed.abs().max())
    x = torch.randn(n, generator=torch.Generator().manual_seed(1))
    # (damp I + S'S/m)^-1 x by Woodbury in double. Cancellation in float32: some eps * x / damp of the result.
    s = stored.double()
    inner = torch.linalg.solve(8 * 0.1 * torch.eye(8, dtype=torch.float64) + s @ s.T, s @ x.double())
    want = (x - s.T @ inner) / 0.1
    assert far(inverse @ x, want) < 1e-4
    part = (torch.linalg.inv(8 * 0.1 * torch.eye(8, dtype=torch.float64) + s @ s.T) @ s * s).sum(0)
    assert far(inverse.diagonal(), (1 - part) / 0.1) < 1e-4
    assert inverse.nbytes <= nbytes * 8 * n + 8 * 64 + 8 * 4


def test_int8_rows_are_unbiased() -> None:
    g = torch.linspace(-1, 1, 300)
    inverse = MFAC(300, ngrads=400, damp=1.0, window="int8")
    for _ in range(400):
        inverse.push(g)
    mean = torch.stack([inverse._store.row(inverse._window, i) for i in range(400)]).mean(0)
    # Rounding noise has a standard deviation of at most half a step, 1 / 127; five of the mean's.
    assert float((mean - g).abs().max()) < 5 * 0.5 / 127 / 400**0.5


def test_gradients_that_repeat_do_not_break_the_factor() -> None:
    inverse = MFAC(1000, ngrads=32, damp=1e-9)
    g = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        inverse.push(g)
    assert bool((inverse @ g).isfinite().all())
    rest = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    rest -= (rest @ g) / (g @ g) * g
    assert far((inverse @ rest) * 1e-9, rest) < 1e-3


def test_the_brain_surgeon_removes_what_costs_least() -> None:
    """On the quadratic of F itself: saliencies are the true rise in cost, the update the true minimum."""
    rows = gradients(100, LAYOUT.n)
    inverse = StaticMFAC(rows, LAYOUT, damp=0.1)
    fisher = torch.linalg.inv(dense_inverse(rows, 0.1))
    w = torch.randn(LAYOUT.n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scores = lt.curvature.obs_saliency(w, inverse.diagonal())
    q = int(scores.argmin())
    dynamic = MFAC(LAYOUT, ngrads=100, damp=0.1)
    for g in rows:
        dynamic.push(g)
    change = lt.curvature.obs_update(w, dynamic.column(q), q)
    assert abs(float((w + change)[q])) < 1e-12
    assert float(change @ fisher @ change / 2) == pytest.approx(float(scores[q]), rel=1e-9)


def test_bad_input_is_named_and_changes_nothing() -> None:
    inverse = MFAC(4, ngrads=2, damp=1.0)
    inverse.push(torch.ones(4))
    before = inverse @ torch.ones(4)
    for bad, match in (
        (lambda: inverse.push(torch.tensor([1.0, float("nan"), 0.0, 0.0])), "gradient"),
        (lambda: inverse.push(torch.ones(5)), "gradient"),
        (lambda: inverse.column(4), "index"),
        (lambda: MFAC(4, ngrads=0), "ngrads"),
        (lambda: MFAC(4, damp=0.0), "damp"),
        (lambda: MFAC(4, window="int3"), "window"),
        (lambda: MFAC(0), "space"),
        (lambda: StaticMFAC([], 4), "gradients"),
        (lambda: StaticMFAC([torch.full((4,), torch.inf)], 4), "gradients"),
    ):
        with pytest.raises(lt.LowtideError, match=match):
            bad()
    assert torch.equal(inverse @ torch.ones(4), before)
    inverse.reset()
    assert inverse.count == 0
    assert torch.equal(inverse @ torch.ones(4), torch.ones(4))
