# SPDX-License-Identifier: Apache-2.0
"""Models that compute activations again in the backward pass: they must find the parameters of the forward pass there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from curvature_operators import classes, mlp, relative, unchanged  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from lowtide.curvature import GGNOperator, HessianOperator, Problem  # noqa: E402


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant=False):
        super().__init__()
        self.body = body
        self.drop = nn.Dropout(0.3)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(lambda y: self.drop(self.body(y)), x, use_reentrant=self.reentrant)


class Plain(Checkpointed):
    def forward(self, x):
        return self.drop(self.body(x))


def test_gradients_at_other_parameters():
    data = classes(9, 4)
    plain, saving = (Problem(kind(mlp()), None, data, "cross_entropy") for kind in (Plain, Checkpointed))
    elsewhere = [t + 0.5 for t in plain.tensors]
    with unchanged(saving.model):
        assert relative(saving.gradient(elsewhere), plain.gradient(elsewhere)) < 1e-14


@pytest.mark.parametrize("method", ["fd", "double", "cached"])
def test_hessian_products(method):
    options = {"method": "double", "cache_graph": True} if method == "cached" else {"method": method}
    ops = [
        HessianOperator(kind(mlp()), None, classes(9, 4), "cross_entropy", **options)
        for kind in (Plain, Checkpointed)
    ]
    with unchanged(ops[1].problem.model):
        assert relative(ops[1].hvp_seeded(0, 0), ops[0].hvp_seeded(0, 0)) < 1e-9
        assert relative(ops[1].hvp_seeded(0, 1), ops[0].hvp_seeded(0, 1)) < 1e-9


@pytest.mark.parametrize("jvp", ["auto", "fd"])
def test_gauss_newton_products(jvp):
    ops = [
        GGNOperator(kind(mlp()), None, classes(9, 4), "cross_entropy", jvp=jvp)
        for kind in (Plain, Checkpointed)
    ]
    with unchanged(ops[1].problem.model):
        assert relative(ops[1].hvp_seeded(0, 0), ops[0].hvp_seeded(0, 0)) < 1e-7
