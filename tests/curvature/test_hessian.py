# SPDX-License-Identifier: Apache-2.0
"""Products with the Hessian by every method, against dense Hessians in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from curvature_operators import (  # noqa: E402
    BatchNormNet,
    Tied,
    Transformer,
    classes,
    mlp,
    relative,
    seeded,
    truth,
    unchanged,
)
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import HessianOperator  # noqa: E402

METHODS = ["fd", "double", "fwdrev", "auto"]
PERCEPTRON = [*METHODS, "rop"]
#: Exact methods differ by the order of sums; central differences in float64 have about eps^(2/3) = 4e-11 of relative error
#: in each product, of the largest entries, and steps that are a power of 4 off.
TOLERANCE = {"fd": 1e-7, "double": 1e-12, "fwdrev": 1e-12, "auto": 1e-12, "rop": 1e-12}


def probes(op, count=10):
    """Columns that any wrong block of a matrix shows in, ``(n, count)``; the truth is dense, the products need not be n."""
    return torch.stack([op.layout.probe(9, k) for k in range(count)], 1)


def check(model, data, loss_fn, of_model, method, params=None, **options):
    op = HessianOperator(model, params, data, loss_fn, method=method, **options)
    named = list(zip(op.layout.names, op.problem.tensors, strict=True))
    want = truth(model, named, of_model)
    v = probes(op)
    with unchanged(model):
        got = op @ v
    assert relative(got, want @ v) < TOLERANCE[method]
    z = op.layout.probe(4, 2)
    with unchanged(model):
        assert relative(op.hvp_seeded(4, 2), want @ z) < TOLERANCE[method]
        quads = op.quad_seeded(4, 2)
    sides = z * (want @ z)
    dots = torch.stack([p.sum() for p in op.layout.views(sides)])
    assert float((quads - dots).abs().max()) < TOLERANCE[method] * float(sides.abs().sum())
    return op, want


@pytest.mark.parametrize("method", PERCEPTRON)
def test_uneven_batches(method):
    batches = classes(9, 2, 5)

    def whole(m):
        return F.cross_entropy(m(torch.cat([b[0] for b in batches])), torch.cat([b[1] for b in batches]))

    check(mlp(), batches, nn.CrossEntropyLoss(), whole, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["freeze", "eval"])
def test_batch_norm_in_both_modes(method, state):
    model = seeded(3, BatchNormNet).double().train()
    g = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(6, 1, 4, 4, generator=g).double(), torch.randint(2, (6,), generator=g)) for _ in range(2)
    ]

    def whole(m):
        if state == "eval":
            m.eval()
        try:
            return sum(F.cross_entropy(m(x), y) for x, y in data) / 2
        finally:
            m.train()

    check(model, data, "cross_entropy", whole, method, state=state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["freeze", "eval"])
def test_transformer_whose_attention_has_no_second_derivative(method, state):
    model = seeded(4, Transformer).double()
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 3, 4, generator=g).double(), torch.randint(3, (5,), generator=g)
    check(model, (x, y), "cross_entropy", lambda m: F.cross_entropy(m(x), y), method, state=state)


@pytest.mark.parametrize("method", METHODS)
def test_tied_weights_of_a_language_model(method):
    model = seeded(5, Tied).double()
    ids = torch.randint(6, (4, 5), generator=torch.Generator().manual_seed(0))

    def whole(m):
        return F.cross_entropy(m(ids)[:, :-1].reshape(-1, 6), ids[:, 1:].reshape(-1))

    op, _ = check(model, [ids[:1], ids[1:]], "causal_lm", whole, method)
    assert op.layout.names == ("embed.weight", "mix.weight", "mix.bias")


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.spare = nn.Parameter(torch.ones(3).double())
        self.linear = nn.Parameter(torch.ones(3).double())

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("method", METHODS)
def test_unused_linear_and_frozen_parameters(method):
    model = Unused()
    model.body[0].bias.requires_grad_(False)
    (x, y) = classes(8)[0]

    def loss(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1]) + m.linear.sum()

    op, want = check(model, [(x, y)], loss, lambda m: loss(m, (x, y)), method)
    assert "body.0.bias" not in op.layout.names
    rows = dict(zip(op.layout.names, torch.split(want, list(op.layout.sizes)), strict=True))
    assert not rows["spare"].any()
    assert not rows["linear"].any()


@pytest.mark.parametrize("method", METHODS)
def test_dropout_draws_one_mask_for_both_sides_and_all_products(method):
    model = (
        seeded(6, lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)))
        .double()
        .train()
    )
    op = HessianOperator(model, None, classes(12, 3), "cross_entropy", method=method)
    v = probes(op)
    with unchanged(model):
        got = op @ v
    gram = v.T @ got
    assert relative(gram, gram.T) < 10 * TOLERANCE[method]
    double = HessianOperator(model, None, classes(12, 3), "cross_entropy", method="double")
    assert relative(got, double @ v) < TOLERANCE[method]
    without = HessianOperator(model, None, classes(12, 3), "cross_entropy", method=method, state="eval")
    assert relative(got, without @ v) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_dict_batches(method):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, features, scale=1.0):
            return type("Output", (), {"logits": self.body(features * scale)})()

    (x, y) = classes(7)[0]
    model = Named()
    data = [{"features": x, "scale": torch.tensor(2.0).double(), "labels": y}]
    check(model, data, "cross_entropy", lambda m: F.cross_entropy(m.body(2 * x), y), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_raises_in_the_second_batch_changes_nothing(method):
    model = seeded(3, BatchNormNet).double().train()
    data = [(torch.randn(6, 1, 4, 4).double(), torch.randint(2, (6,))) for _ in range(2)]

    def loss(m, batch):
        value = F.cross_entropy(m(batch[0]), batch[1])
        if batch is data[1]:
            raise ValueError("second batch")
        return value

    op = HessianOperator(model, None, data, loss, method=method)
    with unchanged(model), pytest.raises(ValueError, match="second batch"):
        op.hvp_seeded(0, 0)
    with unchanged(model), pytest.raises(ValueError, match="second batch"):
        op.quad_seeded(0, 0)
    with unchanged(model), pytest.raises(ValueError, match="second batch"):
        op @ torch.ones(op.n).double()


def test_the_r_operator_changes_nothing_when_a_batch_fails_and_follows_the_parameters():
    model, data = mlp(), classes(9, 2)
    op = HessianOperator(model, None, data, "cross_entropy", method="rop")
    assert "'auto' (rop)" in repr(_taken(HessianOperator(model, None, data, "cross_entropy")))
    first = op.hvp_seeded(0, 0)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    exact = HessianOperator(model, None, data, "cross_entropy", method="double")
    assert relative(op.hvp_seeded(0, 0), exact.hvp_seeded(0, 0)) < 1e-12
    assert relative(op.hvp_seeded(0, 0), first) > 1e-3
    data[1][1][0] = 17  # class 17 of 3
    with unchanged(model), pytest.raises((IndexError, RuntimeError)):
        op.hvp_seeded(0, 0)


def _taken(op):
    op.hvp_seeded(0, 0)
    return op


def test_cached_graph_is_rebuilt_when_parameters_change():
    model, data = mlp(), classes(9, 2)
    cached = HessianOperator(model, None, data, "cross_entropy", method="double", cache_graph=True)
    with unchanged(model):
        first = cached.dense()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    cached.hvp_seeded(0, 0)
    assert not calls  # no forward pass between products
    assert (
        relative(first, HessianOperator(model, None, data, "cross_entropy", method="double").dense()) < 1e-12
    )
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert (
        relative(cached.dense(), HessianOperator(model, None, data, "cross_entropy", method="double").dense())
        < 1e-12
    )


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_networks_and_sparse_gradients():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (5,), generator=g)
    lstm = seeded(0, Last).double(), torch.randn(5, 6, 3, generator=g).double()

    def bag(sparse):
        return nn.Sequential(nn.Embedding(7, 3, sparse=sparse), nn.Flatten(), nn.Linear(9, 2))

    ids = torch.randint(7, (5, 3), generator=g)
    lstm = seeded(0, Last).double()
    cases = (
        (lstm, lstm, torch.randn(5, 6, 3, generator=g).double()),
        (seeded(0, lambda: bag(True)).double(), seeded(0, lambda: bag(False)).double(), ids),
    )
    for model, dense, x in cases:
        z = HessianOperator(model, None, (x, y), "cross_entropy", method="fd").layout.probe(0, 0)
        want = truth(dense, list(dense.named_parameters()), lambda m, x=x: F.cross_entropy(m(x), y)) @ z
        for method in ("fd", "double"):
            op = HessianOperator(model, None, (x, y), "cross_entropy", method=method)
            with unchanged(model):
                assert relative(op.hvp_seeded(0, 0), want) < TOLERANCE[method]


@pytest.mark.parametrize("method", PERCEPTRON)
def test_callers_may_be_without_gradients_but_not_in_inference_mode(method):
    op = HessianOperator(mlp(), None, classes(7), "cross_entropy", method=method)
    want = op.hvp_seeded(0, 0)
    with torch.no_grad():
        assert relative(op.hvp_seeded(0, 0), want) < 1e-13
    if method in ("fd", "double", "fwdrev"):
        with torch.inference_mode(), pytest.raises(lt.LowtideRuntimeError, match="inference_mode"):
            op.hvp_seeded(0, 0)


class Once(torch.autograd.Function):
    """Can be differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class OnceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return Once.apply(self.body(x))


def test_auto_falls_back_to_differences_and_says_so():
    model, (x, y) = OnceNet(), classes(8)[0]
    op = HessianOperator(model, None, (x, y), "cross_entropy")
    assert "not yet chosen" in repr(op)
    want = truth(model.body, list(model.body.named_parameters()), lambda m: F.cross_entropy(m(x).square(), y))
    assert relative(op.dense(), want) < TOLERANCE["fd"]
    assert "'auto' (fd)" in repr(op)
    with pytest.raises(lt.LowtideRuntimeError, match="method='fd'"):
        HessianOperator(model, None, (x, y), "cross_entropy", method="double").hvp_seeded(0, 0)


@pytest.mark.parametrize("method", ["auto", "double"])
def test_wrong_second_derivatives_of_torch_are_found_by_their_asymmetry(method):
    """torch 2.13 differentiates weight normalization twice as if its norms were constants: 60 % off, without an error."""
    layer = nn.utils.parametrizations.weight_norm(seeded(0, lambda: nn.Linear(4, 3)).double())
    model = nn.Sequential(layer, nn.Tanh(), seeded(1, lambda: nn.Linear(3, 3)).double())
    (x, y) = classes(9)[0]
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    named = [
        ("g", g),
        ("v", v),
        ("bias", layer.bias),
        ("head", model[2].weight),
        ("head_bias", model[2].bias),
    ]

    class Written(nn.Module):  # the same function in operations whose derivatives are right
        def __init__(self):
            super().__init__()
            for name, p in named:
                self.register_parameter(name, nn.Parameter(p.detach().clone()))

        def forward(self, x):
            weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
            return F.linear(torch.tanh(F.linear(x, weight, self.bias)), self.head, self.head_bias)

    op = HessianOperator(model, [p for _, p in named], (x, y), "cross_entropy", method=method)
    if method == "double":
        with pytest.raises(lt.LowtideRuntimeError, match="not symmetric"):
            op.hvp_seeded(0, 0)
        return
    written = HessianOperator(Written(), None, (x, y), "cross_entropy", method="double")
    with unchanged(model):
        assert relative(op.hvp_seeded(0, 0), written.hvp_seeded(0, 0)) < TOLERANCE["fd"]
    assert "'auto' (fd)" in repr(op)


def test_check_tells_random_losses_from_reproducible_ones():
    result = HessianOperator(mlp(), None, classes(8), "cross_entropy").check()
    assert result.deterministic
    assert result.symmetry < 1e-14
    assert result.fd_error < 1e-8
    assert result.exact == "double"
    assert result.to_dict()["deterministic"] is True
    generator = torch.Generator().manual_seed(0)  # a generator of its own, which nobody can know of
    noisy = HessianOperator(
        mlp(),
        None,
        classes(8),
        lambda m, b: F.cross_entropy(m(b[0] * torch.rand(4, generator=generator).double()), b[1]),
        method="double",
    ).check()
    assert not noisy.deterministic
    fallback = HessianOperator(OnceNet(), None, classes(8), "cross_entropy").check()
    assert fallback.exact is None
    assert fallback.method == "fd"
    assert fallback.fd_error < 1e-6


def test_bad_methods_are_refused():
    with pytest.raises(lt.LowtideValueError, match="method must be one of"):
        HessianOperator(mlp(), None, classes(3), "cross_entropy", method="exact")
    with pytest.raises(lt.LowtideValueError, match="cache_graph"):
        HessianOperator(mlp(), None, classes(3), "cross_entropy", method="fd", cache_graph=True)
    with pytest.raises(lt.LowtideValueError, match="fd_step"):
        HessianOperator(mlp(), None, classes(3), "cross_entropy", fd_step=0.0)
