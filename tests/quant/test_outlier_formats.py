# SPDX-License-Identifier: Apache-2.0
"""gwq and outliers: low-bit groups with a sparse 16-bit side tensor."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant import OutlierLinear, gwq, outliers


def heavy_tailed(*shape: int, seed: int = 0) -> torch.Tensor:
    """Student's t with 3 degrees of freedom."""
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.standard_t(3, shape), dtype=torch.float32)


def error(w: torch.Tensor, q: torch.Tensor, weight: torch.Tensor | float = 1.0) -> float:
    return float(((w.double() - q.double()).square() * weight).sum())


# ---- selection


@pytest.mark.parametrize("n", [1, 2, 255, 1 << 16, (1 << 20) + 3])
def test_kth_largest_is_that_of_a_sort(n: int) -> None:
    g = heavy_tailed(n)
    g[::3] *= 1e-30
    want = g.abs().sort(descending=True).values
    for k in {1, (n + 1) // 2, n}:
        value, ties = gwq.kth_largest([g[: n // 3], g[n // 3 :]] if n > 2 else g, k)
        assert value == float(want[k - 1])
        assert ties == k - int((want > value).sum())


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 1.0])
def test_select_takes_the_largest_and_among_equals_the_first(fraction: float) -> None:
    g = torch.tensor(np.random.default_rng(0).integers(-3, 4, (13, 47)), dtype=torch.float32)  # many ties
    g[0, 0] = -0.0
    mask = gwq.select(g, fraction)
    order = g.abs().flatten().argsort(descending=True, stable=True)[: math.floor(fraction * g.numel())]
    want = torch.zeros(g.numel(), dtype=torch.bool)
    want[order] = True
    assert torch.equal(mask.flatten(), want)
    assert torch.equal(gwq.select(g.to(torch.bfloat16), fraction), mask)


def brute_force_rule(group: torch.Tensor, limit: int) -> set[int]:
    a = group.double().abs()
    order = a.argsort(descending=True, stable=True).tolist()
    best, best_gain = 0, 0.0
    for k in range(1, min(limit, len(order) - 1) + 1):
        rest = float(a[order[k]])
        gain = (len(order) - k) * math.log2(float(a[order[0]]) / rest) - 32 * k if rest else math.inf
        if gain > best_gain:
            best, best_gain = k, gain
        if gain == math.inf:
            break
    return set(order[:best])


@pytest.mark.parametrize(("cols", "group"), [(256, 64), (100, 64), (33, 32), (5, 32)])
def test_outliers_follow_the_rule(cols: int, group: int) -> None:
    w = heavy_tailed(40, cols)
    w[0, :3] = torch.tensor([50.0, -80.0, 60.0])
    mask = outliers.select(w, group, limit=4)
    for r in range(40):
        for at in range(0, cols, group):
            want = brute_force_rule(w[r, at : at + group], 4)
            got = set(mask[r, at : at + group].nonzero()[:, 0].tolist())
            assert got == want, (r, at)
    assert bool(mask[0, :3].all()) == (cols > 5)  # in 5 columns three values aside cost more than they bring
    assert (int(mask.sum()) > 0) == (cols > 5)
    assert int(mask.sum()) < mask.numel() // 10


def test_groups_without_outliers_stay_whole() -> None:
    assert not outliers.select(torch.zeros(3, 64), 32).any()
    assert not outliers.select(torch.empty(0, 64), 32).any()
    assert not outliers.select(torch.empty(3, 0), 32).any()
    assert not outliers.select(torch.rand(100, 128) + 0.5, 128).any()
    assert not outliers.select(heavy_tailed(100, 128), 128, limit=0).any()
    normal = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0))
    assert 0.001 < float(outliers.select(normal).float().mean()) < 0.004  # the docstring's 0.2 %


# ---- the format


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(7, 100), (1, 32), (3, 2, 33), (64,), (0, 32), (3, 0)])
def test_against_brute_force(shape: tuple[int, ...], bits: int, scheme: str) -> None:
    w, g = heavy_tailed(*shape), heavy_tailed(*shape, seed=1)
    q = gwq.quantize(w, g, bits=bits, group=32, fraction=0.1, scheme=scheme)
    mask = gwq.select(g, 0.1)
    assert q.outliers == int(mask.sum()) == math.floor(0.1 * w.numel())
    rest = torch.where(mask, 0, w)
    dense = lt.quant.quantize(rest, bits, 32, scheme=scheme)
    assert torch.equal(q.dense.scale, dense.scale)  # of the rest alone
    want = torch.where(mask, w.half().float(), dense.dequantize())
    assert torch.equal(q.dequantize(), want)
    rows, cols = math.prod(w.shape[:-1]), w.shape[-1]
    side = 4 * (rows + 1) + (2 + 2) * q.outliers
    assert q.nbytes == dense.nbytes + side
    assert q.bits_per_weight == 8 * (dense.nbytes + side) / max(1, w.numel())
    crow = np.concatenate([[0], np.cumsum(mask.reshape(rows, cols).sum(1).numpy())])
    assert q.row_start.tolist() == crow.tolist()
    assert q.value.dtype == torch.float16

    file = io.BytesIO()
    torch.save(q.to_dict(), file)
    file.seek(0)
    back = gwq.DenseSparse.from_dict(torch.load(file, weights_only=True))
    assert torch.equal(back.dequantize(), want)
    assert str(back.outliers) in repr(back)


def test_wide_rows_and_bfloat16() -> None:
    w = torch.zeros(1, 40000)
    w[0, 39999] = 1000.0
    q = gwq.quantize(w, w, fraction=1 / 40000)
    assert q.column.dtype == torch.int32
    assert q.column.tolist() == [39999]
    assert torch.equal(q.dequantize(), w)
    b = heavy_tailed(4, 64).to(torch.bfloat16)
    q = outliers.quantize(b * 1e6, group=32)
    assert q.value.dtype == torch.bfloat16
    assert q.dequantize().dtype == torch.bfloat16
    mask = outliers.select(b * 1e6, 32)
    assert bool(mask.any())
    assert torch.equal(q.dequantize()[mask], (b * 1e6)[mask])
    with pytest.raises(lt.LowtideValueError, match=r"value_dtype=torch\.bfloat16"):
        gwq.quantize(w * 1e6, w, fraction=1 / 40000)


def test_float16_weights_are_exact_aside() -> None:
    w = heavy_tailed(4, 64).half()
    q = outliers.quantize(w, group=32)
    mask = outliers.select(w, 32)
    assert q.dequantize().dtype == torch.float16
    assert bool(mask.any())
    assert torch.equal(q.dequantize()[mask], w[mask])


def test_damaged_states_are_refused() -> None:
    w = heavy_tailed(5, 64)
    good = gwq.quantize(w, w, group=32, fraction=0.1)
    other = gwq.quantize(w, w.roll(1, 1), group=32, fraction=0.1)

    def changed(**parts: object) -> dict[str, object]:
        return {**good.to_dict(), **parts}

    start, column = good.row_start, good.column
    bad = [
        ({"dense": good.to_dict()["dense"]}, "keys"),
        (changed(row_start=start + 1), "describe a sparse matrix"),
        (changed(row_start=start.flip(0)), "describe a sparse matrix"),
        (changed(row_start=start[:-1]), "describe a sparse matrix"),
        (changed(column=column + 64), "describe a sparse matrix"),
        (changed(column=-column - 1), "describe a sparse matrix"),
        (changed(column=column.flip(0)), "describe a sparse matrix"),
        (changed(column=column.long()), "column must be torch.int16"),
        (changed(value=good.value / 0), "describe a sparse matrix"),
        (changed(value=good.value[1:]), "describe a sparse matrix"),
        (changed(value=good.value.float()), "float16 or bfloat16"),
        (changed(value=[1.0]), "must be a torch tensor"),
        (changed(dense=other.to_dict()["dense"]), "must be 0 in place"),
        (changed(dense=lt.quant.quantize(w, 4, 32, flat=True).to_dict()), "along rows"),
        (
            changed(dense=lt.quant.quantize(w.abs(), 4, 32, scheme="linear_nozero").to_dict()),
            "scheme of dense",
        ),
    ]
    for state, words in bad:
        with pytest.raises(lt.LowtideError, match=words):
            gwq.DenseSparse.from_dict(state)
    assert torch.equal(gwq.DenseSparse.from_dict(changed()).dequantize(), good.dequantize())


def test_smaller_error_than_plain_int4_of_more_bits() -> None:
    w = heavy_tailed(128, 1024)
    aside = outliers.quantize(w, group=256)
    plain = lt.quant.quantize(w, 4, 32)
    assert aside.bits_per_weight < 4.6 < 8 * plain.nbytes / w.numel() == 5.0
    assert error(w, aside.dequantize()) < 0.8 * error(w, plain.dequantize())

    # What GWQ bounds is the change of the loss: gradients weigh the error. Like those of real layers, and unlike
    # Student's t itself, the cube has most of its energy in 1 % of the elements.
    g = heavy_tailed(128, 1024, seed=1) ** 3
    q = gwq.quantize(w, g, group=128)
    assert q.bits_per_weight < 4.65
    assert error(w, q.dequantize(), g.square()) < 0.8 * error(w, plain.dequantize(), g.square())


# ---- the layer


@pytest.mark.parametrize("compressed", [True, False])
def test_layer_equals_its_dequantized_weight(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compressed:  # as on a torch without MKL
        monkeypatch.setattr("lowtide.quant._outlier_linear._compressed_products", lambda: False)
    torch.manual_seed(0)
    for linear, dtype in (
        (nn.Linear(100, 48), torch.float32),
        (nn.Linear(64, 8, bias=False), torch.bfloat16),
    ):
        linear = linear.to(dtype)
        layer = OutlierLinear.from_linear(linear, outliers.select(linear.weight, 32), group=32)
        many = OutlierLinear.from_linear(linear, torch.rand(linear.weight.shape) < 0.05, group=32)
        assert many.value.numel() > 10
        for q in (layer, many):
            dense = q.dequantize()
            x = torch.randn(2, 3, linear.in_features, dtype=dtype, requires_grad=True)
            y = q(x)
            bias = None if linear.bias is None else linear.bias.float()
            want = nn.functional.linear(x.float(), dense, bias)
            assert y.dtype == dtype
            # bfloat16: the dense and the sparse part are rounded before they are added.
            tolerance = (
                {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
            )
            torch.testing.assert_close(y.float(), want, **tolerance)
            g = torch.randn_like(y)
            (dx,) = torch.autograd.grad(y, x, g)
            torch.testing.assert_close(dx.float(), g.float() @ dense, **tolerance)
            assert q(x[:0]).shape == (0, 3, linear.out_features)
        assert not any(p.requires_grad for p in layer.dense.parameters())


def test_a_bfloat16_scale_becomes_a_float32_one() -> None:
    w = heavy_tailed(16, 64)
    q = gwq.quantize(w, w, group=32)
    rest = torch.where(gwq.select(w), 0, w)
    narrow = gwq.DenseSparse.from_dict(
        {**q.to_dict(), "dense": lt.quant.quantize(rest, 4, 32, scale_dtype="bfloat16").to_dict()}
    )
    layer = OutlierLinear(narrow)
    assert layer.dense.weight_scale.dtype == torch.float32
    assert torch.equal(layer.dequantize(), narrow.dequantize())
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), x @ narrow.dequantize().T, rtol=1e-5, atol=1e-5)


def test_layer_conversions_and_state_dict() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 16)
    layer = OutlierLinear.from_linear(linear, torch.rand(16, 64) < 0.1, group=32)
    x = torch.randn(4, 64)
    y = layer(x)
    other = copy.deepcopy(layer)
    other.to(torch.bfloat16)
    assert other.value.dtype == torch.float16
    assert other.dense.weight_scale.dtype == torch.float32
    assert torch.equal(other.dequantize(), layer.dequantize())

    fresh = OutlierLinear.from_linear(nn.Linear(64, 16), torch.zeros(16, 64, dtype=torch.bool), group=32)
    fresh.load_state_dict(layer.state_dict())  # another number of outliers
    assert torch.equal(fresh(x), y)
    before = copy.deepcopy(fresh.state_dict())
    damaged = {**layer.state_dict(), "column": layer.column + 64}
    with pytest.raises(RuntimeError, match="describe a sparse matrix"):
        fresh.load_state_dict(damaged)
    assert torch.equal(fresh(x), y)
    assert before.keys() == fresh.state_dict().keys()


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 96), nn.Linear(96, 64)
        self.lm_head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.b(self.a(x).relu()))


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_model_after_one_backward(scope: str) -> None:
    model = Toy()
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    nn.functional.cross_entropy(model(x), y).backward()
    grads = {n: m.weight.grad.clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    weights = {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = model(x)
    assert gwq.quantize_model_(model, group=32, fraction=0.02, scope=scope) is model
    assert type(model.a) is type(model.b) is OutlierLinear
    assert type(model.lm_head) is nn.Linear
    k = math.floor(0.02 * 64 * 96)
    counts = [model.a.value.numel(), model.b.value.numel()]
    if scope == "layer":
        assert counts == [k, k]
        for n in "ab":
            want = gwq.quantize(weights[n], grads[n], group=32, fraction=0.02)
            assert torch.equal(getattr(model, n).dequantize(), want.dequantize())
    else:
        assert sum(counts) == math.floor(0.02 * 2 * 64 * 96)
        both = torch.cat([grads["a"].flatten(), grads["b"].flatten()]).abs()
        assert counts[0] == int((grads["a"].abs() >= both.topk(sum(counts)).values[-1]).sum())
    after = model(x)
    assert 0 < (after - before).norm() < 0.3 * before.norm()


def test_outliers_of_a_model() -> None:
    model = Toy()
    with torch.no_grad():
        model.a.weight[3, 5] = 9.0
    x = torch.randn(8, 64)
    before = model(x)
    plain = lt.quant.quantize_model_(
        copy.deepcopy(model), weights="int4", group=64, headroom=False, scheme="symmetric"
    )
    outliers.quantize_model_(model, group=64)
    assert model.a.dequantize()[3, 5] == 9.0
    assert (model(x) - before).norm() < (plain(x) - before).norm()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: gwq.quantize(w, w[:1]), "grad must have the shape of w"),
        (lambda w: gwq.quantize(w, w / 0), "grad has non-finite"),
        (lambda w: gwq.quantize(w * float("nan"), w), "w has non-finite"),
        (lambda w: gwq.quantize(w, w, fraction=1.5), "fraction"),
        (lambda w: gwq.quantize(w, w, group=33), "multiple of 32"),
        (lambda w: gwq.quantize(w, w, value_dtype=torch.float32), "value_dtype"),
        (lambda w: gwq.quantize(w.int(), w), "floating point"),
        (lambda w: gwq.quantize(w, w, scheme="linear_nozero"), "scheme must be one of"),
        (lambda w: gwq.kth_largest(w, 0), "k must be"),
        (lambda w: outliers.quantize(w, limit=-1), "limit"),
        (lambda w: outliers.quantize(w.numpy()), "torch tensor"),
        (lambda w: gwq.quantize_model_(nn.Sequential(nn.Linear(32, 4))), r"0\.weight has no gradient"),
        (lambda w: gwq.quantize_model_(w), r"nn\.Module"),
        (lambda w: outliers.quantize_model_(w), r"nn\.Module"),
        (lambda w: OutlierLinear(w), "DenseSparse"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[torch.Tensor], object], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call(heavy_tailed(4, 64))


def test_a_refused_model_is_unchanged() -> None:
    model = Toy()
    model(torch.randn(2, 64)).sum().backward()
    model.b.weight.grad = None
    with pytest.raises(lt.LowtideValueError, match=r"b\.weight has no gradient"):
        gwq.quantize_model_(model, group=32)
    assert type(model.a) is nn.Linear
