# SPDX-License-Identifier: Apache-2.0
"""Scores of weights and of examples against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.curvature import (
    VarianceOfGradients,
    obd_saliency,
    obs_saliency,
    obs_update,
    prune_mask,
    variance_of_gradients,
)

N, D, C, CHECKPOINTS = 23, 6, 3, 5


def checkpoints() -> list[nn.Module]:
    models = []
    for seed in range(CHECKPOINTS):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, C))
        models.append(model)
    return models


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(N, D, generator=generator), torch.arange(N) % C


def definition(models: list[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """All gradients held, in double: standard deviation over checkpoints, mean over elements, normalised by class."""
    gradients = []
    for model in models:
        model = model.double().eval()
        leaf = x.double().requires_grad_()
        gradients.append(torch.autograd.grad(model(leaf)[torch.arange(N), y].sum(), leaf)[0])
    deviation = torch.stack(gradients).std(0, correction=0).mean(1)
    result = torch.empty(N, dtype=torch.float64)
    for label in range(C):
        own = deviation[y == label]
        result[y == label] = (own - own.mean()) / own.std(correction=0)
    return result


def test_variance_of_gradients_is_its_definition() -> None:
    x, y = examples()
    got = variance_of_gradients(checkpoints(), x, y, batch_size=7)
    # Statistics are float32: 1e-7 of gradients, amplified by the division by the spread within a class.
    assert torch.allclose(got, definition(checkpoints(), x, y), atol=1e-4)


def test_merged_statistics_are_those_of_all_checkpoints() -> None:
    x, y = examples()
    whole, parts = VarianceOfGradients(y), [VarianceOfGradients(y) for _ in range(3)]
    for i, model in enumerate(checkpoints()):
        whole.update(model, x)
        parts[i % 2].update(model, x)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    parts[2].merge(VarianceOfGradients(y))
    assert parts[2].checkpoints == CHECKPOINTS
    assert torch.allclose(parts[2].scores(normalize=False), whole.scores(normalize=False), atol=1e-6)
    assert parts[0].checkpoints == 3


def test_a_checkpoint_is_left_as_it_was() -> None:
    x, y = examples()
    model = checkpoints()[0]
    model[3].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    VarianceOfGradients(y).update(model, x)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not x.requires_grad
    with pytest.raises(RuntimeError):
        VarianceOfGradients(y).update(model, x[:, :2].contiguous())
    assert [m.training for m in model.modules()] == modes


def test_bad_checkpoints_are_refused_and_not_taken_in() -> None:
    x, y = examples()
    vog = VarianceOfGradients(y)
    vog.update(checkpoints()[0], x)
    broken = checkpoints()[1]
    nn.init.constant_(broken[0].weight, torch.nan)
    cases = [
        (broken, x, {}, "not finite"),
        (checkpoints()[1], x.long(), {}, "floating point"),
        (checkpoints()[1], x[:5], {}, "5 examples"),
        (checkpoints()[1], torch.ones(N, 2), {}, "as before"),
        (nn.Flatten(0), x, {}, "must give logits"),
        (nn.Linear(D, C - 1), x, {}, "2 classes"),
        (checkpoints()[1], x, {"batch_size": 0}, "batch_size"),
    ]
    for model, inputs, options, words in cases:
        with pytest.raises(lt.LowtideError, match=words):
            vog.update(model, inputs, **options)
        assert vog.checkpoints == 1
    with pytest.raises(lt.LowtideError, match="two checkpoints"):
        vog.scores()
    with pytest.raises(lt.LowtideError, match="labels"):
        VarianceOfGradients(y.float())
    with pytest.raises(lt.LowtideError, match="same examples"):
        vog.merge(VarianceOfGradients(y.flip(0)))


def test_obs_is_the_constrained_minimum_of_a_quadratic() -> None:
    n, q = 6, 2
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    hessian = a @ a.T + torch.eye(n, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    w = torch.randn(n, generator=generator, dtype=torch.float64)
    delta = obs_update(w, inverse[:, q], q)
    assert float(w[q] + delta[q]) == pytest.approx(0, abs=1e-12)
    cost = float(0.5 * delta @ hessian @ delta)
    assert float(obs_saliency(w, inverse.diagonal())[q]) == pytest.approx(cost, rel=1e-10)
    # Any other way to zero w_q costs more; leaving the rest alone costs what OBD says.
    alone = torch.zeros(n, dtype=torch.float64)
    alone[q] = -w[q]
    assert float(obd_saliency(w, hessian.diagonal())[q]) == pytest.approx(
        float(0.5 * alone @ hessian @ alone)
    )
    assert float(obd_saliency(w, hessian.diagonal())[q]) > cost
    for call, words in (
        (lambda: obd_saliency(w, w[:2]), "shape"),
        (lambda: obs_saliency(w, -w.abs()), "positive"),
        (lambda: obs_update(w.reshape(2, 3), inverse[:, 0], 0), "flat"),
        (lambda: obs_update(w, inverse[:, 0], n), "index"),
        (lambda: obs_update(w, -inverse[:, 0], 0), "positive"),
    ):
        with pytest.raises(lt.LowtideValueError, match=words):
            call()


@pytest.mark.parametrize("columns", [1, 8, 12])
def test_masks_keep_the_best_of_each_row(columns: int) -> None:
    scores = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns))
    for sparsity in (0.0, 0.3, 0.5, 1.0):
        mask = prune_mask(scores, sparsity=sparsity)
        gone = int(columns * sparsity)
        assert mask.sum(1).tolist() == [columns - gone] * 5
        for row, kept in zip(scores, mask, strict=True):
            if 0 < gone < columns:
                assert float(row[kept].min()) > float(row[~kept].max())


def test_patterns() -> None:
    scores = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    mask = prune_mask(scores, pattern="2:4")
    assert (mask.reshape(-1, 4).sum(1) == 2).all()
    for group, kept in zip(scores.reshape(-1, 4), mask.reshape(-1, 4), strict=True):
        assert float(group[kept].min()) > float(group[~kept].max())
    assert prune_mask(torch.zeros(1, 4), pattern="2:4").tolist() == [[True, True, False, False]]
    for options, words in (
        ({"pattern": "5:4"}, "N:M"),
        ({"pattern": "two"}, "N:M"),
        ({"pattern": "1:5"}, "does not divide"),
        ({"sparsity": 1.5}, "from 0 to 1"),
        ({}, "one of the two"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "one of the two"),
    ):
        with pytest.raises(lt.LowtideValueError, match=words):
            prune_mask(scores, **options)
    with pytest.raises(lt.LowtideValueError, match="NaN"):
        prune_mask(torch.full((1, 2), torch.nan), sparsity=0.5)
