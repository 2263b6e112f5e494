# SPDX-License-Identifier: Apache-2.0
"""What one call costs when there is almost nothing to compute, and Gaussian noise against torch's own.

    python bench/python/dispatch.py [--rounds N] [--no-save]

Microseconds of one call on 16 elements, medians over rounds: the op itself (``torch.ops.lowtide``), the checked wrapper,
the public function, and torch's ``add_`` beside them. Then ``x += scale * z`` over 16M elements with one thread:
``lt.random.add_`` against ``torch.add`` alone (the memory limit) and against ``torch.randn_like`` + ``add_``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _timing import environment, race, save

import lowtide as lt
from lowtide import ops
from lowtide.ops import random as random_ops


def microseconds(call: Callable[[], Any], rounds: int, calls: int = 2000) -> dict[str, float]:
    for _ in range(calls):
        call()
    seen = []
    for _ in range(rounds):
        t = time.perf_counter()
        for _ in range(calls):
            call()
        seen.append((time.perf_counter() - t) / calls * 1e6)
    middle = statistics.median(seen)
    return {"us": round(middle, 3), "mad_us": round(statistics.median(abs(s - middle) for s in seen), 3)}


def calls() -> dict[str, Callable[[], Any]]:
    x, y = torch.zeros(16), torch.ones(16)
    out = torch.empty(4, 4)
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    direct: Any = torch.ops.lowtide.random_add_.default
    return {
        "torch.Tensor.add_": lambda: x.add_(y),
        "torch.mm": lambda: torch.mm(a, b, out=out),
        "torch.ops.lowtide.random_add_": lambda: direct(x, 0.0, 1, 0, 0, 0, 0, 0, 1),
        "lowtide.ops.random_add_": lambda: random_ops.random_add_(x, 0.0, 1, 0, 0, 0, 0, 0, 1),
        "lowtide.random.add_": lambda: lt.random.add_(x, 0.0, seed=1),
        "lowtide.ops.matmul": lambda: ops.matmul(a, b),
    }


def noise(rounds: int, dist: str) -> list[dict[str, Any]]:
    n = 1 << 24
    x, y, z = torch.zeros(n), torch.ones(n), torch.empty(n)
    want = lt.random.sample((64,), seed=3, dist=dist)
    got = lt.random.add_(torch.zeros(64), 1.0, seed=3, dist=dist)
    if not torch.equal(torch.as_tensor(got), torch.as_tensor(want)):
        raise SystemExit("lt.random.add_ does not add what lt.random.sample gives")
    times = race(
        {
            "torch add_ (memory limit)": lambda: x.add_(y, alpha=1e-3),
            "lowtide.random.add_": lambda: lt.random.add_(x, 1e-3, seed=3, dist=dist),
            "torch.normal_ + add_": lambda: x.add_(z.normal_(), alpha=1e-3),
        },
        rounds=rounds,
    )
    limit = times["torch add_ (memory limit)"]["median"]
    rows = [{"name": k, "dist": dist, **t, "of_axpy": limit / t["median"]} for k, t in times.items()]
    for row in rows:
        print(f"  {row['name']:<30} {1e3 * row['median']:8.2f} ms   {row['of_axpy']:.2f} of axpy", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = {**environment(), "torch": torch.__version__}
    rows = []
    with torch.no_grad():
        for name, call in calls().items():
            rows.append({"name": name, **microseconds(call, args.rounds)})
            print(f"  {name:<34} {rows[-1]['us']:7.2f} us ±{rows[-1]['mad_us']:.2f}", flush=True)
        streams = []
        for dist in ("gaussian", "rademacher"):
            print(f"{dist}, 16M elements, 1 thread", flush=True)
            streams += noise(args.rounds, dist)
    if not args.no_save:
        save("dispatch", {"bench": "dispatch", "environment": started, "calls": rows, "noise": streams})


if __name__ == "__main__":
    main()
