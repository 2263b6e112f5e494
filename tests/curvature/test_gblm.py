# SPDX-License-Identifier: Apache-2.0
"""GBLM scores against sums over batches held whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.curvature import Problem, prune_mask, pruning_statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 3)).eval()


def data(samples: int, width: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x, y = (
        torch.randn(samples, 4, width, generator=generator),
        torch.randint(3, (samples, 4), generator=generator),
    )
    return [(x[i : i + 1], y[i : i + 1]) for i in range(samples)]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_statistics_are_their_definition(norm: str) -> None:
    model, batches = network(), data(6)
    got = pruning_statistics(Problem(model, None, batches, loss), norm=norm, scale=10.0)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    gradients, inputs = [], []
    for batch in batches:
        gradients.append(torch.autograd.grad(loss(model, batch), model[4].weight)[0])
        inputs.append(model[:4](batch[0]).detach().reshape(-1, 7).square().sum(0))
    stack = 10 * torch.stack(gradients)
    want = stack.abs().sum(0) if norm == "l1" else stack.square().sum(0).sqrt()
    assert torch.allclose(got.gradients["4.weight"], want, rtol=1e-5)
    assert torch.allclose(got.inputs["4.weight"], torch.stack(inputs).mean(0), rtol=1e-5)
    assert list(got.inputs) == ["0.weight", "4.weight"]
    assert got.samples == 6
    w = model[4].weight
    plain = w.abs() * got.inputs["4.weight"].sqrt()
    scores = got.scores("4.weight", w)
    assert torch.allclose(scores, plain + w.abs() * want, rtol=1e-5)
    assert torch.allclose(got.scores("4.weight", w, inverse=True), plain / (want + 1e-8), rtol=1e-4)
    assert not scores.requires_grad
    assert prune_mask(scores, sparsity=0.5).sum(1).tolist() == [4, 4, 4]


def test_what_is_refused() -> None:
    model = network()
    good = Problem(model, None, data(2), loss)
    cases = [
        (good, {"norm": "l3"}, "norm"),
        (good, {"scale": 0.0}, "scale"),
        (model, {}, "problem must be a Problem"),
        (Problem(model, ["1.weight"], data(2), loss), {}, "nn.Linear"),
    ]
    for problem, options, words in cases:
        with pytest.raises(lt.LowtideError, match=words):
            pruning_statistics(problem, **options)
    statistics = pruning_statistics(good)
    with pytest.raises(lt.LowtideError, match="no statistics"):
        statistics.scores("1.weight", model[1].weight)
    with pytest.raises(lt.LowtideError, match="shape"):
        statistics.scores("0.weight", model[4].weight)
    idle = nn.ModuleDict({"used": nn.Linear(5, 3), "idle": nn.Linear(5, 3)})
    with pytest.raises(lt.LowtideError, match=r"never runs the layer of idle\.weight"):
        pruning_statistics(Problem(idle, None, data(2), lambda m, b: loss(m["used"], b)))
    assert not any(m._forward_pre_hooks for m in idle.modules())
    bad = [(x * torch.inf, y) for x, y in data(2)]
    with pytest.raises(lt.LowtideError, match="not finite"):
        pruning_statistics(Problem(model, None, bad, loss))
