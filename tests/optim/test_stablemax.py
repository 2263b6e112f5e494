# SPDX-License-Identifier: Apache-2.0
"""StableMax against its definition in float64, its gradient, and where softmax gives up."""

from __future__ import annotations

import pytest
import torch

import lowtide as lt
from lowtide.optim import StableMaxCrossEntropy, log_stablemax, stablemax


def definition(x: torch.Tensor) -> torch.Tensor:
    s = torch.where(x < 0, 1.0 / (1.0 - x), x + 1.0)
    return s / s.sum(-1, keepdim=True)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3, 1e8])
def test_equals_the_definition(scale: float) -> None:
    x = scale * torch.randn(50, 13, generator=torch.Generator().manual_seed(0))
    want = definition(x.double())
    # Three logarithms and one exponential in fp32, whose arguments reach log(1e8) = 18.
    assert torch.allclose(stablemax(x).double(), want, rtol=2e-5)
    assert torch.allclose(log_stablemax(x.double()), want.log(), rtol=1e-12, atol=1e-12)
    assert torch.allclose(stablemax(x.T, dim=0).T, stablemax(x))


def test_gradient() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    assert torch.autograd.gradcheck(lambda v: StableMaxCrossEntropy()(v, labels), (x,))
    assert torch.autograd.gradcheck(log_stablemax, (x,))
    # At zero both branches have slope 1; neither contributes NaN where it does not apply.
    z = torch.tensor([[0.0, 1e30, -1e30, float(torch.finfo().max)]], requires_grad=True)
    log_stablemax(z)[0, 0].backward()
    assert bool(z.grad.isfinite().all())
    assert float(z.grad[0, 0]) == pytest.approx(1.0)


def test_confident_predictions_keep_their_gradient() -> None:
    """Softmax collapse: at a margin of 200 the float32 loss and its gradient are exactly zero, StableMax's are not."""
    x = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(x, torch.tensor([0])).backward()
    assert not x.grad.any()
    x.grad = None
    loss = StableMaxCrossEntropy()(x, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(torch.tensor(1 + 2 / 201.0).log()), rel=1e-4)
    assert float(x.grad[0, 1]) == pytest.approx(1 / 203.0, rel=1e-4)


def test_reductions_shapes_and_dtypes() -> None:
    x, y = torch.randn(4, 7, 3), torch.randint(7, (4, 3))
    each = StableMaxCrossEntropy("none")(x, y)
    assert each.shape == (4, 3)
    assert torch.allclose(StableMaxCrossEntropy("sum")(x, y), each.sum())
    y[0] = -100
    assert torch.allclose(StableMaxCrossEntropy()(x, y), each[1:].mean())
    assert StableMaxCrossEntropy(dtype=torch.float64)(x, y).dtype == torch.float64
    assert log_stablemax(x.bfloat16()).dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    with pytest.raises(lt.LowtideTypeError, match="logits"):
        stablemax(torch.arange(3))
    with pytest.raises(lt.LowtideValueError, match="reduction"):
        StableMaxCrossEntropy("average")
