# SPDX-License-Identifier: Apache-2.0
"""Instructions of the core kernels, counted by callgrind, against the numbers in bench/results/instructions.json.

    python tools/instruction_counts.py            fails where a kernel takes more than before
    python tools/instruction_counts.py --update   writes the numbers anew: the diff shows what a change costs

Counts do not depend on what else the machine does, so a slower kernel shows in CI, where times would be noise. They are
those of AVX2 (valgrind knows no AVX-512) with one thread and say nothing of memory. Another compiler makes other code:
numbers are compared only with those of the same version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "bench" / "results" / "instructions.json"
PROGRAM = ROOT / "build" / "release" / "lowtide_counted"
REGION = "lowtide_counted_region"
ISA = "avx2"
# Addresses of the allocator and the loader move a call by some hundred instructions; a kernel that gets worse, by more.
TOLERANCE = 0.02


def build() -> None:
    configure = ["cmake", "--preset", "release", "-DLOWTIDE_PYTHON=OFF", "-DLOWTIDE_TORCH=OFF"]
    for command in (configure, ["cmake", "--build", "--preset", "release", "--target", "lowtide_counted"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)


def compiler() -> str:
    """What made the program: the line that g++ --version begins with, without the distribution's name."""
    cache = (ROOT / "build" / "release" / "CMakeCache.txt").read_text()
    path = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    assert path is not None
    text = subprocess.run([path[1], "--version"], capture_output=True, text=True, check=True).stdout
    return text.splitlines()[0].strip()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LOWTIDE_NUM_THREADS": "1", "LOWTIDE_ISA": ISA}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def count(kernel: str) -> int:
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={REGION}"]
    done = run(*tool, str(PROGRAM), kernel)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None or int(found[1]) == 0:
        raise SystemExit(f"{kernel}: callgrind counted nothing\n{done.stderr[-2000:]}")
    return int(found[1])


def measure() -> dict[str, int]:
    listed = run(str(PROGRAM))
    if listed.returncode:
        raise SystemExit(f"{PROGRAM.name}: {listed.stderr.strip()}")
    kernels = listed.stdout.splitlines()[1:]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(kernels, pool.map(count, kernels), strict=True))


def compare(before: dict[str, int], now: dict[str, int]) -> list[str]:
    """What is wrong, a line each; prints the table on the way."""
    wrong = []
    for kernel in sorted({*before, *now}):
        if kernel not in before or kernel not in now:
            where = "the stored numbers" if kernel not in before else "the program"
            wrong.append(f"{kernel} is missing in {where}; run with --update")
            continue
        change = now[kernel] / before[kernel] - 1
        print(f"  {kernel:<36} {now[kernel]:>12,} {change:>+8.2%}")
        if change > TOLERANCE:
            wrong.append(f"{kernel} takes {change:.1%} more instructions than before ({before[kernel]:,})")
        elif change < -TOLERANCE:
            wrong.append(f"{kernel} takes {-change:.1%} fewer instructions: keep that, run with --update")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="store the numbers of this build")
    options = parser.parse_args()
    if f" {ISA} " not in Path("/proc/cpuinfo").read_text():
        print(f"SKIPPED: this processor has no {ISA.upper()}")
        return 0
    build()
    made_by = compiler()
    before: dict[str, Any] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if not options.update and before.get("compiler") != made_by:
        print(f"SKIPPED: the stored numbers are {before.get('compiler')}'s, this build is {made_by}'s")
        return 0
    now = measure()
    if options.update:
        BASELINE.write_text(
            json.dumps({"compiler": made_by, "isa": ISA, "instructions": now}, indent=1) + "\n"
        )
        print(f"wrote {BASELINE.relative_to(ROOT)}: {len(now)} kernels")
        return 0
    wrong = compare(before["instructions"], now)
    print(
        "\n".join(wrong) or f"{len(now)} kernels take as many instructions as before, within {TOLERANCE:.0%}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
