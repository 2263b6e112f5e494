# SPDX-License-Identifier: Apache-2.0
"""What a Hutchinson trace costs beyond its products with the Hessian, on a multilayer perceptron of a million parameters.

    python bench/python/curvature_hutchinson.py [--threads 1,2] [--probes 10] [--batches 128,1024] [--rounds 5] [--no-save]

``beyond``: 1 minus the time of as many products with one fixed vector over that of the trace, by wall clock and by processor
time, which other programs on the machine disturb less. ``probe``: drawing the probe and its dot with the product, alone, over
the trace's time: what the first is made of, free of the noise of the products. ``torch``: the time of the same two as other
libraries write them (``randint_like``, ``2 x - 1``, products and sums tensor by tensor) over ours.
A product costs more the more samples it is over, the probe does not: batches of two sizes.
The trace is verified against that of probes written out with torch.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from typing import Any

import torch
from _timing import environment, race, rounded, save
from torch import Tensor, nn

import lowtide as lt
from lowtide.curvature import HessianOperator, trace

TARGET = 0.03  # of the trace's time


def written_out(parts: list[Tensor]) -> float:
    z = [torch.randint_like(p, high=2).mul_(2).sub_(1) for p in parts]
    return float(sum((a * b).sum() for a, b in zip(z, parts, strict=True)))


def verify(op: HessianOperator, value: float, probes: int) -> None:
    want = 0.0
    for k in range(probes):
        z = [
            lt.random.sample(s, seed=1, step=k, param=i, dist="rademacher", like="torch").flatten()
            for i, s in enumerate(op.layout.shapes)
        ]
        flat = torch.cat(z)
        want += float(flat.double() @ op.hvp(flat).double()) / probes
    # Products in float32; differences are known as well as they say.
    if abs(value - want) > max(1e-4, 10 * (op.fd_error or 0)) * abs(want):
        raise SystemExit(f"WRONG RESULT: {value}, but the probes written out give {want}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--batches", default="128,1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 768), nn.Tanh(), nn.Linear(768, 512), nn.Tanh(), nn.Linear(512, 10))
    runs: list[dict[str, Any]] = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        started = {**environment(), "torch": torch.__version__}
        rows = []
        for batch, method in product(map(int, args.batches.split(",")), ("double", "fd")):
            data = (torch.randn(batch, 784), torch.randint(10, (batch,)))
            op = HessianOperator(model, None, data, "cross_entropy", method=method)
            m = args.probes

            def run(op: HessianOperator = op, m: int = m) -> float:
                return trace(op, seed=1, rtol=0.0, min_probes=m, max_probes=m).value

            verify(op, run(), m)
            v, out = op.layout.probe(2, 0), op.layout.zeros()
            parts = op.layout.views(v)

            def products(op: HessianOperator = op, m: int = m, v: Tensor = v, out: Tensor = out) -> None:
                for _ in range(m):
                    op.hvp(v, out)

            def probe(op: HessianOperator = op, m: int = m, v: Tensor = v, out: Tensor = out) -> None:
                for k in range(m):
                    op.layout.probe(1, k, v)
                    op.layout.probe_dots(out, 1, k)

            def in_torch(m: int = m, parts: list[Tensor] = parts) -> None:
                for _ in range(m):
                    written_out(parts)

            rivals = {"trace": run, "products": products, "probe": probe, "torch": in_torch}
            t = race(rivals, rounds=args.rounds, budget=120)
            row = {
                "method": method,
                "batch": batch,
                "parameters": op.n,
                "seconds": t["trace"]["median"],
                "beyond": 1 - t["products"]["median"] / t["trace"]["median"],
                "beyond_cpu": 1 - t["products"]["cpu"] / t["trace"]["cpu"],
                "probe": t["probe"]["median"] / t["trace"]["median"],
                "probe_cpu": t["probe"]["cpu"] / t["trace"]["cpu"],
                "torch": t["torch"]["median"] / t["probe"]["median"],
                "target": TARGET,
            }
            rows.append(rounded(row))
            print(
                f"{threads} threads {method:6} batch {batch:4}: trace of {m} probes {1e3 * row['seconds']:8.1f} ms, "
                f"beyond its products {100 * row['beyond']:5.1f} % (processor time {100 * row['beyond_cpu']:5.1f} %), "
                f"probes and dots alone {100 * row['probe']:5.2f} % ({100 * row['probe_cpu']:5.2f} %), "
                f"torch's {row['torch']:5.1f} x",
                flush=True,
            )
        runs.append({"threads": threads, "environment": started, "rows": rows})
    if not args.no_save:
        save("curvature_hutchinson", {"bench": "curvature_hutchinson", "runs": runs})


if __name__ == "__main__":
    main()
