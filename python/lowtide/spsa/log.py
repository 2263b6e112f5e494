# SPDX-License-Identifier: Apache-2.0
"""What can be done with a run log as a file: inspect, verify, truncate, compact."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowtide.errors import LowtideValueError
from lowtide.spsa._frames import Batch, Digest, Member, Snap
from lowtide.spsa._log import Cut, LogReader
from lowtide.spsa._log_writer import LogWriter
from lowtide.spsa._method import Method


@dataclass(frozen=True)
class LogReport:
    """What is in a log; ``str()`` is a table.

    Attributes:
        path, bytes: the file and its good size. run_id, codec, seed, eps, method: of the run.
        tensors, elements: trained. first_step, step: first and next step.
        complete: closed by its writer. cut: None, or what had to be left out.
        slots: smallest and largest number of slots of a step. contributions: codes of all steps.
        empty: steps in which nothing contributed. lr: first, smallest, largest and last learning rate of group 0.
        g: median and largest magnitude of the derivatives. digests, members, snapshots: counts.
        bytes_per_step: of the whole file.
    """

    path: str
    bytes: int
    run_id: str
    codec: str
    seed: int
    eps: float
    method: dict[str, Any]
    tensors: int
    elements: int
    first_step: int
    step: int
    complete: bool
    cut: Cut | None
    slots: tuple[int, int]
    contributions: int
    empty: int
    lr: tuple[float, float, float, float]
    g: tuple[float, float]
    digests: int
    members: int
    snapshots: int
    bytes_per_step: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        steps = self.step - self.first_step
        state = "closed" if self.complete else "open"
        if self.cut:
            state = f"cut at byte {self.cut.offset}: {self.cut.reason}"
        changed = {k: v for k, v in self.method.items() if v != getattr(_DEFAULT, k)}
        what = ", ".join(f"{k}={v}" for k, v in {"estimator": self.method["estimator"], **changed}.items())
        low, high = self.slots
        rows = [
            ("run", f"{self.run_id}, seed {self.seed}, eps {self.eps:g}"),
            ("method", f"{what}, codec {self.codec}"),
            ("model", f"{self.tensors} tensors, {self.elements:,} elements"),
            ("steps", f"{steps:,} ({self.first_step:,} to {self.step:,}), {state}"),
            ("slots", f"{low}" if low == high else f"{low} to {high}"),
            (
                "contributions",
                f"{self.contributions:,}" + (f", none in {self.empty:,} steps" if self.empty else ""),
            ),
            ("learning rate", "{:g} at first, {:g} to {:g}, {:g} at last".format(*self.lr)),
            ("|g|", "median {:.4g}, largest {:.4g}".format(*self.g)),
            ("frames", f"{self.digests} digests, {self.members} members, {self.snapshots} snapshots"),
            ("size", f"{self.bytes:,} bytes, {self.bytes_per_step:.3g} a step"),
        ]
        return "\n".join((self.path, *(f"  {name:<14} {text}" for name, text in rows)))


_DEFAULT = Method()


def inspect(path: str | Path | LogReader, *, damage: str = "error") -> LogReport:
    """Read a log and say what is in it.

    Args:
        path: a ``.ltlog`` file, or a reader. damage: as of :class:`~lowtide.spsa.LogReader`.

    Raises:
        LogError: it cannot be read.
    """
    reader = path if isinstance(path, LogReader) else LogReader(path, damage=damage)
    header = reader.header
    magnitudes = [abs(g) for _, values in reader.values() for _, g in values]
    rates: list[float] = []
    empty = 0
    totals: list[int] = []
    for step in reader.steps():
        rates.append(step.hyper.lr[0])
        totals.append(step.commit.total)
        empty += not step.commit.codes
    count = {kind: sum(isinstance(m.frame, kind) for m in reader.marks) for kind in (Digest, Member, Snap)}
    return LogReport(
        path=str(reader.path),
        bytes=reader.size,
        run_id=header.run_id.hex(),
        codec=header.codec,
        seed=header.seed,
        eps=header.eps,
        method=asdict(header.method),
        tensors=len(header.manifest),
        elements=sum(e.numel for e in header.manifest),
        first_step=header.first_step,
        step=reader.step,
        complete=reader.complete,
        cut=reader.cut,
        slots=(min(totals, default=0), max(totals, default=0)),
        contributions=len(magnitudes),
        empty=empty,
        lr=(rates[0], min(rates), max(rates), rates[-1]) if rates else (math.nan,) * 4,
        g=(statistics.median(magnitudes), max(magnitudes)) if magnitudes else (math.nan,) * 2,
        digests=count[Digest],
        members=count[Member],
        snapshots=count[Snap],
        bytes_per_step=reader.size / max(1, reader.step - header.first_step),
    )


def verify(path: str | Path) -> LogReport:
    """As :func:`inspect`, and refuse a log that had to be cut or was never closed.

    Raises:
        LogError, LowtideValueError: it is not whole.
    """
    report = inspect(path)
    if report.cut or not report.complete:
        what = report.cut.reason if report.cut else "it was not closed: its writer runs, or was killed"
        raise LowtideValueError(f"{path}: is good up to step {report.step}, but not whole: {what}")
    return report


def truncate(path: str | Path, step: int | None = None) -> int:
    """Cut a log at its last good frame, or before step ``step``; removed bytes are kept beside it.

    Args:
        path: the log. What is removed because it is damaged goes to ``PATH.cut-OFFSET``.
        step: next step of what is left; None keeps everything that is good.

    Returns:
        The next step.

    Raises:
        LogError: it is not a log. LowtideValueError: a step that is not in it.
    """
    with LogWriter.resume(path, damage="cut") as log:
        if step is not None:
            log.cut(step)
        return log.step


def compact(path: str | Path, out: str | Path, *, batch: int = 1024) -> tuple[int, int]:
    """Copy a log with full batches: many short ones come from flushes, restarts and digests.

    Digests and members are kept, snapshots too if ``out`` is in the same directory.

    Returns:
        Bytes before and after.
    """
    reader = LogReader(path)
    steps = reader.steps()
    same_place = Path(out).resolve().parent == Path(path).resolve().parent
    with LogWriter(out, reader.header, batch=batch) as log:
        for mark in reader.marks:
            frame = mark.frame
            if isinstance(frame, Batch):
                for _ in range(len(frame.codes)):
                    step = next(steps)
                    log.append(step.commit, step.hyper)
            elif isinstance(frame, Digest):
                log.digest(frame.digest)
            elif isinstance(frame, Member):
                log.member(
                    frame.worker, joins=frame.joins, epoch=frame.epoch, first=frame.first, count=frame.count
                )
            elif isinstance(frame, Snap) and same_place and (log.path.parent / frame.name).is_file():
                log.snapshot(log.path.parent / frame.name)
    return reader.size, Path(out).stat().st_size


def plot(path: str | Path | LogReader, file: str | Path) -> None:
    """Draw |g| of every contribution, its running median, and the learning rate.

    Raises:
        ConfigError: matplotlib is missing, or the file's suffix is unknown.
    """
    from lowtide.quant._report_plot import pyplot
    from lowtide.train.plot import check_plot

    check_plot(str(file))
    plt = pyplot()
    reader = path if isinstance(path, LogReader) else LogReader(path)
    points = [(t, abs(g)) for t, values in reader.values() for _, g in values if g != 0.0]
    rates = [(s.commit.step, s.hyper.lr[0]) for s in reader.steps()]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained", dpi=150)
    if points:
        ts, gs = zip(*points, strict=True)
        axes.semilogy(ts, gs, ".", markersize=2, color="#9db7d6", label="|g|")
        window = max(1, len(gs) // 100)
        middle = [statistics.median(gs[i : i + window]) for i in range(0, len(gs), window)]
        axes.semilogy(ts[::window], middle, color="#1f5a99", linewidth=1.6, label=f"median of {window}")
    axes.set_xlabel("step")
    axes.set_ylabel("|g|")
    axes.grid(alpha=0.25)
    right = axes.twinx()
    right.plot(*zip(*rates, strict=True) if rates else ((), ()), color="#c8501e", linewidth=1.2)
    right.set_ylabel("learning rate", color="#c8501e")
    axes.legend(frameon=False)
    axes.set_title(
        f"{reader.path.name}: {reader.step - reader.header.first_step:,} steps", loc="left", fontsize=10
    )
    figure.savefig(file)
    plt.close(figure)
