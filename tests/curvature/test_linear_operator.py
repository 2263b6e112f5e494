# SPDX-License-Identifier: Apache-2.0
"""Vectors, probes and products that every operator shares."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import lowtide as lt  # noqa: E402
from lowtide.curvature import Layout, MatrixOperator  # noqa: E402


def operator(dtype):
    a = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MatrixOperator((a + a.T).to(dtype), shapes=[(2, 2), (3,)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_take_and_return_every_form_of_a_vector(dtype):
    h = operator(dtype)
    v = torch.arange(7, dtype=dtype)
    want = h.matrix @ v
    torch.testing.assert_close(h @ v, want)
    parts = h.layout.views(v)
    as_list = h @ parts
    assert [p.shape for p in as_list] == [(2, 2), (3,)]
    torch.testing.assert_close(torch.cat([p.flatten() for p in as_list]), want)
    by_name = h @ dict(zip(reversed(h.layout.names), reversed(parts), strict=True))
    assert list(by_name) == ["block0", "block1"]
    torch.testing.assert_close(by_name["block1"], want[4:])
    torch.testing.assert_close(h @ torch.stack([v, -v], 1), torch.stack([want, -want], 1))
    torch.testing.assert_close(h.dense(), h.matrix)
    assert h.products == 3 + 2 + 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeded_products_are_those_of_the_addressed_probe(dtype):
    h = operator(dtype)
    z = h.layout.probe(3, 5)
    want = [lt.random.sample(s, seed=3, step=5, param=i, dist="rademacher") for i, s in enumerate((4, 3))]
    assert z.tolist() == [*want[0].tolist(), *want[1].tolist()]
    torch.testing.assert_close(h.hvp_seeded(3, 5), h.matrix @ z)
    quads = h.quad_seeded(3, 5)
    assert quads.dtype == torch.float64
    torch.testing.assert_close(quads.sum(), (z @ (h.matrix @ z)).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quads[0], (z[:4] @ (h.matrix @ z)[:4]).double(), rtol=1e-6, atol=1e-6)


def test_bad_vectors_are_refused_by_name():
    h = operator(torch.float32)
    with pytest.raises(lt.LowtideValueError, match=r"v must have shape \(7,\)"):
        h @ torch.ones(6)
    with pytest.raises(lt.LowtideValueError, match="7 rows"):
        h @ torch.ones(6, 2)
    with pytest.raises(lt.LowtideTypeError, match="list or dict of 2"):
        h @ [torch.ones(2, 2)]
    with pytest.raises(lt.LowtideValueError, match="block1 must have shape"):
        h @ [torch.ones(2, 2), torch.ones(4)]
    with pytest.raises(lt.LowtideValueError, match="missing"):
        h @ {"block0": torch.ones(2, 2), "other": torch.ones(3)}
    with pytest.raises(lt.LowtideValueError, match="out must be contiguous"):
        h.hvp(torch.ones(7), out=torch.ones(7, dtype=torch.float64))
    with pytest.raises(lt.LowtideValueError, match="symmetric"):
        MatrixOperator(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(lt.LowtideValueError, match="params is empty"):
        Layout.of([])


def test_kept_memory_is_never_what_a_caller_holds():
    h = operator(torch.float32)
    first = h.hvp_seeded(3, 0)
    quads = h.quad_seeded(3, 0)
    want = first.clone(), quads.clone()
    h.quad_seeded(3, 1)
    h.hvp_seeded(3, 1)
    assert torch.equal(first, want[0])
    assert torch.equal(quads, want[1])
