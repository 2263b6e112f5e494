# SPDX-License-Identifier: Apache-2.0
"""Stepping packed weights in place, through torch ops and the NumPy binding."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

import lowtide as lt
from lowtide import _core, ops

STEP = {"seed": 5, "step": 3, "param": 9}


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def weights(x: torch.Tensor, bits: int = 8, scheme: str = "asymmetric") -> list[Any]:
    return list(ops.quantize_group(x, bits=bits, group=64, scheme=scheme, headroom=True))


def decoded(w: list[Any], cols: int, bits: int = 8) -> torch.Tensor:
    return ops.dequantize_group(*w, bits=bits, group=64, cols=cols)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("cols", [0, 1, 33, 576])
def test_torch_and_numpy_give_the_same_bits(isa: str, cols: int, bits: int, scheme: str) -> None:
    x, delta = matrix(4, cols), matrix(4, cols, 1)
    w = weights(x, bits, scheme)
    a = [None if t is None else t.numpy().copy() for t in w]
    for alpha in (1e-3, 2.0):
        skipped = ops.requant_add_sr_(*w, delta, alpha=alpha, decay=0.99, bits=bits, group=64, **STEP)
        assert int(skipped) == 0
        assert _core.requant_add_sr(*a, delta.numpy(), alpha, 0.99, bits, 64, 5, 3, 0, 9, 1, 0) == 0
        for t, n in zip(w, a, strict=True):
            assert (t is None and n is None) or t.numpy().tobytes() == n.tobytes()


def test_list_form_equals_single_calls() -> None:
    shapes = [(3, 70), (5, 256), (0, 64), (2, 0)]
    one = [weights(matrix(*s)) for s in shapes]
    many = [[t.clone() for t in w] for w in one]
    deltas = [matrix(*s, 7) for s in shapes]
    for w, d, p in zip(one, deltas, [4, 5, 6, 7], strict=True):
        ops.requant_add_sr_(*w, d, alpha=0.01, bits=8, group=64, seed=1, step=2, param=p)
    lists = [list(t) for t in zip(*many, strict=True)]
    ops.requant_add_sr_list_(
        *lists, deltas, alpha=0.01, bits=8, group=64, seed=1, step=2, params=[4, 5, 6, 7]
    )
    for w, v in zip(one, many, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(w, v, strict=True))
    assert ops.requant_add_sr_list_([], [], [], [], bits=8, group=64, seed=1, step=1) is None


def test_zero_delta_changes_nothing_and_small_deltas_touch_only_their_weights() -> None:
    w = weights(matrix(8, 512))
    before = [t.clone() for t in w]
    for step in range(20):
        ops.requant_add_sr_(*w, torch.zeros(8, 512), bits=8, group=64, seed=1, step=step, param=0)
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))
    delta = torch.zeros(8, 512)
    delta[:, ::64] = 1e-3 * decoded(w, 512)[:, ::64].sign()
    for step in range(100):
        ops.requant_add_sr_(*w, delta * (-1) ** step, bits=8, group=64, seed=1, step=step, param=0)
    same = decoded(w, 512) == decoded(before, 512)
    same[:, ::64] = True
    assert same.all()


def test_steps_follow_the_unrounded_weights() -> None:
    """Many random steps: the error against exact arithmetic is a random walk, not a drift."""
    x = matrix(64, 256) * 0.05
    w = weights(x)
    exact = decoded(w, 256).double()
    g = torch.Generator().manual_seed(3)
    variance = torch.zeros(())
    for step in range(100):
        delta = torch.randn(64, 256, generator=g) * 1e-4
        ops.requant_add_sr_(*w, delta, decay=0.9999, bits=8, group=64, seed=1, step=step, param=0)
        exact = exact * 0.9999 + delta
        variance += w[1].mean() * (delta.abs() + 1e-4 * exact.abs()).mean()  # s |d| a step (DESIGN: SR maths)
    error = decoded(w, 256) - exact
    assert abs(error.mean()) < 5 * (variance / error.numel()).sqrt()
    assert error.std() < 1.5 * variance.sqrt()


def test_non_finite_policies() -> None:
    w = weights(matrix(2, 128))
    before = [t.clone() for t in w]
    delta = matrix(2, 128, 2)
    delta[0, 3] = float("nan")
    with pytest.raises(lt.LowtideValueError, match="delta has 1 non-finite element and nothing was changed"):
        ops.requant_add_sr_(*w, delta, bits=8, group=64, **STEP)
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))
    assert int(ops.requant_add_sr_(*w, delta, bits=8, group=64, nonfinite="skip", **STEP)) == 1
    assert torch.equal(w[0][0, :64], before[0][0, :64])
    assert not torch.equal(w[0][0, 64:], before[0][0, 64:])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"alpha": float("nan")}, "alpha must be finite"),
        ({"decay": 1.1}, "decay must be in"),
        ({"bits": 4}, "codes must have shape"),
        ({"group": 32}, "scale"),
        ({"step": -1}, "step"),
        ({"param": -1}, "params"),
        ({"delta": matrix(2, 64).double()}, "delta must be float32"),
        ({"delta": matrix(3, 64)}, "rows of scale"),
        ({"delta": torch.tensor(1.0)}, "rows of scale"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(kwargs: dict[str, Any], words: str) -> None:
    w = weights(matrix(2, 64))
    before = [t.clone() for t in w]
    call = {"delta": matrix(2, 64), "bits": 8, "group": 64, **STEP, **kwargs}
    with pytest.raises(lt.LowtideError, match=words):
        ops.requant_add_sr_(*w, **call)
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))


def test_opcheck_and_compile() -> None:
    w = weights(matrix(2, 128))
    args = ([w[0]], [w[1]], [w[2]], [matrix(2, 128)], 0.1, 0.9, 8, 64, 1, 2, 0, [3], 1, 0, True)
    torch.library.opcheck(torch.ops.lowtide.requant_add_sr_list_.default, args)

    def f(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        ops.requant_add_sr_(codes, scale, zero, d * 2, alpha=0.01, bits=8, group=64, **STEP)
        return ops.dequantize_group(codes, scale, zero, bits=8, group=64, cols=128)

    a, b = [t.clone() for t in w], [t.clone() for t in w]
    d = matrix(2, 128, 4)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*a, d), f(*b, d))
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def test_digest_of_the_format() -> None:
    """Logged runs must replay in every later version."""
    w = weights(torch.from_numpy(lt.random.sample((32, 320), seed=1)), bits=4)
    for step in range(5):
        delta = torch.from_numpy(lt.random.sample((32, 320), seed=2, step=step))
        ops.requant_add_sr_(*w, delta, alpha=0.05, decay=0.999, bits=4, group=64, seed=3, step=step, param=1)
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in w)).hexdigest()
    assert digest == "e13e453aa2342aa68996d239b8062ac1fafdc3a4650e70fafde50cc017037d25"
