# SPDX-License-Identifier: Apache-2.0
"""Fisher products against outer products of per-sample gradients, in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from curvature_operators import classes, mlp, relative, seeded, unchanged  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import FisherOperator, GGNOperator  # noqa: E402


def outer_products(model, losses, weights):
    """sum_n w_n g_n g_n' of per-sample losses."""
    total = 0.0
    for loss, weight in zip(losses, weights, strict=True):
        g = torch.cat(
            [p.flatten() for p in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
        )
        total = total + weight * torch.outer(g, g)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_empirical_cross_entropy(smoothing):
    model, batches = mlp(), classes(9, 2, 5)
    batches[0][1][:2] = -100
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    keep = y != -100
    losses = F.cross_entropy(model(x[keep]), y[keep], reduction="none", label_smoothing=smoothing)
    want = outer_products(model, losses, [1 / len(losses)] * len(losses))
    op = FisherOperator(model, None, batches, nn.CrossEntropyLoss(label_smoothing=smoothing))
    with unchanged(model):
        assert relative(op.dense(), want) < 1e-12
    assert op.positive


def test_empirical_with_class_weights_weighs_rows():
    model, batches, w = mlp(), classes(9, 4), torch.tensor([1.0, 3.0, 0.5]).double()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    losses = F.cross_entropy(model(x), y, reduction="none")
    op = FisherOperator(model, None, batches, nn.CrossEntropyLoss(weight=w))
    assert relative(op.dense(), outer_products(model, losses, w[y] / w[y].sum())) < 1e-12


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_empirical_of_other_losses(name):
    model, g = mlp(), torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=g).double()
    y = torch.randint(2, (7, 3), generator=g).double()
    single = {"mse": F.mse_loss, "bce_with_logits": F.binary_cross_entropy_with_logits}[name]
    losses = single(model(x), y, reduction="none").mean(1)
    op = FisherOperator(model, None, [(x[:5], y[:5]), (x[5:], y[5:])], name)
    assert relative(op.dense(), outer_products(model, losses, [1 / 7] * 7)) < 1e-12


def batch_of(name, g):
    x = torch.randn(6, 4, generator=g).double()
    if name == "mse":
        return x, torch.randn(6, 3, generator=g).double()
    if name == "bce_with_logits":
        return x, torch.randint(2, (6, 3), generator=g).double()
    return x, torch.randint(3, (6,), generator=g)


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "bce_with_logits", "weighted"])
def test_monte_carlo_has_the_type_2_fisher_as_its_mean(name):
    criterion = (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]).double()) if name == "weighted" else name
    )
    model, batch = mlp(), batch_of(name, torch.Generator().manual_seed(0))
    exact = FisherOperator(model, None, batch, criterion, kind="type2")
    assert torch.equal(exact.hvp_seeded(0, 0), GGNOperator(model, None, batch, criterion).hvp_seeded(0, 0))
    want = exact.layout.probe_dots(exact.hvp_seeded(0, 0), 0, 0).sum()
    samples = torch.stack(
        [
            FisherOperator(model, None, batch, criterion, kind="mc", seed=s).quad_seeded(0, 0).sum()
            for s in range(150)
        ]
    )
    # 4 standard errors: fails by chance once in 16 000 choices of the seed, which is fixed.
    assert abs(samples.mean() - want) < 4 * samples.std() / 150**0.5
    assert samples.std() > 0
    many = FisherOperator(model, None, batch, criterion, kind="mc", draws=500).quad_seeded(0, 0).sum()
    assert abs(many - want) < 4 * samples.std() / 500**0.5


def test_monte_carlo_is_one_matrix():
    model = mlp()
    op = FisherOperator(model, None, classes(9, 4), "cross_entropy", kind="mc", seed=3)
    with unchanged(model):
        dense = op.dense()
    assert relative(dense, dense.T) < 1e-13
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-13
    other = FisherOperator(model, None, classes(9, 4), "cross_entropy", kind="mc", seed=3 + (1 << 32)).dense()
    assert relative(dense, other) > 0.01  # all bits of the seed count


def test_a_token_is_a_row_of_a_language_model():
    model = seeded(0, lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))).double()
    ids = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(0))
    losses = F.cross_entropy(model(ids)[:, :-1].reshape(-1, 5), ids[:, 1:].reshape(-1), reduction="none")
    op = FisherOperator(model, None, ids, "causal_lm")
    assert relative(op.dense(), outer_products(model, losses, [1 / 9] * 9)) < 1e-12
    exact = FisherOperator(model, None, ids, "causal_lm", kind="type2").hvp_seeded(0, 0)
    mc = FisherOperator(model, None, ids, "causal_lm", kind="mc", draws=1000).hvp_seeded(0, 0)
    # 9 rows, 1000 draws: the product of one draw is about 4 times as far off as it is long.
    assert relative(mc, exact) < 0.5


def test_bad_arguments_are_refused():
    with pytest.raises(lt.LowtideValueError, match="kind must be one of"):
        FisherOperator(mlp(), None, classes(3), "cross_entropy", kind="exact")
    with pytest.raises(lt.LowtideValueError, match="draws"):
        FisherOperator(mlp(), None, classes(3), "cross_entropy", kind="mc", draws=0)
    with pytest.raises(lt.LowtideTypeError, match="GGNOperator takes any"):
        FisherOperator(mlp(), None, classes(3), nn.SmoothL1Loss())
    soft = (torch.ones(2, 4).double(), torch.full((2, 3), 1 / 3).double())
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3).double())
    with pytest.raises(lt.LowtideValueError, match="class weights"):
        FisherOperator(mlp(), None, soft, weighted).hvp_seeded(0, 0)
