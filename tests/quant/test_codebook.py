# SPDX-License-Identifier: Apache-2.0
"""Codebooks: k-means, packing, candidate and joint mappings, against brute force."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide.quant import codebook
from lowtide.quant.codebook import _kmeans


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_t(4, (n, d)), dtype=torch.float32)


# ---- packing


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 33])
def test_packing_round_trips(bits: int, n: int) -> None:
    index = torch.tensor(np.random.default_rng(0).integers(0, 1 << bits, (5, n)))
    codes = codebook.pack(index, bits)
    assert codes.dtype == torch.uint8
    assert tuple(codes.shape) == (5, -(-n * bits // 8))
    assert torch.equal(codebook.unpack(codes, bits, n), index)
    for r in range(5):  # the first index in the lowest bits
        number = int.from_bytes(bytes(codes[r].tolist()), "little")
        assert [number >> bits * i & (1 << bits) - 1 for i in range(n)] == index[r].tolist()


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(lt.LowtideValueError, match=r"\[0, 4\)"):
        codebook.pack(torch.tensor([[4]]), 2)
    with pytest.raises(lt.LowtideValueError, match="bits must be one of"):
        codebook.pack(torch.tensor([[4]]), 3)
    with pytest.raises(lt.LowtideValueError, match="codes must be uint8"):
        codebook.unpack(torch.zeros(2, 3, dtype=torch.uint8), 4, 7)


# ---- k-means


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 999, 1 << 24])
def test_assign_is_the_nearest_codeword(d: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kmeans, "_BLOCK_BYTES", block)  # any chunk gives the same
    x, book = points(200, d), points(17, d, seed=1)
    index, error = codebook.assign(x, book)
    distance = torch.cdist(x.double(), book.double()).square()
    # Where two codewords are equally near up to rounding either may be taken: distances decide.
    best = distance.min(1).values
    torch.testing.assert_close(distance.gather(1, index[:, None])[:, 0], best, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(error.double(), best, rtol=1e-4, atol=1e-9)


def test_ties_go_to_the_lower_codeword() -> None:
    book = torch.tensor([[0.0], [2.0], [1.0]])
    assert codebook.assign(torch.tensor([[0.5], [1.5], [1.0], [9.0]]), book)[0].tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize("d", [1, 3])
def test_seeding_draws_by_weighted_distance(d: int) -> None:
    x, weight = points(300, d), points(300, 1)[:, 0].square()
    book = codebook.kmeans_init(x, 9, weight=weight, seed=5)
    # Again, in NumPy, with the same uniform numbers.
    z = lt.random.sample(9, seed=5, slot=0, role="u")
    u = torch.special.ndtr(torch.tensor(z, dtype=torch.float64)).numpy()
    a, w = x.double().numpy(), weight.double().numpy()
    chosen: list[int] = []
    nearest = np.full(300, np.inf)
    for i in range(9):
        p = w if i == 0 else nearest * w
        c = np.cumsum(p)
        chosen.append(int(np.searchsorted(c, u[i] * c[-1], side="right")))
        step = (x - x[chosen[-1]]).double().square().sum(1).numpy()
        nearest = np.minimum(nearest, step)
    assert np.array_equal(book.numpy(), a[chosen].astype(np.float32))
    assert not torch.equal(book, codebook.kmeans_init(x, 9, weight=weight, seed=6))


def test_seeding_of_many_and_of_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kmeans, "_SEEDING_POINTS", 64)
    x = torch.arange(1000.0)[:, None]
    book = codebook.kmeans_init(x, 32)
    assert book.unique().numel() == 32
    assert codebook.kmeans_init(torch.ones(5, 2), 4).tolist() == [[1.0, 1.0]] * 4


def test_clusters_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [5.0, 5.0]])
    x = (centres[:, None] + 0.1 * points(500, 2).reshape(5, 100, 2)).reshape(-1, 2)
    book, losses = codebook.kmeans(x, 5)
    found = torch.cdist(book, centres).argmin(1)
    assert sorted(found.tolist()) == list(range(5))
    means = x.reshape(5, 100, 2).mean(1)
    torch.testing.assert_close(book[found.argsort()], means)
    assert losses[-1] <= losses[0]


@pytest.mark.parametrize("d", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_step_lowers_the_distortion(d: int, weighted: bool) -> None:
    x = points(2000, d)
    weight = points(2000, 1, seed=2)[:, 0].abs() if weighted else None
    start = codebook.kmeans_init(x, 16, weight=weight)
    book, losses = codebook.kmeans(x, 16, weight=weight, start=start, tolerance=0.0, iterations=60)
    assert len(losses) > 5
    assert all(b <= a for a, b in itertools.pairwise(losses))
    # Reported numbers are those of the books: the first of the start, the last of the result.
    w = torch.ones(2000, dtype=torch.float64) if weight is None else weight.double()
    for b, loss in ((start, losses[0]), (book, losses[-1])):
        distance = torch.cdist(x.double(), b.double()).square().min(1).values
        assert float((distance * w).sum()) == pytest.approx(loss, rel=1e-4)
    if d == 1:
        assert torch.equal(book, book.sort(0).values)
    # One step by hand.
    one, _ = codebook.kmeans(x, 16, weight=weight, start=start, iterations=1)
    near = torch.cdist(x.double(), start.double()).argmin(1)
    for j in range(16):
        at = near == j
        mean = (x.double()[at] * w[at, None]).sum(0) / w[at].sum()
        assert float((one.double() - mean).square().sum(1).min()) < 1e-10


def test_an_empty_codeword_moves_to_the_worst_served_point() -> None:
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1], [100.0]])
    start = torch.tensor([[0.0], [5.0], [1e6]])
    book, _ = codebook.kmeans(x, 3, start=start, iterations=20)
    assert book[:, 0].tolist() == pytest.approx([0.05, 5.05, 100.0])


# ---- the format


@pytest.mark.parametrize(
    ("k", "dim", "bits"), [(2, 1, 1), (4, 2, 2), (16, 1, 4), (11, 3, 4), (256, 4, 8), (300, 2, 16)]
)
@pytest.mark.parametrize("row_scale", [False, True])
def test_fit_maps_each_subvector_to_its_nearest_codeword(
    k: int, dim: int, bits: int, row_scale: bool
) -> None:
    w = points(12, 130) * points(12, 1, seed=3).exp()
    w[3] = 0
    q = codebook.fit(w, k, dim=dim, row_scale=row_scale, iterations=5)
    assert q.bits == bits
    per_row = -(-130 // dim)
    stored = 12 * -(-per_row * bits // 8) + 2 * k * dim + (48 if row_scale else 0)
    assert q.nbytes == stored
    assert q.bits_per_weight == 8 * stored / w.numel()
    y = q.dequantize()
    assert y.shape == w.shape
    scale = w.double().square().mean(1, keepdim=True).sqrt().float() if row_scale else torch.ones(12, 1)
    x = torch.where(scale > 0, w / scale.clamp_min(1e-30), 0)
    padded = torch.nn.functional.pad(x, (0, per_row * dim - 130)).reshape(-1, dim)
    distance = torch.cdist(padded.double(), q.book.double()).square()
    got = distance.gather(1, q.indices().reshape(-1, 1))[:, 0]
    torch.testing.assert_close(got, distance.min(1).values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        y, (q.book.float()[q.indices()].reshape(12, -1)[:, :130] * scale), rtol=0, atol=0
    )
    again = codebook.fit(w, k, dim=dim, row_scale=row_scale, iterations=5)
    assert torch.equal(again.codes, q.codes)
    if row_scale:
        assert not y[3].any() or k < 3  # a row of zeros has scale 0

    file = io.BytesIO()
    torch.save(q.to_dict(), file)
    file.seek(0)
    back = codebook.Codebook.from_dict(torch.load(file, weights_only=True))
    assert torch.equal(back.dequantize(), y)
    assert back.dequantize("bfloat16").dtype == torch.bfloat16


def test_better_than_plain_int4_at_fewer_bits() -> None:
    w = points(256, 512)
    plain = lt.quant.quantize(w, 4, 128)
    q = codebook.fit(w, 256, dim=2, iterations=8)
    assert q.bits_per_weight < 4.07 < 8 * plain.nbytes / w.numel() == 4.25
    assert (w - q.dequantize()).norm() < 0.7 * (w - plain.dequantize()).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(dtype: torch.dtype) -> None:
    w = points(8, 32).to(dtype)
    q = codebook.fit(w, 256)
    assert q.dequantize().dtype == dtype
    assert (q.dequantize().float() - w.float()).norm() < 0.05 * w.float().norm()
    assert codebook.Codebook.from_dict(q.to_dict()).dequantize("float32").dtype == torch.float32


def test_rows_of_one_distribution_share_a_book() -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(96) % 3
    wide, two_sided = rng.standard_normal((96, 256)) * 2, rng.choice([-1.0, 1.0], (96, 256))
    rows = np.where(kinds[:, None] == 0, rng.standard_normal((96, 256)) * 0.3, wide)
    rows = np.where(kinds[:, None] == 2, two_sided + 0.05 * rng.standard_normal((96, 256)), rows)
    w = torch.tensor(rows, dtype=torch.float32)
    q = codebook.fit(w, 16, books=3)
    groups = [set(q.row_book[kinds == kind].tolist()) for kind in range(3)]
    assert [len(g) for g in groups] == [1, 1, 1]
    assert set.union(*groups) == {0, 1, 2}
    single = codebook.fit(w, 16)
    assert q.nbytes == single.nbytes + 2 * 2 * 16 + 96
    errors = [(w - c.dequantize()).square().mean(1) for c in (q, single)]
    assert errors[0].sum() < errors[1].sum()
    assert errors[0][kinds == 2].sum() < 0.1 * errors[1][kinds == 2].sum()
    for kind in range(3):  # each group is what a codebook of its own would be
        mine = torch.tensor(kinds == kind)
        assert torch.equal(q.dequantize()[mine], codebook.fit(w[mine], 16).dequantize())
    file = io.BytesIO()
    torch.save(q.to_dict(), file)
    file.seek(0)
    assert torch.equal(
        codebook.Codebook.from_dict(torch.load(file, weights_only=True)).dequantize(), q.dequantize()
    )

    for m in (codebook.CandidateMapping(q, w, n=2), codebook.JointMapping(q, w, n=3)):
        assert torch.equal(m.harden().dequantize(), q.dequantize())
        owner = q.row_book.long()[:, None, None]
        own = m.candidate.reshape(96, -1, m.candidate.shape[1])
        assert bool((own // 16 == owner).all())
        (m() - w).square().sum().backward()
        assert bool(m.book.grad.any(1).all())


def test_importance_moves_codewords_to_where_it_counts() -> None:
    w = points(64, 64)
    weight = torch.where(w > 0, 100.0, 0.01)
    q, plain = codebook.fit(w, 16, weight=weight), codebook.fit(w, 16)
    error = [float(((w - t.dequantize()).square() * weight).sum()) for t in (q, plain)]
    assert error[0] < 0.6 * error[1]


def test_damaged_states_are_refused() -> None:
    good = codebook.fit(points(4, 30), 5, dim=2, row_scale=True).to_dict()
    two = codebook.fit(points(4, 30), 5, dim=2, books=2).to_dict()
    bad = [
        ({**good, "extra": 1}, "keys"),
        ({**good, "codes": good["codes"] | 0xFF}, "beyond the 5 codewords"),
        ({**good, "codes": good["codes"][:, 1:]}, "codes must be uint8"),
        ({**good, "book": good["book"] / 0}, "finite"),
        ({**good, "book": good["book"][:0]}, "codewords"),
        ({**good, "book": 3}, "must be a torch tensor"),
        ({**good, "row_scale": -good["row_scale"]}, "row_scale"),
        ({**good, "bits": 3}, "bits must be one of"),
        ({**good, "shape": (4, -30)}, "shape"),
        ({**good, "row_book": torch.zeros(4, dtype=torch.uint8)}, "row_book"),
        ({**good, "books": 2}, "book must hold 2 books"),
        ({**good, "books": 5}, "codes point beyond"),
        ({**good, "books": 0}, "books must be"),
        ({**two, "row_book": two["row_book"] + 1}, "row_book"),
        ({**two, "row_book": two["row_book"][1:]}, "row_book"),
        ({**two, "row_book": None}, "row_book"),
        ({**good, "shape": (4, 60)}, "codes must be uint8"),
        ({**good, "dtype": "int8"}, "dtype"),
    ]
    for state, words in bad:
        with pytest.raises(lt.LowtideError, match=words):
            codebook.Codebook.from_dict(state)


# ---- mappings


def test_candidates_are_the_nearest_codewords() -> None:
    x, book = points(100, 3), points(20, 3, seed=1)
    index, distance = codebook.candidates(x, book, 4)
    want = torch.cdist(x.double(), book.double()).sort(1)
    assert torch.equal(index, want.indices[:, :4])
    torch.testing.assert_close(distance.double(), want.values[:, :4])


def test_vq4dit_ratios_weights_and_loss() -> None:
    w = points(6, 20)
    q = codebook.fit(w, 8, dim=4)
    m = codebook.CandidateMapping(q, w, n=3)
    x = w.reshape(-1, 4)
    distance = torch.cdist(x.double(), q.book.double()).sort(1)
    inverse = 1 / distance.values[:, :3]
    r = inverse / inverse.sum(1, keepdim=True)
    torch.testing.assert_close(m.ratios().double(), r, rtol=2e-3, atol=1e-4)  # eps = 1e-5 beside the distance
    r = m.ratios().double()
    soft = (r[..., None] * q.book.double()[distance.indices[:, :3]]).sum(1)
    torch.testing.assert_close(m().double(), soft.reshape(6, 20), rtol=1e-5, atol=1e-6)
    assert m.ratio_loss().item() == pytest.approx((3 * (r * (1 - r)).mean()).item(), rel=1e-5)
    # Hard, it is the codebook it came from: the largest ratio belongs to the nearest codeword.
    assert torch.equal(m.harden().dequantize(), q.dequantize())
    m().square().sum().backward()
    assert bool(m.logits.grad.any())
    assert bool(m.book.grad.any())

    with torch.no_grad():
        m.logits[:7, 1] += 30
    assert m.freeze_(0.99) >= 7
    certain = m.certain.clone()
    m.zero_grad()
    (m() - w).square().sum().backward()
    assert not m.logits.grad[certain].any()
    ratios = m.ratios()
    assert set(ratios[certain].flatten().tolist()) == {0.0, 1.0}
    rest = ratios[~certain].double()
    assert m.ratio_loss().item() == pytest.approx((3 * (rest * (1 - rest)).mean()).item(), rel=1e-5)
    hard = m.harden()
    assert torch.equal(hard.indices().flatten()[:7], m.candidate[:7, 1])


@pytest.mark.parametrize("rule", ["plain", "proximal"])
def test_joint_mapping_gradients(rule: str) -> None:
    rng = np.random.default_rng(0)
    book, logits = rng.standard_normal((10, 3)), rng.standard_normal((40, 4))
    candidate = np.stack([rng.permutation(10)[:4] for _ in range(40)])
    book[7] = book[2]  # two codewords at one place: no direction between them
    tb = torch.tensor(book, requires_grad=True)
    tl = torch.tensor(logits, requires_grad=True)
    v = codebook.joint_mapping(tb, tl, torch.tensor(candidate), rule)
    g = rng.standard_normal((40, 3))
    v.backward(torch.tensor(g))
    best = candidate[np.arange(40), logits.argmax(1)]
    assert np.array_equal(v.detach().numpy(), book[best])
    d_book, d_logits = np.zeros_like(book), np.zeros_like(logits)
    for i in range(40):
        d_book[best[i]] += g[i]
        step = book[candidate[i]] - book[best[i]]
        d = np.sqrt((step**2).sum(1))
        nearest = d[d > 0].min()
        for c in range(4):
            if d[c] > 0:
                phi = 1.0 if rule == "plain" else (nearest / d[c]) ** 2
                d_logits[i, c] = g[i] @ step[c] * phi
    np.testing.assert_allclose(tb.grad.numpy(), d_book, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(tl.grad.numpy(), d_logits, rtol=1e-12, atol=1e-15)
    if rule == "proximal":  # along one line the gradient falls with the distance, where the plain one grows
        line = torch.tensor([[0.0], [1.0], [2.0], [4.0]], dtype=torch.float64)
        z = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
        codebook.joint_mapping(line, z, torch.arange(4)[None]).backward(torch.ones(1, 1, dtype=torch.float64))
        assert z.grad.tolist() == [[0.0, 1.0, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("make", "rate", "most"),
    [
        (lambda q, w: codebook.CandidateMapping(q, w, 3), 5e-2, 0.8),
        (lambda q, w: codebook.JointMapping(q, w, 4), 1e-2, 0.85),
    ],
)
def test_calibration_lowers_the_output_error(
    make: Callable[..., torch.nn.Module], rate: float, most: float
) -> None:
    """Inputs with a few strong directions: the best codewords for W are not the best for W x."""
    torch.manual_seed(0)
    w = points(32, 64)
    x = torch.randn(256, 64) * torch.logspace(0, -2, 64)[torch.randperm(64)]
    y = x @ w.T
    q = codebook.fit(w, 16, dim=2)
    before = float((x @ q.dequantize().T - y).square().mean())
    m = make(q, w)
    opt = torch.optim.Adam([{"params": [m.book], "lr": 1e-2}, {"params": [m.logits], "lr": rate}])
    for step in range(300):
        opt.zero_grad()
        loss = (x @ m().T - y).square().mean()
        if isinstance(m, codebook.CandidateMapping):
            loss = loss + 30 * step / 300 * m.ratio_loss()
        loss.backward()
        opt.step()
        if isinstance(m, codebook.CandidateMapping) and step % 20 == 19:
            m.freeze_(0.99)
    hard = m.harden()
    assert hard.nbytes == q.nbytes
    assert not torch.equal(hard.codes, q.codes)  # assignments moved, not codewords alone
    assert float((x @ hard.dequantize().T - y).square().mean()) < most * before


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: codebook.fit(w, 0), "k must be"),
        (lambda w: codebook.fit(w, 1 << 17), "k must be"),
        (lambda w: codebook.fit(w, 4, dim=0), "dim must be"),
        (lambda w: codebook.fit(w, 4, books=5), "between 1 and 4"),
        (lambda w: codebook.fit(w, 4, books=0), "books must be"),
        (lambda w: codebook.fit(w / 0, 4), "non-finite"),
        (lambda w: codebook.fit(w * 1e30, 4), r"book_dtype=torch\.float32"),
        (lambda w: codebook.fit(w.double(), 4), "dtype of w must be one of"),
        (lambda w: codebook.fit(w[:0], 4), "element at least"),
        (lambda w: codebook.fit(w, 4, weight=-w.abs()), "weight must be"),
        (lambda w: codebook.fit(w, 4, weight=w[0]), "shape of w"),
        (lambda w: codebook.fit(w, 4, seed=-1), "seed must be"),
        (lambda w: codebook.fit(w, 4, iterations=-1), "iterations"),
        (lambda w: codebook.assign(w, w[:, :2]), "dimensions"),
        (lambda w: codebook.candidates(w, w, 99), "n must be"),
        (lambda w: codebook.CandidateMapping(codebook.fit(w, 4), w[:1]), "shape of q"),
        (lambda w: codebook.JointMapping(codebook.fit(w, 4), w, rule="far"), "rule must be"),
        (lambda w: codebook.joint_mapping(w, w, w[:1].long()), "one shape"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[torch.Tensor], object], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call(points(4, 8))
