# SPDX-License-Identifier: Apache-2.0
"""Rivals in processes of their own, which take turns with a baseline.

Two peers are both called ``bitsandbytes`` and one of them is configured by its environment, so each package has its own
process. A bench names its :class:`Rival` objects and gives :func:`serve` a function that makes the timed call of one of
them; :func:`compare` starts the processes, lets each rival and the baseline take turns so that both see the same machine,
and returns rows. ``vs`` is the median over rounds of baseline time / rival time, ``vs_mad`` its median distance from that.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from _timing import environment, rounded

ROOT = Path(__file__).resolve().parents[2]
SHORT = 0.05  # seconds: shorter runs are repeated within a turn, after one that brings their data back into the caches

Call = Callable[[], Any]
Prepare = Callable[[str, str], "tuple[Call, dict[str, Any]]"]


class WrongResult(Exception):
    """A rival does not compute what its name says."""


@dataclass(frozen=True)
class Rival:
    """One row. ``threads``: "max" is measured with all threads only; "model": only over the model's shapes."""

    name: str
    needs: str = "torch"  # package
    env: tuple[tuple[str, str], ...] = ()
    threads: str = "any"
    sizes: str = "any"


# ---- in the worker ------------------------------------------------------------------------------------


def serve(prepare: Prepare, threads: int) -> None:
    """Answer the parent's lines: ``prepare`` makes the timed call of a rival at a size, or raises."""
    answers = os.fdopen(os.dup(1), "w")  # peers print to stdout as they please
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    calls: dict[str, Call] = {}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order[0] == "prepare":
            _, slot, name, size = order
            calls.pop(slot, None)
            gc.collect()
            try:
                calls[slot], answer = prepare(name, size)
                took = [_timed(calls[slot]) for _ in range(2)]
                answer = {**answer, "first": took[0], "warm": took[1]}
            except Exception as error:  # the parent says which row is missing, and why
                answer = {"failed": f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]}
            print(json.dumps(answer), file=answers, flush=True)
        else:
            _, slot, seconds = order
            print(json.dumps(_turn(calls[slot], seconds)), file=answers, flush=True)


def _timed(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _turn(call: Call, seconds: float) -> list[float]:
    """Seconds of each run in one turn."""
    began = time.perf_counter()
    took = [_timed(call)]
    if took[0] < SHORT:
        took = []
        while len(took) < 3 or (len(took) < 200 and time.perf_counter() - began < seconds):
            took.append(_timed(call))
    return took


def copy_call(nbytes: int) -> Call:
    """A copy that reads and writes ``nbytes`` together: what memory allows."""
    import torch

    source, target = torch.ones(nbytes // 8 or 1), torch.zeros(nbytes // 8 or 1)
    return lambda: target.copy_(source)


# ---- in the parent ------------------------------------------------------------------------------------


class Worker:
    """The process of one package."""

    def __init__(self, rival: Rival, args: argparse.Namespace, threads: int) -> None:
        paths = dict(item.split("=", 1) for item in args.path)
        source = ROOT / "python"  # where `make inplace` builds; otherwise the installed package
        built = str(source) if any(source.glob("lowtide/_core.*.so")) else ""
        search = [paths.get(rival.needs, ""), built, os.environ.get("PYTHONPATH", "")]
        self.log = tempfile.TemporaryFile("w+")  # not a pipe: nobody reads it while the worker runs  # noqa: SIM115  (closed with the worker)
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", "--threads", str(threads), *args.pass_on],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else self.log,
            text=True,
            env={
                **os.environ,
                **dict(rival.env),
                "OMP_NUM_THREADS": str(threads),
                "LOWTIDE_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(p for p in search if p),
            },
        )
        self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            self.log.seek(0)
            last = [x for x in self.log.read().splitlines() if x.strip()]
            raise RuntimeError(last[-1][:300] if last else "the worker ended without a word")
        return json.loads(line)

    def _ask(self, *order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def prepare(self, name: str, size: str, slot: str = "") -> dict[str, Any]:
        facts: dict[str, Any] = self._ask("prepare", slot, name, size)
        if "failed" in facts:
            raise RuntimeError(facts["failed"])
        return facts

    def turn(self, seconds: float, slot: str = "") -> list[float]:
        time.sleep(0.003)  # threads of the other's pool spin that long
        times: list[float] = self._ask("turn", slot, seconds)
        return times

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.communicate()  # closes its stdin, which ends it


def installed(needs: str, paths: Sequence[str]) -> str | None:
    """The version of a rival's package, or None."""
    folders = [p.split("=", 1)[1] for p in paths if p.startswith(f"{needs}=")]
    if needs == "lowtide" and any((ROOT / "python" / "lowtide").glob("_core*.so")):
        return "source tree"  # else the installed package runs
    for d in metadata.distributions(path=folders) if folders else []:
        if d.metadata["Name"].lower().replace("_", "-") == needs:
            return d.version
    try:
        return metadata.version(needs)
    except metadata.PackageNotFoundError:
        return None


def mad(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return statistics.median(abs(v - middle) for v in values)


def duel(worker: Worker, base: Worker, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of both, which take turns."""
    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    began = time.perf_counter()
    for turn in range(args.rounds):
        b, w = base.turn(args.turn), worker.turn(args.turn)
        theirs += b
        ours += w
        ratios.append(statistics.median(b) / statistics.median(w))
        if turn >= 2 and time.perf_counter() - began > args.budget:
            break
    return {
        "ms": statistics.median(ours) * 1e3,
        "mad_ms": mad(ours) * 1e3,
        "best_ms": min(ours) * 1e3,
        "runs": len(ours),
        "base_ms": statistics.median(theirs) * 1e3,
        "base_best_ms": min(theirs) * 1e3,
        "vs": statistics.median(ratios),
        "vs_mad": mad(ratios),
        "vs_best": min(theirs) / min(ours),
    }


def compare(
    rivals: Sequence[Any],
    sizes: Sequence[str],
    args: argparse.Namespace,
    threads: int,
    *,
    base_of: Callable[[Any, str, dict[str, Any]], tuple[str, str]],
    row_of: Callable[[Any, str, dict[str, Any], dict[str, Any], Worker], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of all rivals at all sizes, and what was left out and why.

    ``base_of``: name and size of the baseline's call for a rival, given what its worker said when it was prepared.
    ``row_of``: the row from those facts and the figures of :func:`duel`.
    """
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    base = Worker(Rival("baseline"), args, threads)
    try:
        for rival, worker in _workers(rivals, args, threads, left_out):
            version = installed(rival.needs, args.path)
            pace = 0.0  # seconds an element
            for size in sizes:
                label = f"{rival.name} at {size}" if len(sizes) > 1 else rival.name
                if rival.sizes not in ("any", size):
                    continue
                expected = pace * args.count(size)
                if expected > args.patience:
                    left_out[label] = f"a run would take about {expected:.1f} s (--patience)"
                    print(f"  {label:<44} left out: {left_out[label]}", flush=True)
                    continue
                try:
                    facts = worker.prepare(rival.name, size)
                    pace = facts["warm"] / args.count(size)
                    base.prepare(*base_of(rival, size, facts))
                    figures = duel(worker, base, args)
                except RuntimeError as error:
                    left_out[label] = str(error)
                    print(f"  {label:<44} left out: {error}", flush=True)
                    continue
                row = {"name": rival.name, "size": size, **figures, "version": version}
                rows.append(rounded(row_of(rival, size, facts, row, base)))
                show(rows[-1])
    finally:
        base.stop()
    return rows, left_out


def _workers(
    rivals: Sequence[Any], args: argparse.Namespace, threads: int, left_out: dict[str, str]
) -> Iterator[tuple[Any, Worker]]:
    """Each rival with the process of its package, which neighbours of one package share."""
    worker: Worker | None = None
    kind: tuple[Any, ...] = ()
    try:
        for rival in rivals:
            if args.only and not any(part in rival.name for part in args.only.split(",")):
                continue
            if installed(rival.needs, args.path) is None:
                left_out[rival.name] = f"{rival.needs} is not installed"
                continue
            if rival.threads == "max" and threads != max(map(int, args.threads.split(","))):
                left_out[rival.name] = "measured with all threads only"
                continue
            if worker is None or kind != (rival.needs, rival.env) or worker.process.poll() is not None:
                if worker is not None:
                    worker.stop()
                kind = (rival.needs, rival.env)
                worker = Worker(rival, args, threads)
            yield rival, worker
    finally:
        if worker is not None:
            worker.stop()


def parser(doc: str | None, sizes: str) -> argparse.ArgumentParser:
    """The arguments that such benches share."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    p.add_argument("--sizes", default=sizes, help=f"default {sizes}")
    p.add_argument("--rounds", type=int, default=15, help="turns of each rival (default 15)")
    p.add_argument("--turn", type=float, default=0.02, help="seconds of a turn of short runs (default 0.02)")
    p.add_argument("--budget", type=float, default=1.0, help="seconds of one race, 3 turns at least")
    p.add_argument("--patience", type=float, default=1.0, help="leave out runs expected to take longer")
    p.add_argument("--only", default="", help="rivals whose names contain one of these, comma-separated")
    p.add_argument("--path", action="append", default=[], metavar="PACKAGE=DIR", help="where a peer lies")
    p.add_argument("--no-save", action="store_true")
    p.add_argument("--verbose", action="store_true", help="show what the workers print")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.set_defaults(pass_on=[])
    return p


def started() -> dict[str, Any]:
    """The environment of a run, with versions."""
    return {**environment(), "torch": metadata.version("torch"), "python": sys.version.split()[0]}


def power(size: str) -> int:
    """``2^20`` -> 1048576."""
    base, _, exponent = size.partition("^")
    return int(base) ** int(exponent) if exponent else int(base)


def ratios_of(
    rows: Sequence[dict[str, Any]], wanted: Sequence[tuple[str, str, float | None]]
) -> list[dict[str, Any]]:
    """How much faster ours is than theirs ("" is the baseline), both measured by the baseline beside them, with the
    target; printed. The spreads of both add up."""
    by = {(r["name"], r["size"]): r for r in rows}
    out = []
    for ours, theirs, target in wanted:
        for size in dict.fromkeys(r["size"] for r in rows):
            a, b = by.get((ours, size)), by.get((theirs, size))
            if a is None or (theirs and b is None):
                continue
            ratio = a["vs"] / (b["vs"] if b else 1.0)
            spread = ratio * (a["vs_mad"] / a["vs"] + (b["vs_mad"] / b["vs"] if b else 0.0))
            row = {
                "size": size,
                "ours": ours,
                "theirs": theirs or "baseline",
                "ratio": ratio,
                "spread": spread,
            }
            out.append(rounded(row | ({"target": target} if target else {})))
            said = f"target {target:g}" + ("" if ratio >= target else ": missed") if target else ""
            print(f"  {size:<12} {ours} over {theirs or 'baseline'}: {ratio:.3g} ±{spread:.2g}  {said}")
    return out
