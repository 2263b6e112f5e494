# SPDX-License-Identifier: Apache-2.0
"""What evaluating a loss may not leave behind."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from curvature_operators import Transformer, classes, mlp, seeded, unchanged  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lowtide.curvature import HessianOperator, Problem  # noqa: E402
from lowtide.curvature._guard import generators_of, modes  # noqa: E402


def test_all_random_sources_are_frozen_and_put_back():
    drawn = []

    def loss(model, batch):
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
        return F.cross_entropy(model(batch[0]), batch[1])

    problem = Problem(mlp(), None, classes(3, 4), loss)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with unchanged(problem.model):
        problem.evaluate()
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    problem.gradient()
    assert drawn[:2] == drawn[2:]  # whatever the states were before
    assert drawn[0] != drawn[1]


def test_random_transforms_of_the_data_are_the_same_in_each_pass():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return torch.randn(4).double() + random.random() + np.random.rand(), torch.tensor(i % 3)

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True)
    problem = Problem(mlp(), None, loader, "cross_entropy")
    with unchanged(problem.model):
        first = problem.evaluate()
        assert problem.evaluate() == first
        assert Problem(mlp(), None, loader, "cross_entropy").evaluate() == first


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model[2].eval()

    def fail():
        with modes(model, "eval"):
            assert not any(m.training for m in model.modules())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert [m.training for m in model.modules()] == [True, True, True, False]


def test_a_loss_that_switches_modes_itself_is_undone():
    def loss(model, batch):
        model.eval()
        return F.cross_entropy(model(batch[0]), batch[1])

    model = mlp().train()
    with unchanged(model):
        Problem(model, None, classes(3), loss).gradient()


def test_switches_of_torch_are_put_back_when_a_product_fails():
    model = seeded(0, Transformer).double().eval()
    batch = torch.randn(2, 3, 4).double(), torch.tensor([0, 7])  # class 7 of 3
    for op in (
        HessianOperator(model, None, batch, "cross_entropy", method="double"),
        HessianOperator(model, None, batch, "cross_entropy", method="fwdrev"),
    ):
        with unchanged(model), pytest.raises((RuntimeError, IndexError)):
            op.hvp_seeded(0, 0)


def test_generators_of_loaders_are_found():
    data = torch.utils.data.TensorDataset(torch.arange(4))
    g, h = torch.Generator(), torch.Generator()
    sampler = torch.utils.data.RandomSampler(data, generator=h)
    assert generators_of(torch.utils.data.DataLoader(data, shuffle=True, generator=g)) == [g]
    assert generators_of(torch.utils.data.DataLoader(data, sampler=sampler)) == [h]
    assert generators_of([(1, 2)]) == []
