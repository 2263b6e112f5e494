# SPDX-License-Identifier: Apache-2.0
"""The interface of PyHessian: its shapes, and the numbers of the dense Hessian."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature.compat.pyhessian import hessian  # noqa: E402

from . import cases  # noqa: E402


@pytest.fixture(params=["data", "dataloader"])
def both(request):
    """A Hessian over one batch and over a loader with an uneven last batch, and the dense one."""
    made = cases.mlp(sizes=(17,))
    (batch,) = made.batches
    if request.param == "data":
        source = {"data": batch}
    else:
        source = {"dataloader": DataLoader(TensorDataset(*batch), batch_size=7)}
    made.model.train()
    return hessian(made.model, made.loss, **source, cuda=False), made


def test_eigenvalues(both):
    h, made = both
    truth = torch.linalg.eigvalsh(made.dense())
    truth = truth[truth.abs().argsort(descending=True)]
    values, vectors = h.eigenvalues(top_n=3)
    assert isinstance(values, list)
    assert values == pytest.approx(truth[:3].tolist(), rel=1e-4)
    assert len(vectors) == 3
    assert [v.shape for v in vectors[0]] == [p.shape for _, p in made.named]
    flat = torch.cat([v.flatten() for v in vectors[1]])
    assert float((made.dense() @ flat - values[1] * flat).norm()) <= 1e-3 * abs(values[1])
    assert made.model.training
    assert all(p.grad is None for p in made.model.parameters())
    with pytest.warns(UserWarning, match=r"eigenvalues \[.*3\] did not reach"):
        h.eigenvalues(maxIter=2, top_n=3, tol=1e-9)


def test_trace(both):
    h, made = both
    truth = float(made.dense().trace())
    samples = h.trace(maxIter=400, tol=0.2)
    assert 10 <= len(samples) < 400
    assert abs(np.mean(samples) - truth) <= 0.2 * abs(truth) * 1.5  # 95 % of runs are within 0.2
    assert len(h.trace(maxIter=12)) == 12
    assert len(h.trace(maxIter=3)) == 3


def test_density(both):
    h, made = both
    nodes, weights = h.density(iter=20, n_v=3)
    assert [len(t) for t in nodes] == [len(w) for w in weights] == [20, 20, 20]
    assert [sum(w) for w in weights] == pytest.approx([1, 1, 1])
    mean = np.mean([np.dot(t, w) for t, w in zip(nodes, weights, strict=True)]) * h.op.n
    spread = float(2 * (made.dense().norm() ** 2 - made.dense().diagonal().norm() ** 2)) ** 0.5
    assert abs(mean - float(made.dense().trace())) < 4 * spread / 3**0.5


def test_it_is_reached_from_the_package():
    assert lt.curvature.compat.pyhessian.hessian is hessian


def test_arguments():
    made = cases.mlp(sizes=(4,))
    with pytest.raises(lt.LowtideValueError, match="and not both"):
        hessian(made.model, made.loss, cuda=False)
    if not torch.cuda.is_available():
        with pytest.raises(lt.LowtideRuntimeError, match="pass cuda=False"):
            hessian(made.model, made.loss, data=made.batches[0])
    plain = hessian(made.model, torch.nn.functional.cross_entropy, data=made.batches[0], cuda=False)
    want = float(torch.linalg.eigvalsh(made.dense()).abs().max())
    assert plain.eigenvalues()[0] == pytest.approx([want], rel=1e-4)
