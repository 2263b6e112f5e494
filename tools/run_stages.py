# SPDX-License-Identifier: Apache-2.0
"""Run the stages of a suite one after the other, stop at the first that fails, print a table with times.

    python tools/run_stages.py SUITE [--only NAME,...] [--from NAME] [--keep-going] [--verbose] [--list]

Output of a stage goes to build/logs/<stage>.log; its closing lines are shown, and the tail of the log if it fails.
Needs nothing but the standard library; ``make`` has run tools/setup.sh before.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from stages import SUITES, Stage

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "logs"
TAIL = 80


# What must not reach the stages: where modules come from, and this program's own arguments.
_OURS = ("PYTHONPATH", "LOWTIDE_ISA", "ONLY", "VERBOSE")


def run(stage: Stage, *, verbose: bool) -> tuple[str, str]:
    """Run one stage; returns (state, log): passed, failed, or skipped with the reason as log."""
    reason = stage.missing()
    if reason is not None:
        return "skipped", reason
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{stage.name}.log"
    environment = {k: v for k, v in os.environ.items() if k not in _OURS}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", **stage.environment}
    with path.open("w") as log:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", stage.script],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if verbose else log,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that a stage that hangs can be ended with all its children
        )
        late = threading.Timer(stage.minutes * 60, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            for line in process.stdout or ():
                log.write(line)
                print(line, end="", flush=True)
            code = process.wait()
        except BaseException:  # Ctrl-C or SIGTERM: nothing of the stage may live on
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timed_out = late.finished.is_set()
            late.cancel()
    text = path.read_text(errors="replace")
    if timed_out:
        text += f"\nended: it ran longer than {stage.minutes:g} minutes"
    return ("passed" if code == 0 else "failed"), text


def closing_lines(stage: Stage, log: str) -> list[str]:
    """The lines of a log that say what was run: those that match the stage's pattern."""
    pattern = re.compile(stage.closing)
    return [line.rstrip() for line in log.splitlines() if pattern.search(line)]


def print_table(results: list[tuple[str, str, float]], total: float) -> None:
    print(f"\n{'stage':<12} {'result':<8} {'seconds':>8}")
    for name, state, seconds in results:
        print(f"{name:<12} {state:<8} {seconds:8.1f}")
    print(f"{'total':<12} {'':<8} {total:8.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), help="comma-separated stages; also ONLY="
    )
    parser.add_argument("--from", dest="start", default="", help="start at this stage")
    parser.add_argument("--keep-going", action="store_true", help="run the other stages after a failure")
    parser.add_argument("--verbose", action="store_true", default=bool(os.environ.get("VERBOSE")))
    parser.add_argument("--list", action="store_true", help="print the stages and what they run")
    args = parser.parse_args()

    stages = list(SUITES[args.suite])
    names = [s.name for s in stages]
    wanted = [n for n in args.only.split(",") if n]
    for name in [*wanted, *([args.start] if args.start else [])]:
        if name not in names:
            parser.error(f"no stage {name!r} in {args.suite}; stages: {' '.join(names)}")
    if wanted:
        stages = [s for s in stages if s.name in wanted]
    if args.start:
        stages = stages[[s.name for s in stages].index(args.start) :]
    if args.list:
        for stage in stages:
            print(f"{stage.name}: {stage.what}\n    " + stage.script.strip().replace("\n", "\n    "))
        return 0

    # A background job starts with SIGINT ignored, and children would inherit that; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: list[tuple[str, str, float]] = []
    failed = False
    begin = time.monotonic()
    for stage in stages:
        if failed and not args.keep_going:
            results.append((stage.name, "not run", 0.0))
            continue
        print(f"==> {stage.name}: {stage.what}", flush=True)
        start = time.monotonic()
        state, log = run(stage, verbose=args.verbose)
        seconds = time.monotonic() - start
        results.append((stage.name, state, seconds))
        if state == "skipped":
            print(f"    skipped: {log}", flush=True)
        elif state == "failed":
            failed = True
            print("\n".join(log.splitlines()[-TAIL:]))
            print(f"FAILED: {stage.name} (whole log: build/logs/{stage.name}.log)", flush=True)
        else:
            for line in closing_lines(stage, log):
                print(f"    {line}")
            print(f"    passed in {seconds:.0f} s", flush=True)
    print_table(results, time.monotonic() - begin)
    if failed:
        print(f"{args.suite}: FAILED ({', '.join(n for n, s, _ in results if s == 'failed')})")
        return 1
    skipped = [n for n, s, _ in results if s == "skipped"]
    print(f"{args.suite}: passed" + (f", skipped: {', '.join(skipped)}" if skipped else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
