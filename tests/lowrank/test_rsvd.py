# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import _core, ops


def gradient(m: int, n: int, decay: float = 1.0, seed: int = 1, noise: float = 0.01) -> torch.Tensor:
    """Singular values k^-decay over a floor of noise, as gradients of trained layers have."""
    k = min(m, n)
    gen = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, k, generator=gen)).Q
    v = torch.linalg.qr(torch.randn(n, k, generator=gen)).Q
    s = torch.arange(1, k + 1, dtype=torch.float32) ** -decay
    return (u * s) @ v.T + noise * torch.randn(m, n, generator=gen) / (m * n) ** 0.5


def captured(g: torch.Tensor, q: torch.Tensor, side: str) -> float:
    g, q = g.double(), q.double()
    r = g @ q.T if side == "right" else q @ g
    return float((r**2).sum() / (g**2).sum())


def best(g: torch.Tensor, rank: int) -> float:
    s = torch.linalg.svdvals(g.double()) ** 2
    return float(s[:rank].sum() / s.sum())


def orthonormal(q: torch.Tensor) -> None:
    assert (q.double() @ q.double().T - torch.eye(q.shape[0])).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_energy_against_the_exact_svd(shape: tuple[int, int], side: str, dtype: torch.dtype) -> None:
    g = gradient(*shape).to(dtype)
    for rank in (4, 32):
        q = ops.rsvd(g, rank, side=side, seed=3)
        orthonormal(q)
        assert captured(g, q, side) >= 0.99 * best(g.float(), rank)
        warm = ops.rsvd(g, rank, side=side, prev=q)
        orthonormal(warm)
        assert captured(g, warm, side) >= captured(g, q, side) - 1e-6


def test_warm_start_follows_a_drifting_gradient() -> None:
    a, b = gradient(96, 160, seed=1), gradient(96, 160, seed=2)
    q = ops.rsvd(a, 24, side="right")
    for t in torch.linspace(0.05, 0.5, 10):
        g = (1 - t) * a + t * b
        new = ops.rsvd(g, 24, side="right", prev=q)
        assert captured(g, new, "right") >= 0.98 * best(g, 24)
        assert (torch.linalg.vecdot(new, q) > 0).all()  # aligned row by row
        q = new


# Exact top-r energy is the measure; 600 is long enough to be folded, 110 is not.
@pytest.mark.parametrize("decay", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(("shape", "side"), [((96, 600), "left"), ((600, 96), "right"), ((110, 96), "right")])
def test_warm_start_from_a_far_basis(shape: tuple[int, int], side: str, decay: float) -> None:
    g = gradient(*shape, decay=decay, noise=0.3)
    want = best(g, 24)
    d = shape[1] if side == "right" else shape[0]
    assert captured(g, ops.rsvd(g, 24, side=side), side) >= 0.99 * want
    random = torch.linalg.qr(torch.randn(d, 24, generator=torch.Generator().manual_seed(5))).Q.T.contiguous()
    unrelated = ops.rsvd(gradient(*shape, decay=decay, seed=9), 24, side=side)
    for prev in (random, unrelated):
        assert captured(g, prev, side) < 0.6 * want
        q = ops.rsvd(g, 24, side=side, prev=prev)
        orthonormal(q)
        assert captured(g, q, side) >= 0.99 * want
        # Aligned as far as the subspaces overlap at all.
        assert torch.linalg.vecdot(q, prev).mean() > 0


def test_warm_start_from_the_answer_stays_there() -> None:
    for shape, side in (((96, 600), "left"), ((110, 96), "right")):
        g = gradient(*shape, decay=0.5)
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        exact = (vh[:24] if side == "right" else u[:, :24].T).contiguous()
        q = ops.rsvd(g, 24, side=side, prev=exact)
        assert captured(g, q, side) >= 0.995 * best(g, 24)


def test_views_and_shapes() -> None:
    g = gradient(40, 70)
    want = ops.rsvd(g, 9, side="right", seed=2)
    assert want.shape == (9, 70)
    assert torch.equal(ops.rsvd(g.T.contiguous().T, 9, side="right", seed=2), want)
    wide = torch.zeros(40, 140)
    wide[:, ::2] = g
    assert torch.equal(ops.rsvd(wide[:, ::2], 9, side="right", seed=2), want)
    assert ops.rsvd(g, 1000, side="left").shape == (40, 40)
    assert ops.rsvd(g.requires_grad_(), 3, side="left").requires_grad is False


def test_numpy_and_torch_give_the_same_bits(isa: str) -> None:
    g = gradient(60, 90)
    want = ops.rsvd(g, 12, side="left", seed=5, step=6, param=7)
    got = _core.rsvd(g.numpy(), 12, True, None, 8, 1, 5, 6, 7)
    assert got.tobytes() == want.numpy().tobytes()
    warm = ops.rsvd(g, 12, side="left", prev=want)
    assert _core.rsvd(g.numpy(), 12, True, got, 8, 1, 0, 0, 0).tobytes() == warm.numpy().tobytes()


def test_one_digest_for_every_isa_and_thread_count() -> None:
    g = gradient(61, 300).numpy()
    before, threads = lt.isa(), lt.num_threads()
    results = set()
    for isa in lt.available_isas():
        lt.set_isa(isa)
        for n in (1, 2, 3):
            lt.set_num_threads(n)
            results.add(_core.rsvd(g, 17, False, None, 8, 1, 1, 2, 3).tobytes())
    lt.set_isa(before)
    lt.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.rsvd(torch.ones(3, 4), 0, side="right"), "rank must be"),
        (lambda: ops.rsvd(torch.ones(3, 4), 2.0, side="right"), "rank must be"),  # type: ignore[arg-type]
        (lambda: ops.rsvd(torch.ones(3, 4), 2, side="both"), "'right' or 'left'"),
        (lambda: ops.rsvd(torch.ones(3), 2, side="left"), "two dimensions"),
        (lambda: ops.rsvd(torch.ones(3, 4).double(), 2, side="left"), "float32 or bfloat16"),
        (lambda: ops.rsvd(np.ones((3, 4)), 2, side="left"), "got ndarray"),  # type: ignore[arg-type]
        (lambda: ops.rsvd(torch.ones(3, 4), 2, side="left", prev=torch.ones(2, 4)), "shape of the new basis"),
        (lambda: ops.rsvd(torch.ones(3, 4), 2, side="left", oversample=-1), "oversample"),
        (lambda: ops.rsvd(torch.ones(3, 4), 2, side="left", seed=-1), "seed"),
        (lambda: ops.rsvd(torch.full((3, 4), float("nan")), 2, side="left"), "not finite"),
        (
            lambda: ops.rsvd(torch.tensor([[1.0, float("inf")]]), 1, side="right", prev=torch.ones(1, 2)),
            r"element \[0, 1\]",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_opcheck_and_compile() -> None:
    g = gradient(12, 20)
    q = ops.rsvd(g, 3, side="right")
    for prev in (None, q):
        torch.library.opcheck(torch.ops.lowtide.rsvd.default, (g, 3, False, prev, 8, 1, 0, 0, 0))

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.rsvd(x * 2, 3, side="right") + 1

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(g), f(g))
