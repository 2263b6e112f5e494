# SPDX-License-Identifier: Apache-2.0
"""Build and run the benches; results go to bench/results/<name>.json, a table to the terminal.

    python tools/run_benches.py [--filter REGEX] [--quick] [NAME...]

C++ benches (bench/cpp, Google Benchmark) run pinned to one thread and again with all; each verifies its output and
reports the fraction it reaches of the machine's limit measured in the same run ("roofline"). Python benches
(bench/python) write their own JSON. Names are those of the files, such as ``stream`` or ``optim_step``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BUILD = ROOT / "build" / "release"
THREADS = len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """What the figures depend on. No host name and no path: results are committed."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            model = line.split(":", 1)[1].strip()
            break
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False).stdout
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "cpu": model,
        "processors": THREADS,
        "compiler": compiler.split("\n", 1)[0],
        "commit": commit.stdout.strip(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
    }


def run_cpp(name: str, pattern: str, *, quick: bool, check: bool) -> None:
    program = BUILD / f"{name}_bench"
    runs = []
    for threads in [THREADS] if check else sorted({1, THREADS}):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [
                str(program),
                f"--benchmark_out={out}",
                "--benchmark_out_format=json",
                f"--benchmark_min_time={0.001 if check else 0.02 if quick else 0.1}",
                f"--benchmark_repetitions={1 if quick else 5}",
            ]
            if not quick:
                command.append("--benchmark_report_aggregates_only=true")
            if pattern:
                command.append(f"--benchmark_filter={pattern}")
            print(f"==> {name}, {threads} thread{'s' * (threads > 1)}", flush=True)
            started = environment()
            log = Path(folder) / "log"
            with log.open("w") as stream:
                code = subprocess.run(
                    command,
                    env={**os.environ, "LOWTIDE_NUM_THREADS": str(threads)},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
            if code:
                raise SystemExit(f"{program.name} failed:\n{log.read_text()[-3000:]}")
            rows = [row(b) for b in json.loads(out.read_text())["benchmarks"]]
        rows = [r for r in rows if r is not None]
        wrong = [r for r in rows if "error" in r]
        for r in rows:
            print_row(r)
        if wrong:
            raise SystemExit(f"{name}: {len(wrong)} benches gave wrong results or failed")
        runs.append({"threads": threads, "environment": started, "rows": rows})
    if not check:
        save(name, {"bench": name, "runs": runs})


def row(b: dict[str, Any]) -> dict[str, Any] | None:
    """One line of Google Benchmark's output; of repeated runs their median."""
    kind = b.get("aggregate_name")
    if kind not in (None, "median"):
        return None
    out: dict[str, Any] = {"name": b["run_name"].replace("/real_time", "")}
    if b.get("error_occurred"):
        return {**out, "error": b.get("error_message", "failed")}
    out |= {"time": _short(b["real_time"]), "unit": b["time_unit"]}
    if "bytes_per_second" in b:
        out["GB/s"] = _short(b["bytes_per_second"] / 1e9)
    known = {
        "name",
        "run_name",
        "bytes_per_second",
        "items_per_second",
        "real_time",
        "cpu_time",
        "iterations",
    }
    known |= {"repetitions", "repetition_index", "threads", "family_index", "per_family_instance_index"}
    return out | {k: _short(v) for k, v in b.items() if isinstance(v, float) and k not in known}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A row of results with its floats cut to five digits."""
    return {k: _short(v) if isinstance(v, float) else v for k, v in row.items()}


def print_row(r: dict[str, Any]) -> None:
    if "error" in r:
        print(f"    {r['name']:<44} ERROR: {r['error']}")
        return
    rest = "  ".join(f"{k} {v:.3g}" for k, v in r.items() if isinstance(v, float) and k != "time")
    print(f"    {r['name']:<44} {r['time']:>12.2f} {r['unit']}  {rest}")


def save(name: str, data: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"    wrote {path.relative_to(ROOT)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cpp = sorted(p.name[: -len("_bench.cc")] for p in ROOT.glob("bench/cpp/*_bench.cc"))
    python = sorted(p.stem for p in ROOT.glob("bench/python/*.py") if not p.stem.startswith("_"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{' '.join([*cpp, *python])} (default: all)"
    )
    parser.add_argument("--filter", default="", help="benches of the C++ programs whose name matches")
    parser.add_argument("--quick", action="store_true", help="C++ benches once each, to see that they run")
    parser.add_argument("--check", action="store_true", help="only whether each C++ bench runs and verifies")
    args = parser.parse_args()
    unknown = set(args.names) - {*cpp, *python}
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {' '.join([*cpp, *python])}")
    wanted = args.names or (cpp if args.check else [*cpp, *python])
    pattern = args.filter
    if args.check and not pattern:
        pattern = "-/(scalar|baseline)(/|$)"  # the slow paths run in the tests
    if set(wanted) & set(cpp):
        configure = ["cmake", "--preset", "release", "-DLOWTIDE_PYTHON=OFF", "-DLOWTIDE_TORCH=OFF"]
        for command in (configure, ["cmake", "--build", "--preset", "release"]):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
    for name in wanted:
        if name in cpp:
            run_cpp(name, pattern, quick=args.quick or args.check, check=args.check)
        else:
            print(f"==> {name}", flush=True)
            subprocess.run(
                [sys.executable, str(ROOT / "bench" / "python" / f"{name}.py")], cwd=ROOT, check=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
