# SPDX-License-Identifier: Apache-2.0
"""Timing that survives a busy machine: rivals take turns, each reports its median and spread, its best, and its best
processor time, which other programs disturb less."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from run_benches import environment, rounded, save  # noqa: E402  (one form of results for every bench)

__all__ = ["environment", "kernel_arguments", "on_scalar", "race", "rounded", "save"]


def kernel_arguments(doc: str | None, *, millions: int) -> argparse.Namespace:
    """The arguments of a bench that times a kernel on one large tensor."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    parser.add_argument("--millions", type=int, default=millions, help="parameters, in 2^20")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    return parser.parse_args()


@contextmanager
def on_scalar() -> Iterator[None]:
    """Within it kernels run on the scalar instruction set, the definition that results are verified against."""
    import lowtide as lt

    isa = lt.isa()
    lt.set_isa("scalar")
    try:
        yield
    finally:
        lt.set_isa(isa)


def race(
    rivals: dict[str, Callable[[], Any]], *, rounds: int, budget: float = 60.0, turn: float = 0.0
) -> dict[str, dict[str, float]]:
    """Seconds of each rival over up to ``rounds`` rounds within ``budget`` seconds.

    In a round each rival has one turn: one run, and more (up to ten) while ``turn`` seconds have not passed.
    ``median``, ``mad`` (median distance from it) and ``best`` of the wall clock, over ``runs`` runs; ``cpu``: best
    processor time of the process, all threads together.
    """
    seen: dict[str, list[float]] = {name: [] for name in rivals}
    used: dict[str, list[float]] = {name: [] for name in rivals}
    started = time.perf_counter()
    for run in rivals.values():
        run()
    for _ in range(rounds):
        for name, run in rivals.items():
            began = time.perf_counter()
            for _ in range(10):
                t, c = time.perf_counter(), time.process_time()
                run()
                used[name].append(time.process_time() - c)
                seen[name].append(time.perf_counter() - t)
                if time.perf_counter() - began >= turn:
                    break
        if time.perf_counter() - started > budget:
            break
    return {name: _figures(t, used[name]) for name, t in seen.items()}


def _figures(seconds: list[float], used: list[float]) -> dict[str, float]:
    middle = statistics.median(seconds)
    return {
        "median": middle,
        "mad": statistics.median(abs(t - middle) for t in seconds),
        "best": min(seconds),
        "cpu": min(used),
        "runs": len(seconds),
    }
