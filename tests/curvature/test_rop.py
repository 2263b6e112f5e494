# SPDX-License-Identifier: Apache-2.0
"""The R-operator against dense Hessians in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import HessianOperator, Problem  # noqa: E402
from lowtide.curvature._rop import RopProduct, supports  # noqa: E402

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # double precision through four layers

ACTIVATIONS = [
    nn.Tanh(),
    nn.ReLU(),
    nn.Sigmoid(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Softplus(),
    nn.Softplus(beta=3.0, threshold=1.0),
    nn.Identity(),
]


def mlp(activation, *, bias=True, outputs=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5, bias=bias),
        activation,
        nn.Sequential(nn.Linear(5, 4), activation, nn.Tanh()),
        nn.Linear(4, outputs, bias=bias),
    )
    return model.double()


def batches(kind, sizes=(5, 3)):
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(n, 2, 3, generator=g, dtype=torch.float64) for n in sizes]
    if kind == "cross_entropy":
        y = [torch.randint(0, 3, (n,), generator=g) for n in sizes]
    else:
        y = [torch.rand(n, 3, generator=g, dtype=torch.float64) for n in sizes]
    return list(zip(x, y, strict=True))


def dense(model, data, criterion, chosen=None):
    """By torch.func.hessian, in the chosen parameters."""
    named = {k: p.detach() for k, p in model.named_parameters() if chosen is None or k in chosen}
    sizes = [p.numel() for p in named.values()]

    def f(theta):
        parts = theta.split(sizes)
        own = {k: t.view_as(p) for (k, p), t in zip(named.items(), parts, strict=True)}
        total = sum(len(x) for x, _ in data)
        return sum(
            criterion(torch.func.functional_call(model, own, (x,)), y) * (len(x) / total) for x, y in data
        )

    return torch.func.hessian(f)(torch.cat([p.reshape(-1) for p in named.values()]))


CRITERIA = {
    "cross_entropy": nn.CrossEntropyLoss(),
    "mse": nn.MSELoss(),
    "bce_with_logits": nn.BCEWithLogitsLoss(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation(activation):
    model, data = mlp(activation), batches("cross_entropy")
    h = HessianOperator(model, None, data, "cross_entropy", method="rop")
    torch.testing.assert_close(h.dense(), dense(model, data, nn.CrossEntropyLoss()), **EXACT)


@pytest.mark.parametrize("kind", list(CRITERIA))
@pytest.mark.parametrize("bias", [True, False])
def test_every_loss_and_several_directions_at_once(kind, bias):
    model, data = mlp(nn.GELU(), bias=bias), batches(kind)
    want = dense(model, data, CRITERIA[kind])
    rop = RopProduct(Problem(model, None, data, kind))
    v = torch.randn(len(want), 3, dtype=torch.float64)
    torch.testing.assert_close(rop.matmat(v), want @ v, **EXACT)
    out = torch.empty(len(want), dtype=torch.float64)
    rop.product(v[:, 1].contiguous(), out)
    torch.testing.assert_close(out, want @ v[:, 1], **EXACT)


@pytest.mark.parametrize("kind", list(CRITERIA))
def test_gauss_newton(kind):
    model, data = mlp(nn.SiLU()), batches(kind, (4,))
    names = [k for k, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    x, y = data[0]

    def outputs(theta):
        own = {
            k: t.view_as(p) for (k, p), t in zip(model.named_parameters(), theta.split(sizes), strict=True)
        }
        return torch.func.functional_call(model, own, (x,)).reshape(-1)

    theta = torch.cat([model.get_parameter(k).detach().reshape(-1) for k in names])
    j = torch.func.jacrev(outputs)(theta)
    z = outputs(theta)
    inner = torch.func.hessian(lambda z: CRITERIA[kind](z.view(4, 3), y))(z)
    rop = RopProduct(Problem(model, None, data, kind), gauss_newton=True)
    torch.testing.assert_close(
        rop.matmat(torch.eye(len(theta), dtype=torch.float64)), j.T @ inner @ j, **EXACT
    )


def test_frozen_and_tied_parameters():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4).double()
    model = nn.Sequential(
        nn.Linear(6, 4).double(), nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(4, 3).double()
    )
    data = [(x.flatten(1), y) for x, y in batches("cross_entropy")]
    model[0].bias.requires_grad_(False)
    chosen = [k for k, p in model.named_parameters() if p.requires_grad]
    h = HessianOperator(model, None, data, "cross_entropy", method="rop")
    assert list(h.layout.names) == chosen
    torch.testing.assert_close(h.dense(), dense(model, data, nn.CrossEntropyLoss(), chosen), **EXACT)


def test_rows_of_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5, 2, dtype=torch.float64))]
    h = HessianOperator(model, None, data, "mse", method="rop")
    torch.testing.assert_close(h.dense(), dense(model, data, nn.MSELoss()), **EXACT)


def test_what_is_kept_follows_parameters_and_inputs():
    model, data = mlp(nn.Tanh()), batches("cross_entropy")
    h = HessianOperator(model, None, data, "cross_entropy", method="rop")
    v = torch.randn(h.n, dtype=torch.float64)
    first = h @ v
    assert torch.equal(h @ v, first)
    with torch.no_grad():
        model[1].weight.mul_(1.5)
    torch.testing.assert_close(h @ v, dense(model, data, nn.CrossEntropyLoss()) @ v, **EXACT)
    data[0][0].mul_(0.5)
    torch.testing.assert_close(h @ v, dense(model, data, nn.CrossEntropyLoss()) @ v, **EXACT)
    data[1][1].fill_(0)
    torch.testing.assert_close(h @ v, dense(model, data, nn.CrossEntropyLoss()) @ v, **EXACT)
    assert all(p.grad is None for p in model.parameters())


def test_a_full_cache_is_no_other_result(monkeypatch):
    model, data = mlp(nn.Tanh()), batches("cross_entropy")
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    want = HessianOperator(model, None, data, "cross_entropy", method="rop") @ v
    monkeypatch.setattr("lowtide.curvature._rop._CACHE_BYTES", 2000)
    rop = RopProduct(Problem(model, None, data, "cross_entropy"))
    out = torch.empty_like(v)
    for _ in range(2):
        rop.product(v, out)
        assert torch.equal(out, want)
    assert len(rop._kept) == 1


def test_auto_takes_it_where_it_applies():
    h = HessianOperator(mlp(nn.Tanh()), None, batches("cross_entropy"), "cross_entropy")
    h @ torch.zeros(h.n, dtype=torch.float64)
    assert "rop" in repr(h)
    loss = h.problem.loss
    assert supports(nn.Linear(2, 2), loss)
    for other in (
        nn.Sequential(nn.Conv1d(1, 1, 1)),
        nn.Sequential(nn.Linear(2, 2), nn.Flatten()),
        nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
        nn.Sequential(nn.Tanh()),
        nn.Sequential(nn.Linear(2, 2), nn.ELU()),
    ):
        assert not supports(other, loss)
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    assert not supports(hooked, loss)


def test_other_models_are_refused_with_the_remedy():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(lt.LowtideTypeError, match="use method='double'"):
        RopProduct(Problem(model, None, (torch.ones(2, 2), torch.ones(2, 2)), "mse"))
