# SPDX-License-Identifier: Apache-2.0
"""Finite differences: their error, their step, and what they hold in memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from curvature_operators import classes, mlp, relative, seeded, unchanged  # noqa: E402
from torch import nn  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import HessianOperator  # noqa: E402


def wide(dtype=torch.float32):
    return seeded(
        0, lambda: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    ).to(dtype)


@pytest.fixture(scope="module")
def float32():
    data = classes(40, 11, dtype=torch.float32)
    fd = HessianOperator(wide(), None, data, "cross_entropy", method="fd")
    exact = HessianOperator(
        wide(torch.float64), None, [(x.double(), y) for x, y in data], "cross_entropy", method="double"
    )
    return fd, exact


def test_float32_products_of_probes_and_vectors(float32):
    fd, exact = float32
    z = fd.layout.probe(1, 0)
    want = exact.hvp(z.double())
    # The best step leaves about eps^(2/3) = 2e-5 of the gradient's size; random directions of flat losses are worse.
    assert relative(fd.hvp_seeded(1, 0).double(), want) < 2e-3
    quad = float(fd.quad_seeded(1, 0).sum())
    assert quad == pytest.approx(float(z.double() @ want), rel=1e-3)
    for scale in (1e-6, 1.0, 1e6):  # the step does not depend on the vector's length
        assert relative(fd.hvp(scale * z).double(), scale * want) < 5e-3
    assert not fd.hvp(torch.zeros(fd.n)).any()
    assert fd.fd_error < 1e-2


def test_the_reported_error_is_of_the_size_of_the_real_one(float32):
    fd, exact = float32
    fd.hvp_seeded(1, 0)
    errors = [relative(fd.hvp_seeded(1, k).double(), exact.hvp_seeded(1, k)) for k in range(5)]
    reported = fd._fd._tuned["probe"][1]
    # A difference of two products at steps a factor of 2 around the one that is taken: an upper bound up to direction.
    assert max(errors) < 3 * reported
    assert max(errors) > reported / 100


def test_a_fixed_step_is_the_length_of_the_step():
    data = classes(20)
    exact = HessianOperator(mlp(), None, data, "cross_entropy", method="double").hvp_seeded(0, 0)
    gaps = []
    for eta in (1e-2, 1e-3, 1e-4):
        fd = HessianOperator(mlp(), None, data, "cross_entropy", method="fd", fd_step=eta)
        gaps.append(relative(fd.hvp_seeded(0, 0), exact))
        assert fd.fd_error is None
    assert 50 < gaps[0] / gaps[1] < 200  # the error falls with the square of the step
    assert 50 < gaps[1] / gaps[2] < 200


def test_results_do_not_depend_on_what_was_asked_before():
    data = classes(20, dtype=torch.float32)
    a, b = (HessianOperator(wide(), None, data, "cross_entropy", method="fd") for _ in range(2))
    v = torch.linspace(-1, 1, a.n)
    a.hvp(v)
    first = a.hvp_seeded(3, 7)
    assert torch.equal(b.hvp_seeded(3, 7), first)
    assert torch.equal(b.hvp(v), a.hvp(v))
    assert torch.equal(b.quad_seeded(3, 7), a.quad_seeded(3, 7))


def test_products_accept_out_and_keep_the_vector():
    op = HessianOperator(mlp(), None, classes(9), "cross_entropy", method="fd")
    v = op.layout.probe(0, 0)
    before, out = v.clone(), torch.full((op.n,), 7.0).double()
    assert op.hvp(v, out=out) is out
    assert torch.equal(v, before)
    assert torch.equal(out, op.hvp(v))
    assert op.hvp_seeded(0, 0, out=out) is out
    assert op.products == 3
    with pytest.raises(lt.LowtideValueError, match="out must be"):
        op.hvp_seeded(0, 0, out=torch.zeros(3))


def test_non_contiguous_parameters_and_empty_tensors():
    model = mlp(torch.float32)
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    model.extra = nn.Parameter(torch.empty(0))
    (batch,) = classes(12, dtype=torch.float32)
    fd = HessianOperator(model, None, batch, "cross_entropy", method="fd")
    exact = HessianOperator(model, None, batch, "cross_entropy", method="double")
    with unchanged(model):
        assert relative(fd.hvp_seeded(0, 0), exact.hvp_seeded(0, 0)) < 2e-3
        assert fd.quad_seeded(0, 0).tolist() == pytest.approx(
            exact.quad_seeded(0, 0).tolist(), rel=2e-2, abs=2e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_get_products_in_float32(dtype):
    low, data = wide(dtype), classes(30, dtype=torch.float32)
    full = wide()
    full.load_state_dict({k: v.float() for k, v in low.state_dict().items()})
    fd = HessianOperator(low, None, data, "cross_entropy", method="fd")
    exact = HessianOperator(full, None, data, "cross_entropy", method="double")
    with unchanged(low):
        assert relative(fd.hvp_seeded(0, 0), exact.hvp_seeded(0, 0)) < 2e-3
    assert (
        relative(
            HessianOperator(low, None, data, "cross_entropy", method="double").hvp_seeded(0, 0),
            exact.hvp_seeded(0, 0),
        )
        < 1e-5
    )


def test_relu_kinks_are_seen_by_differences_only():
    """Exact products of a ReLU network leave out what kinks add; with a short step differences agree almost everywhere."""
    model = seeded(2, lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))).double()
    data = classes(30)
    exact = HessianOperator(model, None, data, "cross_entropy", method="double").hvp_seeded(0, 0)
    gaps = [
        relative(
            HessianOperator(model, None, data, "cross_entropy", method="fd", fd_step=eta).hvp_seeded(0, 0),
            exact,
        )
        for eta in (1e-5, 3.0)
    ]
    assert gaps[0] < 1e-6
    assert gaps[1] > 1e-2


def test_quads_lose_nothing_beside_large_gradients():
    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(1 << 16))

    c = torch.randint(-(1 << 15), 1 << 15, (1 << 16,), generator=torch.Generator().manual_seed(0)).float()
    fd = HessianOperator(
        Bowl(), None, [c], lambda m, c: (c * m.p + 0.5 * m.p**2).sum(), method="fd", fd_step=1.0
    )
    # h = 1 / 256, so that gradients c +- h are float32 numbers; their sums are not, only doubles hold them.
    assert fd.quad_seeded(3, 0).item() == 1 << 16
