# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import ops
from lowtide.ops import Packed, matmul


def dense(rows: int, cols: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(lt.random.sample((rows, cols), seed=seed)).to(dtype)


def packed(
    rows: int, cols: int, bits: int, symmetric: bool, seed: int, group: int = 64
) -> tuple[Packed, torch.Tensor]:
    """A packed matrix and the same matrix decoded, both by the book (csrc/quant/group_format.h)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (rows, cols), dtype=np.uint8)
    groups = -(-cols // group)
    scale = rng.uniform(0.01, 1, (rows, groups)).astype(np.float32)
    zero = np.full((rows, groups), 2 ** (bits - 1), np.uint8)
    if not symmetric:
        zero = rng.integers(0, 2**bits, (rows, groups), dtype=np.uint8)
    per_col = np.arange(cols) // group
    value = (codes.astype(np.int32) - zero.astype(np.int32)[:, per_col]).astype(np.float32) * scale[
        :, per_col
    ]
    if bits == 4:
        blocks = [codes[:, at : at + 32] for at in range(0, cols, 32)]
        data = []
        for block in blocks:
            low = block[:, :16].copy()
            high = block[:, 16:]
            low[:, : high.shape[1]] |= high << 4
            data.append(low)
        codes = np.concatenate(data, axis=1) if data else codes
    q = Packed(
        torch.from_numpy(codes),
        torch.from_numpy(scale),
        None if symmetric else torch.from_numpy(zero),
        bits,
        group,
        (rows, cols),
    )
    return q, torch.from_numpy(value)


def bound(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Rounding error of a chain of k multiply-adds: k 2^-24 sum |a b|."""
    return a.shape[1] * 2.0**-24 * (a.double().abs() @ b.double().abs())


@pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["f32", "bf16", "int8", "int8 symmetric", "int4", "int4 symmetric"])
def test_against_float64(kind: str, ta: bool, tb: bool) -> None:
    m, n, k = 37, 75, 130
    a = dense(k, m, 1) if ta else dense(m, k, 1)
    rows, cols = (n, k) if tb else (k, n)
    if kind in ("f32", "bf16"):
        b: Any = dense(rows, cols, 2, torch.bfloat16 if kind == "bf16" else torch.float32)
        value = b.float()
    else:
        b, value = packed(rows, cols, 4 if "int4" in kind else 8, "symmetric" in kind, 3)
    x, y = (a.T if ta else a), (value.T if tb else value)
    got = matmul(a, b, ta=ta, tb=tb)
    assert ((got.double() - x.double() @ y.double()).abs() <= bound(x, y)).all()
    # The same operand decoded first gives the same bits: packing is storage, never arithmetic.
    assert torch.equal(got, matmul(a, value, ta=ta, tb=tb))
    left, left_value = (b, value) if not isinstance(b, torch.Tensor) else (value, value)
    assert torch.equal(matmul(left, a, ta=not tb, tb=not ta), matmul(left_value, a, ta=not tb, tb=not ta))


def test_views_are_recognised_and_strides_handled() -> None:
    a, b = dense(20, 50, 1), dense(30, 50, 2)
    want = matmul(a, b, tb=True)
    assert torch.equal(matmul(a, b.T), want)
    assert torch.equal(matmul(a.T.contiguous().T, b.T), want)
    wide = torch.zeros(20, 80)
    wide[:, 3:53] = a
    assert torch.equal(matmul(wide[:, 3:53], b, tb=True), want)
    assert torch.equal(matmul(wide[:, 3:53].T, b, ta=True, tb=True), want)
    spread = torch.zeros(20, 100)
    spread[:, ::2] = a
    assert torch.equal(matmul(spread[:, ::2], b, tb=True), want)
    assert torch.equal(matmul(a[:1].expand(4, 50), b, tb=True), want[:1].expand(4, 30))
    for shape in ((0, 5, 3), (3, 0, 4), (3, 5, 0), (1, 1, 1)):
        m, k, n = shape
        assert matmul(torch.ones(m, k), torch.ones(k, n)).tolist() == [[float(k)] * n for _ in range(m)]


def test_numpy_and_torch_give_the_same_bits(isa: str) -> None:
    from lowtide import _core

    a, (q, _) = dense(33, 70, 1), packed(41, 70, 4, False, 5)
    want = matmul(a, q, tb=True)
    out = np.empty((33, 41), np.float32)
    _core.matmul(
        out,
        a.numpy(),
        None,
        None,
        0,
        70,
        0,
        False,
        q.codes.numpy(),
        q.scale.numpy(),
        q.zero.numpy(),
        4,
        70,
        64,
        True,
    )
    assert out.tobytes() == want.numpy().tobytes()


def test_out_is_written_in_place_and_noticed_by_autograd() -> None:
    a, b = dense(5, 6, 1), dense(6, 7, 2)
    out = torch.full((5, 7), 9.0)
    w = torch.ones(5, 7, requires_grad=True)
    y = (w * out).sum()
    assert matmul(a, b, out=out) is out
    assert torch.equal(out, matmul(a, b))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert not matmul(a.requires_grad_(), b).requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: matmul(torch.ones(2, 3), torch.ones(4, 5)), "inner sizes"),
        (lambda: matmul(torch.ones(2, 3).double(), torch.ones(3, 5)), "float32 or bfloat16"),
        (lambda: matmul(torch.ones(3), torch.ones(3, 5)), "two dimensions"),
        (lambda: matmul("a", torch.ones(3, 5)), "got str"),
        (lambda: matmul(np.ones((2, 3), np.float32), torch.ones(3, 5)), "torch tensor"),
        (lambda: matmul(torch.ones(2, 3), torch.ones(3, 5), out=torch.ones(2, 4)), "out must be"),
        (lambda: matmul(torch.ones(2, 3), torch.ones(3, 5), out=torch.ones(2, 5).double()), "float32"),
        (
            lambda: matmul(torch.ones(2, 3), torch.ones(3, 5), out=torch.ones(2, 5, requires_grad=True)),
            "no_grad",
        ),
        (lambda: matmul(torch.ones(2, 64), packed(64, 64, 4, True, 1)[0]._replace(bits=3)), "8 or 4"),
        (
            lambda: matmul(torch.ones(2, 64), packed(64, 64, 4, True, 1)[0]._replace(group=48)),
            "multiple of 32",
        ),
        (lambda: matmul(torch.ones(2, 64), packed(64, 64, 4, True, 1)[0]._replace(shape=(64, 65))), "bytes"),
        (
            lambda: matmul(torch.ones(2, 64), packed(64, 64, 8, True, 1)[0]._replace(scale=torch.ones(3))),
            "one a group",
        ),
        (
            lambda: matmul(
                torch.ones(2, 64), packed(64, 64, 8, True, 1)[0]._replace(scale=torch.ones(64).double())
            ),
            "float32",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_shared_memory_is_refused() -> None:
    a = torch.ones(4, 4)
    with pytest.raises(lt.LowtideError, match="share memory"):
        matmul(a, torch.ones(4, 4), out=a)
    with pytest.raises(RuntimeError, match="share memory"):
        matmul(a[:2], torch.ones(4, 4), out=a[1:3])
    assert torch.equal(a, torch.ones(4, 4))


def test_the_op_itself_checks_sizes() -> None:
    q, _ = packed(8, 40, 4, False, 1)
    for codes, scale, cols in (
        (q.codes[:, 1:].contiguous(), q.scale, 40),
        (q.codes, q.scale[1:], 40),
        (q.codes, q.scale, 41),
    ):
        with pytest.raises(RuntimeError, match="lowtide"):
            torch.ops.lowtide.matmul(
                torch.ones(2, 40), None, None, 0, 40, 0, False, codes, scale, q.zero, 4, cols, 64, True
            )


@pytest.mark.parametrize("out", [False, True])
def test_opcheck(out: bool) -> None:
    q, _ = packed(8, 40, 4, False, 1)
    args = (torch.ones(3, 40), None, None, 0, 40, 0, False, q.codes, q.scale, q.zero, 4, 40, 64, True)
    if out:
        torch.library.opcheck(torch.ops.lowtide.matmul_out.default, (torch.empty(3, 8), *args))
    else:
        torch.library.opcheck(torch.ops.lowtide.matmul.default, args)


def test_compiles_without_graph_breaks() -> None:
    q, _ = packed(8, 40, 8, True, 1)

    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(3, 8)
        ops.matmul(x * 2, q, tb=True, out=y)
        return y + ops.matmul(x, q, tb=True) + ops.matmul(x, torch.ones(8, 40).T)

    x = dense(3, 40, 1)
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(got, f(x))
