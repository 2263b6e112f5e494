# SPDX-License-Identifier: Apache-2.0
"""Stability reports against dense matrices, and coherence against gradients of single examples."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import (  # noqa: E402
    HessianOperator,
    MatrixOperator,
    Problem,
    batch_sharpness,
    coherence,
    stability_report,
)

from . import cases  # noqa: E402


def test_the_report_is_what_the_dense_hessian_says():
    made = cases.mlp()
    dense, g = made.dense(), made.gradient()
    op = HessianOperator(made.model, None, made.batches, made.loss)
    report = stability_report(op, lr=0.5, rtol=0.3, max_probes=400)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert report.limit == 4
    assert report.lambda_max == pytest.approx(top, rel=1e-6)
    assert report.lambda_ratio == pytest.approx(top / 4, rel=1e-6)
    assert report.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)
    assert report.directional_sharpness == pytest.approx(float(g @ dense @ g / (g @ g)), rel=1e-9)
    assert report.trace.ci_low <= float(dense.trace()) <= report.trace.ci_high
    assert report.gd_stable is True
    assert report.sgd_stable is True
    each = []
    for batch in made.batches:
        alone = cases.Case("one", made.model, [batch], made.loss, made.value)
        h, v = alone.dense(), alone.gradient()
        each.append(float(v @ h @ v / (v @ v)))
    assert report.batches == 2
    # third derivatives times the step squared
    assert report.batch_sharpness == pytest.approx(sum(each) / 2, rel=1e-7)
    assert batch_sharpness(op.problem, 1) == (pytest.approx(each[0], rel=1e-7), 1)
    said = json.loads(json.dumps(report.to_dict()))
    assert said["gd_stable"] is True
    assert said["trace"]["value"] == report.trace.value
    assert "gradient descent stable" in repr(report)


@pytest.mark.parametrize(
    ("lr", "gd", "sgd"), [(0.1, True, True), (0.4, True, False), (0.667, False, False), (0.1995, True, None)]
)
def test_verdicts(lr, gd, sgd):
    """Eigenvalues 3, 3, 2, 2, 0...: limits 2/lr of 20, 5, 3 and 10.03 beside lambda 3 and trace 10."""
    values = torch.zeros(40, dtype=torch.float64)
    values[:4] = torch.tensor([3.0, 3.0, 2.0, 2.0])
    report = stability_report(MatrixOperator(cases.matrix(values)), lr, rtol=0.05, max_probes=1500)
    assert (report.gd_stable, report.sgd_stable) == (gd, sgd)
    assert report.batch_sharpness is report.directional_sharpness is None


def test_bad_arguments():
    op = MatrixOperator(torch.eye(3))
    with pytest.raises(lt.LowtideValueError, match="lr must be a positive number"):
        stability_report(op, 0.0)
    with pytest.raises(lt.LowtideValueError, match="max_batches"):
        stability_report(op, 0.1, max_batches=0)
    made = cases.mlp()
    problem = Problem(made.model, None, made.batches, made.loss)
    with pytest.raises(lt.LowtideValueError, match="method must be one of auto"):
        coherence(problem, method="vmap")


class Convolutions(nn.Module):
    """1-D and 2-D convolutions with stride, padding and dilation, and a linear layer over positions."""

    def __init__(self):
        super().__init__()
        self.two = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
        self.one = nn.Conv1d(3, 4, 3, stride=2, padding=2, bias=False)
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.two(x)).flatten(2)
        x = torch.tanh(self.one(x)).transpose(1, 2)
        return self.head(torch.tanh(self.mix(x)).mean(1))


def definition(problem, batches):
    """|sum g|^2 / sum |g|^2, per tensor and in all, from gradients of single examples."""
    n = sum(len(b[0]) for b in batches)
    gradients = torch.stack(
        [
            problem.gradient(batches=[((x[i : i + 1], y[i : i + 1]), 1.0)])
            for x, y in batches
            for i in range(len(x))
        ]
    )
    assert len(gradients) == n
    parts = gradients.split(list(problem.layout.sizes), dim=1)
    owners = {}
    for name, part in zip(problem.layout.names, parts, strict=True):
        owners.setdefault(name.rpartition(".")[0], []).append(part)
    ratio = lambda g: float(g.sum(0).square().sum() / g.square().sum())  # noqa: E731
    return ratio(gradients), {k: ratio(torch.cat(v, 1)) for k, v in owners.items()}, n


@pytest.mark.parametrize("method", ["hooks", "loop"])
@pytest.mark.parametrize("name", ["mlp", "conv", "convolutions"])
def test_coherence_is_that_of_single_gradients(name, method):
    if name == "convolutions":
        model = cases._seeded(8, Convolutions)
        batches = cases.classification((2, 7, 6), 3, (4, 2))
    else:
        made = getattr(cases, name)()
        model, batches = made.model, made.batches
    problem = Problem(model, None, batches, "cross_entropy")
    got = coherence(problem, method=method)
    value, layers, n = definition(problem, batches)
    assert got.examples == n
    assert got.value == pytest.approx(value, rel=1e-10)
    assert got.alpha == pytest.approx(value / n, rel=1e-10)
    assert got.per_layer == pytest.approx(layers, rel=1e-10)
    assert got.gradient_norm == pytest.approx(float(problem.gradient().norm()), rel=1e-10)
    json.dumps(got.to_dict())
    assert not any(m._forward_hooks for m in model.modules())


def test_coherence_of_equal_and_opposite_examples():
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    same = coherence(Problem(model, None, (x.repeat(6, 1), torch.ones(6, 1)), "mse"))
    assert (same.value, same.alpha) == (pytest.approx(6, rel=1e-6), pytest.approx(1, rel=1e-6))
    y = torch.tensor([[1.0], [-1.0]]).repeat(3, 1)
    assert coherence(Problem(model, None, (x.repeat(6, 1), y), "mse")).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)), "is a LayerNorm"),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)),
            "normalizes over the batch",
        ),
        (lambda: nn.Sequential(nn.Conv1d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 4)), "is a Conv1d"),
    ],
)
def test_models_that_hooks_do_not_fit_are_named(build, why):
    problem = Problem(cases._seeded(0, build), None, cases.classification((6,), 4, (5,)), "cross_entropy")
    with pytest.raises(lt.LowtideValueError, match=why):
        coherence(problem, method="hooks")


def test_batch_normalization_in_training_has_no_single_gradients():
    model = cases._seeded(0, lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)))
    batches = cases.classification((6,), 4, (5,))
    with pytest.raises(lt.LowtideValueError, match=r"1 normalizes over the batch, .* state='eval'"):
        coherence(Problem(model, None, batches, "cross_entropy"))
    problem = Problem(model, None, batches, "cross_entropy", state="eval")
    assert coherence(problem).value == pytest.approx(definition(problem, batches)[0], rel=1e-10)


class Borrowed(nn.Module):
    """Uses a layer's weight a second time, where no hook sees it."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(x) + nn.functional.linear(x, self.mix.weight)))


class Bypassed(nn.Module):
    """Attention calls its output layer as a function."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = x.unsqueeze(1).repeat(1, 2, 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(
    ("build", "params"), [(Borrowed, None), (Bypassed, ["attention.out_proj.weight", "head.weight"])]
)
def test_uses_that_hooks_do_not_see_are_noticed(build, params):
    model = cases._seeded(0, build)
    batches = cases.classification((6,), 4, (5, 3))
    problem = Problem(model, params, batches, "cross_entropy")
    assert coherence(problem).value == pytest.approx(definition(problem, batches)[0], rel=1e-10)
    with pytest.raises(lt.LowtideValueError, match="used more than once a forward pass, or by another"):
        coherence(problem, method="hooks")


def test_nothing_is_left_behind_when_the_loss_raises():
    model = cases._seeded(0, lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = cases.classification((6,), 4, (5,))[0]
    problem = Problem(model, None, [(x, y), (x, y + 4)], "cross_entropy")  # classes out of range
    for call in (coherence, lambda p: coherence(p, method="loop"), batch_sharpness):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            call(problem)
        assert not any(m._forward_hooks for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_shared_modules_fall_back_to_the_loop():
    layer = nn.Linear(6, 6)
    model = cases._seeded(0, lambda: nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 4)))
    batches = cases.classification((6,), 4, (5, 3))
    problem = Problem(model, None, batches, "cross_entropy")
    assert coherence(problem).value == pytest.approx(definition(problem, batches)[0], rel=1e-10)
