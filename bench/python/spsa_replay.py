# SPDX-License-Identifier: Apache-2.0
"""Zeroth-order updates from Python: one step along 1, 8 or 64 directions, and 64 steps replayed at once, against the loop that
torch users write, ``w.add_(torch.empty_like(w).normal_(generator=g), alpha=c)`` for each direction.

    python bench/python/spsa_replay.py [--threads 1,2] [--millions 4] [--dtypes float32,bfloat16] [--rounds 5] [--no-save]

``ratio``: the loop's median time over ours. ``memory``: a copy of as many bytes as the weights' reading and writing, over our
time: the share of the speed of memory; it moves no more bytes for more directions or steps. Our result is verified against steps
applied one by one to a part of the tensor on the scalar instruction set.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from _timing import environment, kernel_arguments, on_scalar, race, rounded, save
from torch import Tensor

from lowtide import ops

DISTS = {"rademacher": 0, "gaussian": 1}
CASES = {"1 direction": (1, 1), "8 directions": (1, 8), "64 directions": (1, 64), "64 steps": (64, 1)}
PART = 5000


def schedule(steps: range, directions: int) -> tuple[Tensor, ...]:
    """Round steps, decays, first, dir_steps, dir_slots, coeffs."""
    n = len(steps)
    at = torch.arange(steps.start, steps.stop)
    return (
        at,
        torch.ones(n),
        torch.arange(n + 1) * directions,
        at.repeat_interleave(directions),
        torch.arange(directions).repeat(n),
        torch.full((n * directions,), 1e-6),
    )


def apply(w: Tensor, dist: int, parts: tuple[Tensor, ...]) -> None:
    ops.spsa_replay_list_([w], [3], [1.0], [math.inf], [-math.inf], 7, dist, *parts)


def torch_loop(w: Tensor, count: int, g: torch.Generator) -> None:
    for _ in range(count):
        w.add_(torch.empty_like(w).normal_(generator=g), alpha=1e-6)


def verify(w: Tensor, dist: int, steps: int, directions: int) -> None:
    got, want = w[:PART].clone(), w[:PART].clone()
    apply(got, dist, schedule(range(steps), directions))
    with on_scalar():
        for k in range(steps):
            apply(want, dist, schedule(range(k, k + 1), directions))
    if not torch.equal(got, want):
        raise SystemExit("WRONG RESULT: replay differs from single steps of the scalar definition")


def main() -> None:
    args = kernel_arguments(__doc__, millions=4)
    n = args.millions << 20
    runs: list[dict[str, Any]] = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        found: list[dict[str, Any]] = []
        started = {**environment(), "torch": torch.__version__}
        for name in args.dtypes.split(","):
            w = torch.randn(n).mul_(0.02).to(getattr(torch, name))
            spare, g = torch.empty_like(w), torch.Generator().manual_seed(1)
            for case, (steps, directions) in CASES.items():
                parts = schedule(range(steps), directions)
                rivals: dict[str, Any] = {
                    dist: lambda w=w, i=i, parts=parts: apply(w, i, parts) for dist, i in DISTS.items()
                }
                rivals["torch"] = lambda w=w, g=g, c=steps * directions: torch_loop(w, c, g)
                rivals["copy"] = lambda w=w, spare=spare: spare.copy_(w)
                for i in DISTS.values():
                    verify(w, i, steps, directions)
                times = race(rivals, rounds=args.rounds, budget=90)
                for dist in DISTS:
                    t = times[dist]["median"]
                    row = {
                        "case": case,
                        "dtype": name,
                        "dist": dist,
                        "seconds": t,
                        "params_per_second": n / t,
                        "ratio": times["torch"]["median"] / t,
                        "ratio_cpu": times["torch"]["cpu"] / times[dist]["cpu"],
                        "memory": times["copy"]["median"] / t,
                    }
                    found.append(rounded(row))
                    print(
                        f"{threads} threads {name:9} {case:14} {dist:10} {1e-6 * n / t:8.1f} M params/s  "
                        f"{row['ratio']:6.1f} x torch (processor time {row['ratio_cpu']:6.1f})  {row['memory']:6.1%} of memory",
                        flush=True,
                    )
        runs.append({"threads": threads, "environment": started, "parameters": n, "rows": found})
    if not args.no_save:
        save("spsa_replay", {"bench": "spsa_replay", "runs": runs})


if __name__ == "__main__":
    main()
