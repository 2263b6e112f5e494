# SPDX-License-Identifier: Apache-2.0
"""Projections that are drawn when used: bits, addresses, lengths."""

from __future__ import annotations

import numpy as np
import pytest

import lowtide as lt


def matrix(m: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((m, n), dtype=np.float32)


@pytest.mark.parametrize("rank", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tiles_give_the_bits_of_the_whole(rank: int, side: str) -> None:
    G = matrix(37, 51)
    P = lt.lowrank.RandomProjection(rank)
    at = {"side": side, "seed": 7, "step": 3, "param": 2}
    whole = P.basis(G, **at)
    assert whole.shape == (rank, 51 if side == "right" else 37)
    R = P.project(G, **at)
    assert np.array_equal(R, lt.lowrank.project(G, whole, side))
    back = P.project_back(R, dim=whole.shape[1], **at)
    want = lt.lowrank.project_back(R.astype(np.float32), whole, side)
    # Tiles of 128 rows are added up: another order of the same sums of up to 300 products.
    assert np.abs(back - want).max() <= 300 * 2.0**-24 * np.abs(R).max() * np.abs(whole).max() * 4
    if rank <= 128:
        assert np.array_equal(back, want)


def test_address_decides(isa: str) -> None:
    G = matrix(16, 24)
    P = lt.lowrank.RandomProjection(4)
    one = P.basis(G, side="right", seed=1, step=2, param=3)
    assert np.array_equal(one, P.basis(2 * G, side="right", seed=1, step=2, param=3))
    for other in ({"seed": 2}, {"step": 3}, {"param": 4}):
        address = {"seed": 1, "step": 2, "param": 3, **other}
        assert not np.array_equal(one, P.basis(G, side="right", **address))
    z = lt.random.sample((4, 24), seed=1, step=2, slot=1, param=3)
    assert np.array_equal(one, z * np.float32(0.5))


def test_numpy_and_torch_agree() -> None:
    torch = pytest.importorskip("torch")
    G = matrix(20, 33)
    P = lt.lowrank.RandomProjection(70)
    for side in ("right", "left"):
        R = P.project(G, side=side, seed=5)
        T = P.project(torch.from_numpy(G), side=side, seed=5)
        assert np.array_equal(R, T.numpy())
        dim = G.shape[1 if side == "right" else 0]
        back = P.project_back(T, side=side, dim=dim, seed=5)
        assert np.array_equal(P.project_back(R, side=side, dim=dim, seed=5), back.numpy())


def test_signs_are_signs() -> None:
    P = lt.lowrank.RandomProjection(16, "rademacher")
    rows = P.basis(matrix(5, 51), side="right", seed=7)
    assert np.array_equal(np.abs(rows), np.full((16, 51), 0.25, np.float32))
    assert abs(rows.mean()) < 0.25 * 4 / np.sqrt(rows.size)
    R = P.project(matrix(5, 51), side="right", seed=7)
    assert np.array_equal(R, lt.lowrank.project(matrix(5, 51), rows, "right"))


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_lengths_are_kept_on_average(kind: str) -> None:
    x = matrix(1, 200)
    ratios = [
        float(np.square(lt.lowrank.RandomProjection(32, kind).project(x, side="right", seed=s)).sum())
        for s in range(400)
    ]
    mean = np.mean(ratios) / float(np.square(x).sum())
    # Each ratio has variance 2/32: the mean of 400 has a standard deviation of 0.0125.
    assert abs(mean - 1) < 4 * 0.0125


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_bad_rank(rank: object) -> None:
    with pytest.raises(lt.LowtideValueError, match="rank"):
        lt.lowrank.RandomProjection(rank)  # type: ignore[arg-type]


def test_bad_shapes() -> None:
    P = lt.lowrank.RandomProjection(3)
    with pytest.raises(lt.LowtideValueError, match="R must have 3"):
        P.project_back(matrix(4, 5), side="right", dim=8)
    with pytest.raises(lt.LowtideValueError, match="side"):
        P.project(matrix(4, 5), side="up")
