# SPDX-License-Identifier: Apache-2.0
"""The tables of ih4 and lut8, computed anew, and the digest that programs compare before they share a stream."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np

import lowtide as lt
from lowtide import _core

ADDRESS = {"seed": 99, "step": 3, "slot": 1, "param": 5}


def words(n: int, offset: int = 0) -> np.ndarray:
    out = np.empty(n, dtype=np.uint32)
    _core.random_words(out, **ADDRESS, role=0, offset=offset)
    return out


def lut8_levels() -> np.ndarray:
    """Conditional means of 256 equally probable slices of N(0, 1), the outermost scaled to 127, rounded."""
    normal = NormalDist()
    cuts = [-math.inf, *(normal.inv_cdf(k / 256) for k in range(1, 256)), math.inf]
    density = [math.exp(-x * x / 2) for x in cuts]
    means = np.array([density[k] - density[k + 1] for k in range(256)])
    return np.rint(means / means[-1] * 127)


def test_lut8_is_its_definition(isa: str) -> None:
    levels = lut8_levels()
    scale = np.float32(1 / math.sqrt(float(np.mean(levels**2))))
    table = levels.astype(np.float32) * scale
    want = table[words(4096).view("<u1")]
    got = lt.random.sample(4 * 4096, dist="lut8", **ADDRESS)
    assert np.array_equal(got, want)
    assert not np.signbit(got[got == 0]).any()
    assert len(np.unique(want)) == len(np.unique(table))  # all levels were seen
    assert abs(float(np.mean(table.astype(np.float64) ** 2)) - 1) < 1e-6
    assert np.array_equal(lt.random.sample(1000, dist="lut8", offset=77, **ADDRESS), got[77:1077])


def test_ih4_is_its_definition(isa: str) -> None:
    sums = words(5000, 123).view("<u1").reshape(-1, 4).sum(1, dtype=np.int32)
    want = (sums - 510).astype(np.float32) * np.float32(1 / math.sqrt(21845))
    assert np.array_equal(lt.random.sample(5000, dist="ih4", offset=123, **ADDRESS), want)


def test_self_test_digest_is_the_same_everywhere_and_quick(isa: str) -> None:
    assert lt.random.self_test_digest().hex() == "a8b2e7209325e727f1e0910ad053c0d1"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        lt.random.self_test_digest()
        times.append(time.perf_counter() - start)
    if isa != "scalar":
        assert min(times) < 5e-3  # a millisecond on an idle machine


def test_committed_digests_of_every_distribution_and_dtype(isa: str) -> None:
    """Logged runs name these streams: they must never change."""
    committed = json.loads((Path(__file__).parent.parent / "data" / "stream_digests.json").read_text())
    n = committed["elements"]
    zeros = np.zeros(n, dtype=np.float32)
    dtypes = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
    assert len(committed["digests"]) == len(lt.random.DISTS) * len(dtypes)
    for dist in lt.random.DISTS:
        for threads in (1, 2, 3) if isa != "scalar" else (3,):
            lt.set_num_threads(threads)
            z = lt.random.sample(n, dist=dist, **committed["address"])
            for name, dtype in dtypes.items():
                out = np.empty(n, dtype=dtype)
                lt.random.perturb(zeros, 1.0, out=out, dist=dist, **committed["address"])
                digest = hashlib.sha256(out.tobytes()).hexdigest()
                assert digest == committed["digests"][f"{dist}/{name}"]["sha256"], (dist, name, threads)
                if dtype is np.float32:
                    assert np.array_equal(z, out)
