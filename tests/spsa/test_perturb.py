# SPDX-License-Identifier: Apache-2.0
"""w + scale z on NumPy arrays and torch tensors, against its definition on lowtide.random.sample."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DISTS = list(lt.random.DISTS)
ADDRESS = {"seed": 11, "step": 5, "slot": 2, "param": 3}
NUMBERS = (11, 5, 2, 3)  # the same, in the order of the ops


def weights(n: int, dtype: torch.dtype) -> torch.Tensor:
    w = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.05
    w[::17] = 0.0
    return w.to(dtype)


def oracle(w: torch.Tensor, scale: float, dist: str, threshold: float, offset: int) -> torch.Tensor:
    z = lt.random.sample(w.shape, dist=dist, offset=offset, like="torch", **ADDRESS)
    x = w.float()
    return torch.where(x.abs() > threshold, x, x + torch.tensor(scale) * z)


def bits(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_its_definition_for_every_dtype(isa: str, dtype: torch.dtype, dist: str) -> None:
    for n, offset, threshold in [(0, 0, math.inf), (17, 0, 0.02), (2049, 3, math.inf), (5000, 2047, 0.02)]:
        w = weights(n, dtype)
        before = bits(w)
        for to in DTYPES:
            out, plus, minus = (torch.full((n,), 7.0, dtype=to) for _ in range(3))
            tail = (*NUMBERS, offset, lt.random.DISTS[dist], threshold)
            ops.spsa_perturb(out, w, 1e-3, *tail)
            ops.spsa_perturb_pair(plus, minus, w, 1e-3, *tail)
            assert bits(out) == bits(plus) == bits(oracle(w, 1e-3, dist, threshold, offset).to(to))
            assert bits(minus) == bits(oracle(w, -1e-3, dist, threshold, offset).to(to))
        assert bits(w) == before


def test_numpy_gives_the_same_bits() -> None:
    w = weights(3001, torch.float32)
    for to, array in [(torch.float32, np.float32), (torch.float16, np.float16), (torch.bfloat16, np.uint16)]:
        want, want_minus = torch.empty(3001, dtype=to), torch.empty(3001, dtype=to)
        lt.random.perturb(w, 0.01, out=want, minus=want_minus, dist="lut8", **ADDRESS)
        got, minus = np.empty(3001, array), np.empty(3001, array)
        assert lt.random.perturb(w.numpy(), 0.01, out=got, minus=minus, dist="lut8", **ADDRESS) is got
        assert got.tobytes() == bits(want)
        assert minus.tobytes() == bits(want_minus)


def test_list_equals_single_calls_in_place_and_apart() -> None:
    ws = [
        weights(n, d)
        for n, d in [(5, torch.float32), (70, torch.bfloat16), (0, torch.float32), (999, torch.float16)]
    ]
    outs = [ws[0].clone(), torch.empty(70), torch.empty(0), torch.empty(999, dtype=torch.float16)]
    ws[0] = outs[0]  # in place
    scales, thresholds = [0.1, 0.2, 0.3, 0.4], [math.inf, 0.03, math.inf, 0.01]
    want = []
    for i, w in enumerate(ws):
        one = torch.empty(w.numel(), dtype=outs[i].dtype)
        ops.spsa_perturb(one, w, scales[i], 1, 2, 3, 10 + i, 0, 1, thresholds[i])
        want.append(bits(one))
    ops.spsa_perturb_list(outs, ws, scales, 1, 2, 3, [10, 11, 12, 13], 1, thresholds)
    assert [bits(o) for o in outs] == want
    ops.spsa_perturb_list([], [], [], 1, 2, 3, [])


@pytest.mark.parametrize("dist", DISTS)
def test_any_thread_count_and_shard_gives_one_digest(isa: str, dist: str) -> None:
    w = weights(40001, torch.float32).numpy()
    digests = set()
    for threads in (1, 2, 3):
        lt.set_num_threads(threads)
        out = np.empty_like(w)
        lt.random.perturb(w, 0.5, out=out, dist=dist, **ADDRESS)
        digests.add(hashlib.sha256(out.tobytes()).hexdigest())
    parts = np.empty_like(w)
    for lo, hi in [(0, 1), (1, 4096), (4096, 40001)]:
        lt.random.perturb(w[lo:hi], 0.5, out=parts[lo:hi], offset=lo, dist=dist, **ADDRESS)
    digests.add(hashlib.sha256(parts.tobytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": math.nan}, "scale must be finite"),
        ({"threshold": -1.0}, "threshold must be >= 0"),
        ({"dist": "cauchy"}, "dist must be one of rademacher, gaussian, ih4, lut8"),
        ({"seed": -1}, "seed"),
        ({"offset": -1}, "offset"),
        ({"out": torch.zeros(3)}, "out must have the 4 elements of w"),
        ({"out": torch.zeros(4, dtype=torch.float64)}, "out must be a float32, bfloat16 or float16"),
        ({"out": torch.zeros(8)[::2]}, "out must be contiguous"),
        ({"w": torch.zeros(4, dtype=torch.int32)}, "w must be a float32"),
        ({"minus": torch.zeros(4, dtype=torch.bfloat16)}, "minus must have plus's dtype"),
        ({"w": np.zeros(4), "out": np.zeros(4)}, "float32, float16, or bfloat16 as uint16"),
        ({"w": np.zeros(4, np.float32), "out": np.zeros(3, np.float32)}, "the 4 elements of w"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(change: dict, words: str) -> None:
    args = {"w": torch.ones(4), "scale": 1.0, "out": torch.zeros(4), "seed": 1, **change}
    with pytest.raises(lt.LowtideError, match=words):
        lt.random.perturb(**args)
    assert not np.asarray(args["out"]).any()


def test_overlapping_outputs_are_refused() -> None:
    x = torch.zeros(10)
    with pytest.raises(RuntimeError, match="apart"):
        ops.spsa_perturb(x[1:9], x[0:8], 1.0, *NUMBERS)
    y = np.zeros(10, np.float32)
    with pytest.raises(lt.LowtideError, match="apart"):
        lt.random.perturb(y[:8], 1.0, out=y[1:9], **ADDRESS)
    assert not x.any()
    assert not y.any()


def test_a_leaf_that_requires_grad_is_read_but_not_changed() -> None:
    w = torch.ones(5, requires_grad=True)
    out = torch.zeros(5)
    version = out._version
    ops.spsa_perturb(out, w, 1.0, *NUMBERS)
    assert out._version > version
    assert not out.requires_grad
    with pytest.raises(lt.LowtideError, match="no_grad"):
        ops.spsa_perturb(w, w, 1.0, *NUMBERS)
    assert torch.equal(w, torch.ones(5))


def test_opcheck() -> None:
    tail = (*NUMBERS, 0, 1, math.inf)
    x = lambda: torch.ones(70)  # noqa: E731
    lists = ([0.5, 0.5], 1, 2, 3, [4, 5], 0, [math.inf, 1.0], [0, 3])
    for name, args in {
        "spsa_perturb": (x(), x(), 0.5, *tail),
        "spsa_perturb_": (x(), 0.5, *tail),
        "spsa_perturb_pair": (x(), x(), x(), 0.5, *tail),
        "spsa_perturb_list": ([x(), x()], [x(), x()], *lists),
        "spsa_perturb_list_": ([x(), x()], *lists),
    }.items():
        torch.library.opcheck(getattr(torch.ops.lowtide, name).default, args)


def test_compiles_without_graph_breaks() -> None:
    def f(w: torch.Tensor) -> torch.Tensor:
        out, plus, minus = torch.empty_like(w), torch.empty_like(w), torch.empty_like(w)
        ops.spsa_perturb(out, w, 0.5, *NUMBERS)
        ops.spsa_perturb_pair(plus, minus, w, 0.5, *NUMBERS)
        ops.spsa_perturb_list([out, plus], [out, minus], [0.1, 0.2], 1, 2, 3, [4, 5])
        return out + 2 * plus + 3 * minus

    w = torch.arange(70, dtype=torch.float32)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(w), f(w))
