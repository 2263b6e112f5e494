# SPDX-License-Identifier: Apache-2.0
"""Native rows of cross entropy's Hessian: float64 truth, one set of bits, torch integration."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide import ops  # noqa: E402
from lowtide.curvature import CEHead  # noqa: E402


def rows(n, c, seed=0):
    g = torch.Generator().manual_seed(seed)
    z, u, q = (torch.randn(n, c, generator=g) for _ in range(3))
    return 3 * z, u, q, torch.rand(n, generator=g)


def truth(z, u, q, r):
    """By torch in float64: product, cumulant, diagonal, weighted, trace."""
    z, u, q, r = (t.double() for t in (z, u, q, r))
    p = torch.softmax(z, 1)
    h = r[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    v, w = (a - (p * a).sum(1, keepdim=True) for a in (u, q))
    cumulant = r[:, None] * p * (v * w - (p * v * w).sum(1, keepdim=True))
    diagonal = h.diagonal(dim1=1, dim2=2)
    return (h @ u[:, :, None])[:, :, 0], cumulant, diagonal, r[:, None] * p, diagonal.sum(1)


def native(z, u, q, r):
    return (
        ops.curvature_ce_product(z, u, r),
        ops.curvature_ce_cumulant(z, u, q, r),
        ops.curvature_ce_diagonal(z, r),
        ops.curvature_ce_weighted(z, r),
        ops.curvature_ce_trace(z, r),
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (5, 7), (4, 33), (3, 1100)])
def test_rows_are_those_of_float64(isa, shape):
    data = rows(*shape)
    for got, want in zip(native(*data), truth(*data), strict=True):
        assert got.dtype == torch.float32
        # A few dozen roundings of numbers below |u||q| < 16.
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * 32 * 2**-24)


def test_bits_do_not_depend_on_instructions_or_threads():
    data = rows(200, 300)
    want = native(*data)
    isa, threads = lt.isa(), lt.num_threads()
    try:
        for name in lt.available_isas():
            lt.set_isa(name)
            for count in (1, 3):
                lt.set_num_threads(count)
                assert all(torch.equal(a, b) for a, b in zip(native(*data), want, strict=True))
    finally:
        lt.set_isa(isa)
        lt.set_num_threads(threads)


def test_in_place_and_strided():
    z, u, _q, r = rows(6, 40)
    want = ops.curvature_ce_product(z, u, r)
    torch.testing.assert_close(
        ops.curvature_ce_product(z.T.contiguous().T, u.T.contiguous().T, r), want, rtol=0, atol=0
    )
    version = u._version
    assert ops.curvature_ce_product_(u, z, r) is u
    assert u._version > version
    assert torch.equal(u, want)
    weighted = ops.curvature_ce_weighted(z, r)
    assert torch.equal(ops.curvature_ce_weighted_(z, r), weighted)


def test_masked_classes_and_rows_without_a_softmax():
    z, u, q, r = rows(4, 9)
    z[0, 2:5] = float("-inf")
    z[1, 3] = float("nan")
    z[2] = float("-inf")
    for y in native(z, u, q, r)[:4]:
        assert y[0].isfinite().all()
        assert (y[0, 2:5] == 0).all()
        assert y[1].isnan().all()
        assert y[2].isnan().all()
        assert y[3].isfinite().all()


def test_opcheck_and_compile():
    z, u, q, r = rows(5, 7)
    op = torch.ops.lowtide
    for f, args in (
        (op.curvature_ce_product, (z, u, r)),
        (op.curvature_ce_product_, (u.clone(), z, r)),
        (op.curvature_ce_cumulant, (z, u, q, r)),
        (op.curvature_ce_diagonal, (z, r)),
        (op.curvature_ce_weighted, (z, r)),
        (op.curvature_ce_weighted_, (z.clone(), r)),
        (op.curvature_ce_trace, (z, r)),
    ):
        torch.library.opcheck(f.default, args)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(z, u, r):
        return ops.curvature_ce_product(z, u, r) + ops.curvature_ce_weighted_(z.clone(), r)

    assert torch.equal(step(z, u, r), ops.curvature_ce_product(z, u, r) + ops.curvature_ce_weighted(z, r))


def test_ops_called_directly_never_read_beyond_their_arguments():
    z, u, _q, r = rows(5, 7)
    for args in ((z, u[:4], r), (z, u, r[:4]), (z[0], u[0], r), (z, u.double(), r), (z.T, u.T, r)):
        with pytest.raises(RuntimeError, match="lowtide"):
            torch.ops.lowtide.curvature_ce_product(*args)


def test_bad_arguments_are_refused_by_name():
    z, u, q, r = rows(5, 7)
    with pytest.raises(lt.LowtideTypeError, match="u must be a float32"):
        ops.curvature_ce_product(z, u.double(), r)
    with pytest.raises(lt.LowtideValueError, match="two dimensions"):
        ops.curvature_ce_diagonal(z[0], r)
    with pytest.raises(lt.LowtideValueError, match=r"r must have shape \(5,\)"):
        ops.curvature_ce_trace(z, r[:3])
    with pytest.raises(lt.LowtideValueError, match="q must have z's shape"):
        ops.curvature_ce_cumulant(z, u, q[:, :3], r)
    with pytest.raises(lt.LowtideValueError, match="contiguous"):
        ops.curvature_ce_weighted_(z.T.contiguous().T, r)
    with pytest.raises(lt.LowtideRuntimeError, match="leaf"):
        ops.curvature_ce_weighted_(z.clone().requires_grad_(), r)


def test_float32_heads_use_them_and_differentiate_as_double_does():
    g = torch.Generator().manual_seed(1)
    x, w, b, v = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 6), (5, 6), (5,), (5, 6)))
    y = torch.randint(0, 5, (40,), generator=g)

    def everything(dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, w, b)]
        head = CEHead(*leaves, y)
        d, d_b = head.diag()
        value = (
            head.quadratic(v.to(dtype), b.to(dtype), v.to(dtype), b.to(dtype)) + d.square().sum() + d_b.sum()
        )
        value = value + head.hg()[0].square().sum() + head.trace()
        return value, *torch.autograd.grad(value, leaves, create_graph=True)

    for got, want in zip(everything(torch.float32), everything(torch.float64), strict=True):
        scale = float(want.detach().abs().max())
        torch.testing.assert_close(got.double(), want, rtol=0, atol=64 * 2**-24 * scale)
    z = F.linear(x, w, b).float()
    weights = torch.full((40,), 1 / 40)
    want = ops.curvature_ce_trace(z, weights) @ ((x * x).sum(1) + 1).float()
    with torch.no_grad():
        torch.testing.assert_close(
            CEHead(x.float(), w.float(), b.float(), y).trace(), want, rtol=1e-5, atol=0
        )
