# SPDX-License-Identifier: Apache-2.0
"""Run directories as files from strangers: everything is bounded, what cannot be read is said and left out."""

from __future__ import annotations

import json
import math
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowtide.errors import LowtideValueError

MAX_METRICS = 256 << 20  # bytes of metrics.jsonl that are read
MAX_LINE = 1 << 20
MAX_JSON = 4 << 20  # of run.json and summary.json
MAX_SPECTRUM = 64 << 20
MAX_LOG = 256 << 20
MAX_KEYS = 256  # scalars by name
MAX_NAME = 120
MAX_DEPTH = 6
MAX_ROWS = 2000  # of tables by name
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass
class Run:
    """What a run directory tells.

    Attributes:
        series: by name, with "/" between levels: ascending steps and finite values.
        by_name: "subspace" and "quantization" of single tensors, as last logged: (step, rows).
        run, summary: the JSON files, {} if there are none. curvature: spectrum.json or {}.
        slopes: of a zeroth-order log: steps and slopes; log: lines of text about it.
        notes: what could not be read.
    """

    name: str
    path: Path
    series: dict[str, Points] = field(default_factory=dict)
    by_name: dict[str, tuple[int, dict[str, dict[str, float]]]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    curvature: dict[str, Any] = field(default_factory=dict)
    slopes: Points | None = None
    log: str = ""
    notes: list[str] = field(default_factory=list)


def read_run(path: Path) -> Run:
    """Read a run directory. Raises LowtideValueError if there is no run in it."""
    if not path.is_dir():
        raise LowtideValueError(f"run: {str(path)!r} is not a directory; give the --out of lowtide finetune")
    known = ("metrics.jsonl", "run.json", "summary.json", "run.ltlog", "spectrum.json")
    if not any((path / name).is_file() for name in known):
        raise LowtideValueError(
            f"run: {str(path)!r} holds none of {', '.join(known)}; give the --out of lowtide finetune"
        )
    run = Run(clean(path.resolve().name) or "run", path)
    run.run = _json(path / "run.json", MAX_JSON, run.notes)
    run.summary = _json(path / "summary.json", MAX_JSON, run.notes)
    run.curvature = _json(path / "spectrum.json", MAX_SPECTRUM, run.notes)
    _read_metrics(path / "metrics.jsonl", run)
    _read_log(path / "run.ltlog", run)
    return run


def _json(path: Path, limit: int, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        value = json.loads(data.decode("utf-8")) if len(data) <= limit else None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is damaged or larger than {limit >> 20} MiB and was left out.")
        return {}
    return value


def _lines(path: Path, run: Run) -> Iterator[bytes | None]:
    """Whole lines; None for one that is too long."""
    total = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                total += len(line)
                if total > MAX_METRICS:
                    run.notes.append(
                        f"{path.name} is longer than {MAX_METRICS >> 20} MiB; the rest was left out."
                    )
                    return
                if len(line) <= MAX_LINE:
                    yield line
                    continue
                while (
                    not line.endswith(b"\n")
                    and total <= MAX_METRICS
                    and (line := file.readline(MAX_LINE + 1))
                ):
                    total += len(line)
                yield None
    except OSError as error:
        run.notes.append(f"{path.name} cannot be read: {error.strerror}.")


def _read_metrics(path: Path, run: Run) -> None:
    if not path.is_file():
        return
    found: dict[str, tuple[array[float], array[float]]] = {}
    bad = dropped = 0
    for line in _lines(path, run):
        record = _record(line)
        if record is None:
            bad += 1
            continue
        step = record.pop("step")
        for kind in ("subspace", "quantization"):
            part = record.get(kind)
            if isinstance(part, dict) and isinstance(part.get("by_name"), dict):
                run.by_name[kind] = (step, _rows(part.pop("by_name")))
        for name, value in scalars(record):
            if name not in found:
                if len(found) >= MAX_KEYS:
                    dropped += 1
                    continue
                found[name] = (array("d"), array("d"))
            found[name][0].append(step)
            found[name][1].append(value)
    if bad:
        run.notes.append(
            f"{path.name}: {bad:,} line{'s' if bad > 1 else ''} could not be read as a record with a step and "
            f"{'were' if bad > 1 else 'was'} left out."
        )
    if dropped:
        run.notes.append(
            f"{path.name} has more than {MAX_KEYS} names; {dropped:,} values of the others were left out."
        )
    for name, (steps, values) in found.items():
        run.series[name] = _ordered(np.frombuffer(steps), np.frombuffer(values))


def _record(line: bytes | None) -> dict[str, Any] | None:
    try:
        record = None if line is None else json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 53:
        return None
    return record


def scalars(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Names and values of all finite numbers."""
    for key, value in values.items():
        name = f"{prefix}{clean(key)}"
        if isinstance(value, dict) and depth < MAX_DEPTH:
            yield from scalars(value, f"{name}/", depth + 1)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = finite(value)
            if number is not None:
                yield name[:MAX_NAME], number


def finite(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e100 else None


def clean(text: object, limit: int = MAX_NAME) -> str:
    """At most ``limit`` printable characters on one line; direction marks and controls are dropped."""
    words = " ".join(str(text)[: 4 * limit].split())
    words = "".join(c for c in words if c.isprintable())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _rows(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if isinstance(row, dict) and len(out) < MAX_ROWS:
            out[clean(name)] = dict(list(scalars(row))[:8])
    return out


def _ordered(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Points:
    """By step; of a step that was logged again, the last."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True) if len(steps) else np.zeros(0, bool)
    return steps[last], values[last]


def _read_log(path: Path, run: Run) -> None:
    if not path.is_file():
        return
    if path.stat().st_size > MAX_LOG:
        run.notes.append(f"{path.name} is larger than {MAX_LOG >> 20} MiB and was left out.")
        return
    try:
        from lowtide.errors import LowtideError
        from lowtide.spsa import LogReader
        from lowtide.spsa.log import inspect
    except ImportError:
        run.notes.append(f"{path.name} was left out: reading it needs torch (pip install 'lowtide[torch]').")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a log that ends within a frame: the table says so
            reader = LogReader(path)
        report = inspect(reader)
        pairs = [(step, g) for step, values in reader.values() for _, g in values]
    except LowtideError as error:
        run.notes.append(clean(f"{path.name} was left out: {error}", 300))
        return
    run.log = "\n".join(str(report).splitlines()[1:])
    if pairs:
        steps, slopes = np.array(pairs, dtype=np.float64).T
        good = np.isfinite(slopes)
        run.slopes = (steps[good] + 1, slopes[good])  # as metrics.jsonl counts
