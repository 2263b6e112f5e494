# SPDX-License-Identifier: Apache-2.0
"""What importing lowtide costs beyond torch, and whose modules take the time.

    python bench/python/import_time.py [--rounds N] [--no-save]

Each round starts a fresh interpreter per case, in turn: torch is imported, then the case's modules in order; wall and processor
time of each, in milliseconds, with the garbage collector as it is and switched off. (A full collection walks all objects of torch;
in which import it falls is chance, and its time is torch's.) The target is 50 ms for `lowtide.optim` beyond torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from _timing import environment, save

TARGET_MS = 50.0
CASES = {
    "lowtide": ("", "lowtide"),
    "lowtide.ops": ("import torch", "lowtide.ops"),
    "lowtide.optim": ("import torch", "lowtide.optim"),
}
PROGRAM = """
import gc, json, sys, time
{first}
{collector}
passes = gc.get_stats()[2]["collections"]
wall, cpu = time.perf_counter(), time.process_time()
import {module}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps([wall * 1e3, cpu * 1e3, gc.get_stats()[2]["collections"] - passes]))
"""


def fresh(*arguments: str, cache: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter, with compiled files kept in `cache` as an installation keeps its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def figures(samples: list[list[float]]) -> dict[str, float]:
    walls, cpus = [s[0] for s in samples], [s[1] for s in samples]
    middle = statistics.median(walls)
    return {
        "median_ms": round(middle, 2),
        "mad_ms": round(statistics.median(abs(w - middle) for w in walls), 2),
        "best_ms": round(min(walls), 2),
        "best_cpu_ms": round(min(cpus), 2),
        "full_collections": statistics.median(s[2] for s in samples),
        "runs": len(samples),
    }


def slowest(cache: str, rounds: int, count: int = 8) -> list[dict[str, Any]]:
    """Own time of our modules in `import lowtide.optim`, the least over rounds, from `-X importtime`."""
    best: dict[str, int] = {}
    for _ in range(rounds):
        text = fresh(
            "-X", "importtime", "-c", "import torch, gc; gc.disable(); import lowtide.optim", cache=cache
        )
        for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(lowtide\S*)", text.stderr):
            best[name] = min(best.get(name, 1 << 30), int(own))
    ranked = sorted(best.items(), key=lambda item: -item[1])
    print(f"{len(best)} modules, {sum(best.values()) / 1e3:.1f} ms of their own")
    return [{"module": name, "us": us} for name, us in ranked[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    data: dict[str, Any] = {"bench": "import_time", "environment": environment(), "target_ms": TARGET_MS}
    samples: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(args.rounds + 1):  # the first compiles and is thrown away
            for name, (first, module) in CASES.items():
                for collector, switch in (("on", ""), ("off", "gc.disable()")):
                    code = PROGRAM.format(first=first, module=module, collector=switch)
                    sample = json.loads(fresh("-c", code, cache=cache).stdout)
                    if turn:
                        samples.setdefault((name, collector), []).append(sample)
        data["imports"] = [
            {"name": name, "collector": collector, **figures(seen)}
            for (name, collector), seen in samples.items()
        ]
        data["modules"] = slowest(cache, max(1, args.rounds // 3))
    for row in data["imports"]:
        print(
            f"{row['name']:<14} collector {row['collector']:<3}  median {row['median_ms']:7.1f} ms  best {row['best_ms']:7.1f} ms"
            f"  processor {row['best_cpu_ms']:6.1f} ms  full collections {row['full_collections']:g}"
        )
    if not args.no_save:
        save("import_time", data)


if __name__ == "__main__":
    main()
