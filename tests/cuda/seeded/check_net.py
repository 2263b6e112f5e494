# SPDX-License-Identifier: Apache-2.0
"""Run every seeded bug in every build and order, and hold the result against what each build must notice.

usage: check_net.py plain=PROGRAM tsan=PROGRAM asan=PROGRAM
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ORDERS = {
    "plain": ("forward", "reverse", "random"),
    "tsan": ("forward", "random"),
    "asan": ("forward", "random"),
}
WRONG, RACE, SILENT = "wrong result", "data race", ""

# case: what must be seen with (plain, tsan, asan) in at least one order; SILENT: nothing in any order.
# SILENT for a build beside a catch in another is why there are three builds.
EXPECTED: dict[str, tuple[str, str, str]] = {
    "missing_sync": (WRONG, RACE, WRONG),
    "missing_sync_one_order": (WRONG, RACE, WRONG),
    "missing_second_sync": (WRONG, RACE, WRONG),
    "warp_exchange_without_sync": (WRONG, RACE, WRONG),
    "warp_exchange_without_second_sync": (WRONG, RACE, WRONG),
    "lane_guard_dropped": (SILENT, RACE, SILENT),
    "blocks_exchange": (WRONG, RACE, WRONG),
    "not_atomic": (SILENT, RACE, SILENT),
    **dict.fromkeys(("out_of_bounds", "vector_past_the_end", "stale_pointer", "host_pointer_in_kernel"),
                    ("global access outside device allocations",) * 3),
    "divergent_barrier": ("different __syncthreads|not reached",) * 3,
    "barrier_after_exit": ("not reached by a thread that has exited",) * 3,
    "bad_mask": ("lane that has exited|never arrive",) * 3,
    "caller_not_in_mask": ("calling lane is not in its mask",) * 3,
    "shuffle_from_outside_the_mask": ("absent or not in the mask",) * 3,
    "early_return_before_ballot": ("lane that has exited|never arrive",) * 3,
    "misaligned": ("misaligned access",) * 3,
    "uninitialised_shared": (WRONG,) * 3,
    **dict.fromkeys(("shared_overrun", "shared_overrun_into_neighbour", "host_too_little_dynamic_shared"),
                    ("shared access outside its variable",) * 3),
    "trap_reached": ("emu: trap",) * 3,
    "host_too_many_threads": ("invalid configuration",) * 3,
    "host_reads_device_memory": ("signal SIGSEGV|SEGV on unknown address|status -11",) * 3,
    **dict.fromkeys(("host_wrong_copy_direction", "host_copy_past_the_end", "host_double_free",
                     "host_dynamic_shared_without_opt_in"), ("invalid argument",) * 3),
    **dict.fromkeys(("correct_warp_exchange", "correct_reduction", "correct_repeated_launches",
                     "correct_dynamic_shared_with_opt_in"), (SILENT,) * 3),
}  # fmt: skip


def run(program: str, case: str, order: str) -> tuple[int, str]:
    env = {**os.environ, "LT_EMU_ORDER": order, "TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    r = subprocess.run(
        [program, case], capture_output=True, text=True, errors="replace", env=env, timeout=120
    )
    return r.returncode, f"{r.stdout}{r.stderr}\nstatus {r.returncode}\n"


def main() -> int:
    programs = dict(a.split("=", 1) for a in sys.argv[1:])
    if list(programs) != ["plain", "tsan", "asan"]:
        print(__doc__)
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # most of these runs abort
    listed = set(subprocess.run([programs["plain"]], capture_output=True, text=True).stdout.split())
    if listed != set(EXPECTED):
        print(f"cases without an expectation, or the other way round: {sorted(listed ^ set(EXPECTED))}")
        return 1
    jobs = [(c, b, o) for c in EXPECTED for b in programs for o in ORDERS[b]]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(jobs, pool.map(lambda j: run(programs[j[1]], j[0], j[2]), jobs), strict=True))
    failures = []
    print(f"{'seeded bug':38}" + "".join(f"{b:>34}" for b in programs))
    for case, wanted in EXPECTED.items():
        row = []
        for build, want in zip(programs, wanted, strict=True):
            seen = [results[case, build, o] for o in ORDERS[build]]
            noticed = [status != 0 for status, _ in seen]
            if want == SILENT:
                good = not any(noticed)
                row.append("silent" if good else "NOTICED")
            else:
                hits = sum(
                    n and re.search(want, text) is not None
                    for n, (_, text) in zip(noticed, seen, strict=True)
                )
                good = hits > 0
                row.append(f"caught in {hits} of {len(seen)} orders" if good else "MISSED")
            if not good:
                failures.append(
                    f"{case} in {build}: wanted {want or 'silence'}, saw:\n"
                    + "\n".join(t[-800:] for _, t in seen)
                )
        if case.startswith("correct") != all(w == SILENT for w in wanted):
            failures.append(f"{case}: no build is expected to notice it")
        print(f"{case:38}" + "".join(f"{r:>34}" for r in row))
    for f in failures:
        print(f"\nFAILED {f}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
