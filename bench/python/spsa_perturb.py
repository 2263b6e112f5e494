# SPDX-License-Identifier: Apache-2.0
"""w + eps z from Python, in place and into a scratch buffer, against what MeZO's code does, ``w + eps * torch.normal(...)``,
and against plain axpy, ``y.add_(x, alpha=a)``, which needs no random numbers.

    python bench/python/spsa_perturb.py [--threads 1,2] [--millions 16] [--dtypes float32,bfloat16] [--rounds 5] [--no-save]

``axpy``: its time over ours, the share of its speed; above 1, because the random operand costs no memory traffic. ``torch``:
torch.normal's time over ours. Both also by processor time, which other programs on the machine disturb less. Our result is
verified against the scalar instruction set.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from _timing import environment, kernel_arguments, on_scalar, race, rounded, save
from torch import Tensor

import lowtide as lt
from lowtide import ops

EPS = 1e-3
PART = 5000


def ours(out: Tensor, w: Tensor, dist: int) -> None:
    ops.spsa_perturb(out, w, EPS, 1, 2, 3, 4, 0, dist)


def torch_normal(w: Tensor, g: torch.Generator) -> None:
    z = torch.normal(mean=0, std=1, size=w.size(), dtype=w.dtype, generator=g)
    w.add_(z, alpha=EPS)


def verify(w: Tensor, dist: int) -> None:
    got, want = torch.empty_like(w[:PART]), torch.empty_like(w[:PART])
    ours(got, w[:PART], dist)
    with on_scalar():
        ours(want, w[:PART], dist)
    if not torch.equal(got, want):
        raise SystemExit("WRONG RESULT: it differs from the scalar definition")


def main() -> None:
    args = kernel_arguments(__doc__, millions=16)
    n = args.millions << 20
    runs: list[dict[str, Any]] = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        found: list[dict[str, Any]] = []
        started = {**environment(), "torch": torch.__version__}
        for name in args.dtypes.split(","):
            w = torch.randn(n).mul_(0.02).to(getattr(torch, name))
            scratch, g = torch.empty_like(w), torch.Generator().manual_seed(1)
            rivals: dict[str, Any] = {
                "axpy": partial(w.add_, scratch.zero_(), alpha=EPS),
                "torch": partial(torch_normal, w, g),
            }
            for dist, i in lt.random.DISTS.items():
                verify(w, i)
                rivals[f"{dist} in place"] = partial(ours, w, w, i)
                rivals[f"{dist} to scratch"] = partial(ours, scratch, w, i)
            times = race(rivals, rounds=args.rounds, budget=90)
            for case in list(rivals)[2:]:
                t = times[case]
                row = {
                    "case": case,
                    "dtype": name,
                    "seconds": t["median"],
                    "params_per_second": n / t["median"],
                    "axpy": times["axpy"]["median"] / t["median"],
                    "axpy_cpu": times["axpy"]["cpu"] / t["cpu"],
                    "torch": times["torch"]["median"] / t["median"],
                    "torch_cpu": times["torch"]["cpu"] / t["cpu"],
                }
                found.append(rounded(row))
                print(
                    f"{threads} threads {name:9} {case:22} {1e-6 * row['params_per_second']:8.1f} M params/s  "
                    f"{row['axpy']:5.2f} of axpy (processor time {row['axpy_cpu']:5.2f})  "
                    f"{row['torch']:6.1f} x torch.normal ({row['torch_cpu']:6.1f})",
                    flush=True,
                )
        runs.append({"threads": threads, "environment": started, "parameters": n, "rows": found})
    if not args.no_save:
        save("spsa_perturb", {"bench": "spsa_perturb", "runs": runs})


if __name__ == "__main__":
    main()
