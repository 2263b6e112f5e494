# SPDX-License-Identifier: Apache-2.0
"""lowtide's packed matrix product against torch.mm on dense float32 (MKL on x86): the products of projected training.

    python bench/python/projection.py [--threads 1,2] [--rounds N] [--no-save]

``of torch.mm``: torch's time over ours, dense operands. ``int4``, ``int8``: our dense time over ours with that operand
packed; torch would have to decode it first.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from _timing import environment, race, save

from lowtide import ops, quant

#: name, rows, cols, depth, ta, tb, which operand is packed
SHAPES = [
    ("project right 768x2048 r128", 768, 128, 2048, False, True, "b"),
    ("project left 768x2048 r128", 128, 2048, 768, False, False, "a"),
    ("back right 768x2048 r128", 768, 2048, 128, False, False, "b"),
    ("back left 768x2048 r128", 768, 2048, 128, True, False, "a"),
    ("project right 768x2048 r4", 768, 4, 2048, False, True, "b"),
    ("linear 512x576x1536", 512, 1536, 576, False, True, "b"),
    ("linear input gradient", 512, 576, 1536, False, False, "b"),
    ("linear weight gradient", 1536, 576, 512, True, False, ""),
    ("linear, one token", 1, 1536, 576, False, True, "b"),
    ("square 1024", 1024, 1024, 1024, False, False, "b"),
]


def measure(shape: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    name, m, n, k, ta, tb, packed = shape
    a = torch.randn(k, m) if ta else torch.randn(m, k)
    b = torch.randn(n, k) if tb else torch.randn(k, n)
    x, y = (a.T if ta else a), (b.T if tb else b)
    want = x.double() @ y.double()
    rivals: dict[str, Any] = {
        "torch.mm": lambda: torch.mm(x, y),
        "lowtide": lambda: ops.matmul(a, b, ta=ta, tb=tb),
    }
    if packed:
        for bits in (8, 4):
            q = quant.quantize(a if packed == "a" else b, bits=bits, group=256, scheme="asymmetric")
            u, v = (q, b) if packed == "a" else (a, q)
            rivals[f"int{bits}"] = lambda u=u, v=v: ops.matmul(u, v, ta=ta, tb=tb)
    error = float((rivals["lowtide"]().double() - want).abs().max() / want.abs().max())
    if error > k * 2.0**-24:
        raise SystemExit(f"{name}: wrong result, relative error {error:.1e}")
    t = race(rivals, rounds=rounds)
    row: dict[str, Any] = {"name": name, "rows": m, "cols": n, "depth": k}
    for key, clock in (("", "best"), ("cpu ", "cpu")):
        row |= {f"{key}{r} us": round(v[clock] * 1e6, 1) for r, v in t.items()}
        row[f"{key}of torch.mm"] = round(t["torch.mm"][clock] / t["lowtide"][clock], 3)
        row |= {f"{key}{r}": round(t["lowtide"][clock] / t[r][clock], 3) for r in t if r.startswith("int")}
    row["GFLOP/s"] = round(2e-9 * m * n * k / t["lowtide"]["best"], 1)
    cells = "  ".join(
        f"{c} {row[c]:.2f} ({row['cpu ' + c]:.2f})" for c in ("of torch.mm", "int8", "int4") if c in row
    )
    print(f"  {name:<28} {row['lowtide us']:>9.1f} us {row['GFLOP/s']:>7.1f} GFLOP/s  {cells}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--threads", default=",".join(str(n) for n in sorted({1, len(os.sched_getaffinity(0))}))
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    runs = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        started = environment()
        print(f"{threads} threads (ratios of processor time in brackets)", flush=True)
        runs.append(
            {"threads": threads, "environment": started, "rows": [measure(s, args.rounds) for s in SHAPES]}
        )
    if not args.no_save:
        save("projection", {"bench": "projection", "runs": runs})


if __name__ == "__main__":
    main()
