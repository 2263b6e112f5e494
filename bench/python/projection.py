# SPDX-License-Identifier: Apache-2.0
"""lowtide's packed matrix product against torch.mm on dense float32 (MKL on x86): the products of projected training.

    python bench/python/projection.py [--threads 1,2] [--rounds N] [--no-save]

``vs_torch``: the median of torch.mm, both operands dense, over that of the row. In ``int4`` and ``int8`` rows one operand
(a basis or a weight) is packed; torch would have to decode it first. Dense results are verified against double precision,
packed ones bit for bit against the decoded operand. Methods take turns.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from _timing import environment, race, rounded, save

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


def measure(shape: tuple[Any, ...], args: argparse.Namespace) -> dict[str, Any]:
    name, m, n, k, ta, tb, packed = shape
    a = torch.randn(k, m) if ta else torch.randn(m, k)
    b = torch.randn(n, k) if tb else torch.randn(k, n)
    x, y = (a.T if ta else a), (b.T if tb else b)
    rivals: dict[str, Any] = {
        "torch.mm": lambda: torch.mm(x, y),
        "float32": lambda: ops.matmul(a, b, ta=ta, tb=tb),
    }
    want = x.double() @ y.double()
    error = float((rivals["float32"]().double() - want).abs().max() / want.abs().max())
    if not error <= k * 2.0**-24:
        raise SystemExit(f"{name}: wrong result, relative error {error:.1e}")
    for bits in (8, 4) if packed else ():
        q = quant.quantize(a if packed == "a" else b, bits=bits, group=256, scheme="asymmetric")
        u, v = (q, b) if packed == "a" else (a, q)
        rivals[f"int{bits}"] = lambda u=u, v=v: ops.matmul(u, v, ta=ta, tb=tb)
        plain = q.dequantize()
        decoded = ops.matmul(plain if packed == "a" else a, plain if packed == "b" else b, ta=ta, tb=tb)
        if not torch.equal(rivals[f"int{bits}"](), decoded):
            raise SystemExit(f"{name}: int{bits} differs from the product with the decoded operand")
    times = race(rivals, rounds=args.rounds, turn=0.005)
    rows = []
    for key, t in times.items():
        row: dict[str, Any] = {
            "name": key,
            "us": t["median"] * 1e6,
            "mad_us": t["mad"] * 1e6,
            "best_us": t["best"] * 1e6,
            "cpu_us": t["cpu"] * 1e6,
            "runs": t["runs"],
            "GFLOP/s": 2e-9 * m * n * k / t["median"],
            "vs_torch": times["torch.mm"]["median"] / t["median"],
            "vs_torch_best": times["torch.mm"]["best"] / t["best"],
        }
        rows.append(rounded(row))
    cells = "  ".join(
        f"{r['name']} {r['us']:.0f} ±{r['mad_us']:.0f} us {r['vs_torch']:.2f} x" for r in rows[1:]
    )
    print(f"  {name:<28} torch.mm {rows[0]['us']:.0f} ±{rows[0]['mad_us']:.0f} us  {cells}", flush=True)
    return {"product": name, "rows_of_c": m, "cols_of_c": n, "depth": k, "packed": packed, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--threads", default=",".join(str(n) for n in sorted({1, len(os.sched_getaffinity(0))}))
    )
    parser.add_argument("--rounds", type=int, default=40, help="turns of each method (default 40)")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    runs = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        started = {**environment(), "torch": torch.__version__}
        print(f"{threads} threads", flush=True)
        runs.append(
            {"threads": threads, "environment": started, "products": [measure(s, args) for s in SHAPES]}
        )
    if not args.no_save:
        save("projection", {"bench": "projection", "runs": runs})


if __name__ == "__main__":
    main()
