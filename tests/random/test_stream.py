# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import lowtide as lt

SIZES = [0, 1, 15, 16, 17, 63, 64, 65, 2047, 2049, 40001]
ADDRESS = {"seed": 123, "step": 4, "slot": 1, "param": 7}


@pytest.mark.parametrize("dist", list(lt.random.DISTS))
@pytest.mark.parametrize("n", SIZES)
def test_torch_and_numpy_give_the_same_bits(isa: str, n: int, dist: str) -> None:
    a = lt.random.sample(n, dist=dist, offset=3, **ADDRESS)
    b = lt.random.sample(n, dist=dist, offset=3, like="torch", **ADDRESS)
    assert a.tobytes() == b.numpy().tobytes()
    x = np.linspace(-1, 1, n, dtype=np.float32)
    y = torch.from_numpy(x.copy())
    lt.random.add_(x, 1e-3, dist=dist, **ADDRESS)
    lt.random.add_(y, 1e-3, dist=dist, **ADDRESS)
    assert x.tobytes() == y.numpy().tobytes()
    assert lt.random.dot(x, dist=dist, **ADDRESS) == float(lt.random.dot(y, dist=dist, **ADDRESS))


def test_digest_is_the_same_for_every_isa_thread_count_and_shard(isa: str) -> None:
    want = "a5cba512a495cb66cca69b4bde3ce3511988edc9bccbb5df5fb4521bf100e568"
    digests = set()
    for threads in (1, 2, 3):
        lt.set_num_threads(threads)
        digests.add(hashlib.sha256(lt.random.sample((301, 97), **ADDRESS).tobytes()).hexdigest())
    parts = [lt.random.sample(301 * 97 - k if k else 1000, offset=k, **ADDRESS) for k in (0, 1000)]
    digests.add(hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest())
    assert digests == {want}


def test_list_form_equals_single_calls() -> None:
    xs = [torch.ones(5), torch.zeros(3, 70), torch.ones(0)]
    ys = [x.clone() for x in xs]
    lt.random.add_(xs, 0.5, seed=1, param=[4, 5, 6])
    for y, p in zip(ys, [4, 5, 6], strict=True):
        lt.random.add_(y, 0.5, seed=1, param=p)
    assert all(torch.equal(a, b) for a, b in zip(xs, ys, strict=True))
    lt.random.add_([], 0.5, seed=1, param=[])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lt.random.sample(3, seed=-1), "seed"),
        (lambda: lt.random.sample(3, seed=1.5), "seed"),
        (lambda: lt.random.sample(-3, seed=1), "shape"),
        (lambda: lt.random.sample(3, seed=1, dist="cauchy"), "gaussian"),
        (lambda: lt.random.sample(seed=1), "either shape or out"),
        (lambda: lt.random.sample(out=np.zeros(3), seed=1), "float32"),
        (lambda: lt.random.add_(np.zeros((4, 4), np.float32).T[1:], 1.0, seed=1), "contiguous"),
        (lambda: lt.random.add_(np.zeros(4, np.float32), float("nan"), seed=1), "scale"),
        (lambda: lt.random.add_([torch.zeros(2)], 1.0, seed=1, param=[1, 2]), "param"),
        (lambda: lt.random.dot("x", seed=1), "NumPy array"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_read_only_arrays_stay_untouched() -> None:
    x = np.zeros(3, np.float32)
    x.flags.writeable = False
    with pytest.raises(lt.LowtideValueError, match="read-only"):
        lt.random.add_(x, 1.0, seed=1)


def test_autograd_notices_in_place_changes() -> None:
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(lt.LowtideError, match="no_grad"):
        lt.random.add_(w, 1.0, seed=1)
    x = torch.ones(3)
    y = (w * x).sum()
    lt.random.add_(x, 1.0, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("op", ["random_sample", "random_add_", "random_add_list_", "random_dot"])
def test_opcheck(op: str) -> None:
    import lowtide.ops  # noqa: F401

    tail = (1, 2, 3, 4, 0, 0, 1)
    args = {
        "random_sample": (torch.empty(70), *tail),
        "random_add_": (torch.ones(70), 0.5, *tail),
        "random_add_list_": ([torch.ones(3), torch.ones(4)], 0.5, 1, 2, 3, [4, 5], 0, 1),
        "random_dot": (torch.ones(70), *tail),
    }[op]
    torch.library.opcheck(getattr(torch.ops.lowtide, op).default, args)


def test_compiles_without_graph_breaks() -> None:
    from lowtide import ops

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        ops.random_add_(y, 0.5, 1, 2, 3, 4, 0, 0, 1)
        return y + ops.random_dot(y, 1, 2, 3, 4, 0, 0, 1)

    x = torch.arange(70, dtype=torch.float32)
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(got, f(x))


def test_forced_isa_is_the_one_that_runs() -> None:
    code = "import lowtide as lt, torch; import lowtide.ops; print(lt.isa(), torch.ops.lowtide._active_isa())"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOWTIDE_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["scalar", "0"]
    bad = subprocess.run(
        [sys.executable, "-c", "import lowtide as lt; lt.isa()"],
        env={**os.environ, "LOWTIDE_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode != 0
    assert "unknown ISA 'mmx'" in bad.stderr


def test_numpy_surface_never_imports_torch() -> None:
    code = (
        "import sys, numpy as np, lowtide as lt\n"
        "x = np.zeros(5, np.float32); lt.random.add_(x, 1.0, seed=1); lt.random.dot(x, seed=1)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
