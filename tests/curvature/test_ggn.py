# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton products against J' H J, both factors by automatic differentiation, in float64."""

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
    unchanged,
)
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import GGNOperator, HessianOperator  # noqa: E402


def jacobian(op, batch):
    """(outputs, J) of one batch, J with a row for each number of the outputs."""
    problem = op.problem
    shapes = problem.layout.shapes

    def outputs(flat):
        parts = flat.split(list(problem.layout.sizes))
        return problem.outputs([p.view(s) for p, s in zip(parts, shapes, strict=True)], batch)

    flat = torch.cat([t.reshape(-1) for t in problem.tensors])
    with problem.frozen(exact=True):
        return outputs(flat), torch.autograd.functional.jacobian(outputs, flat).flatten(0, -2)


def truth(op, weights, batches, criterion):
    total = 0.0
    for weight, batch in zip(weights, batches, strict=True):
        f, j = jacobian(op, batch)
        h = torch.autograd.functional.hessian(lambda z, b=batch: criterion(z, b), f.detach())
        total = total + weight * j.T @ h.reshape(f.numel(), f.numel()) @ j
    return total


LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]).double(), label_smoothing=0.2),
    "ignore": nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.3),
}


@pytest.mark.parametrize("jvp", ["auto", "forward", "fd"])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_cross_entropy(kind, jvp):
    model, criterion, batches = mlp(), LOSSES[kind], classes(9, 4)
    op = GGNOperator(model, None, batches, criterion, jvp=jvp)
    counts = [op.problem.loss.count(b) for b in batches]
    want = truth(op, [c / sum(counts) for c in counts], batches, lambda z, b: criterion(z, b[1]))
    with unchanged(model):
        got = op.dense()
    # Differences of outputs have a relative error of about eps^(2/3).
    assert relative(got, want) < (1e-7 if jvp == "fd" else 1e-12)
    assert op.positive
    assert float(torch.linalg.eigvalsh(got).min()) > -1e-8 * float(got.norm())


def test_soft_targets_and_further_dimensions():
    g = torch.Generator().manual_seed(0)
    y = torch.softmax(torch.randn(6, 3, generator=g), 1).double()
    x = torch.randn(6, 4, generator=g).double()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]).double(), label_smoothing=0.2)
    op = GGNOperator(mlp(), None, (x, y), criterion)
    assert relative(op.dense(), truth(op, [1.0], [(x, y)], lambda z, b: criterion(z, b[1]))) < 1e-12

    conv = seeded(1, lambda: nn.Conv1d(2, 3, 3)).double()
    batch = (torch.randn(4, 2, 7, generator=g).double(), torch.randint(3, (4, 5), generator=g))
    batch[1][0, 0] = -100
    op = GGNOperator(conv, None, batch, "cross_entropy")
    assert relative(op.dense(), truth(op, [1.0], [batch], lambda z, b: F.cross_entropy(z, b[1]))) < 1e-12


@pytest.mark.parametrize("name", ["mse", "bce", "bce weighted", "huber"])
def test_other_criteria(name):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=g).double()
    y = torch.randint(2, (6, 3), generator=g).double()
    pos = torch.tensor([0.5, 2.0, 1.0]).double()
    criterion = {
        "mse": nn.MSELoss(),
        "bce": nn.BCEWithLogitsLoss(),
        "bce weighted": nn.BCEWithLogitsLoss(weight=pos, pos_weight=2 * pos),
        "huber": nn.SmoothL1Loss(beta=0.3),  # no closed form here: its output Hessian is differentiated
    }[name]
    model = mlp()
    op = GGNOperator(model, None, [(x[:4], y[:4]), (x[4:], y[4:])], criterion)
    assert op.positive == (name != "huber")
    assert relative(op.dense(), truth(op, [1.0], [(x, y)], lambda z, b: criterion(z, b[1]))) < 1e-12


@pytest.mark.parametrize("jvp", ["forward", "fd"])
def test_transformer_batch_norm_and_tied_weights(jvp):
    tolerance = 1e-7 if jvp == "fd" else 1e-12
    g = torch.Generator().manual_seed(1)
    transformer = seeded(4, Transformer).double()
    x = (torch.randn(5, 3, 4, generator=g).double(), torch.randint(3, (5,), generator=g))
    op = GGNOperator(transformer, None, x, "cross_entropy", jvp=jvp)
    assert relative(op.dense(), truth(op, [1.0], [x], lambda z, b: F.cross_entropy(z, b[1]))) < tolerance

    net = seeded(3, BatchNormNet).double()
    x = (torch.randn(6, 1, 4, 4, generator=g).double(), torch.randint(2, (6,), generator=g))
    op = GGNOperator(net, None, x, "cross_entropy", jvp=jvp)
    with unchanged(net):
        assert relative(op.dense(), truth(op, [1.0], [x], lambda z, b: F.cross_entropy(z, b[1]))) < tolerance

    tied = seeded(5, Tied).double()
    ids = torch.randint(6, (4, 5), generator=g)
    op = GGNOperator(tied, None, ids, "causal_lm", jvp=jvp)
    labels = ids[:, 1:].reshape(-1)
    assert relative(op.dense(), truth(op, [1.0], [ids], lambda z, _: F.cross_entropy(z, labels))) < tolerance


def test_linear_models_have_the_hessian_as_gauss_newton_matrix():
    model, data = seeded(0, lambda: nn.Linear(4, 3)).double(), classes(9, 3)
    ggn = GGNOperator(model, None, data, "cross_entropy")
    hessian = HessianOperator(model, None, data, "cross_entropy", method="double")
    assert relative(ggn.dense(), hessian.dense()) < 1e-12
    check = ggn.check()
    assert check.deterministic
    assert check.symmetry < 1e-14


class NoForward(torch.autograd.Function):
    """Has no forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh().square())


def test_auto_takes_differences_where_forward_mode_fails():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return NoForward.apply(self.inner(x))

    net, data = Net(), classes(9)
    op = GGNOperator(net, None, data, "cross_entropy")
    assert "not yet chosen" in repr(op)
    want = truth(op, [1.0], data, lambda z, b: F.cross_entropy(z, b[1]))
    assert relative(op.dense(), want) < 1e-7
    assert "'auto' (fd)" in repr(op)


def test_losses_without_outputs_are_refused():
    with pytest.raises(lt.LowtideTypeError, match="criterion on the model's outputs"):
        GGNOperator(mlp(), None, classes(3), lambda m, b: m(b[0]).sum())
    with pytest.raises(lt.LowtideValueError, match="jvp must be one of"):
        GGNOperator(mlp(), None, classes(3), "cross_entropy", jvp="reverse")


def test_a_loss_that_raises_changes_nothing():
    model = seeded(3, BatchNormNet).double().train()
    data = [
        (torch.randn(6, 1, 4, 4).double(), torch.randint(2, (6,))),
        (torch.randn(6, 1, 9, 9).double(), torch.zeros(6).long()),
    ]
    op = GGNOperator(model, None, data, "cross_entropy")
    with unchanged(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        op.hvp_seeded(0, 0)
