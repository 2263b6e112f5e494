# SPDX-License-Identifier: Apache-2.0
"""The run directory that ``lowtide report`` reads, as callbacks of other libraries' trainers write it."""

from __future__ import annotations

import platform
import statistics as numbers
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import lowtide
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.integrations.loggers import JSONL, Many, Sink
from lowtide.optim import measure, statistics
from lowtide.train.errors import output_error
from lowtide.train.files import write_json
from lowtide.train.metrics import read_metrics


class RunDirectory:
    """``run.json``, ``metrics.jsonl`` and ``summary.json`` of one run, and the measurements of its steps.

    Args:
        path: the directory, made when the run is opened.
        every: steps between measurements.
        sinks: further places the records go to.
        package: the trainer's library, whose version is told beside ours.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument.
    """

    def __init__(self, path: str | Path, *, every: int, sinks: tuple[Sink, ...], package: ModuleType) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise LowtideValueError(f"every must be an integer >= 1 (steps), got {every!r}")
        for sink in sinks:
            if not isinstance(sink, Sink):
                raise LowtideTypeError(
                    f"sinks must have log(step, values) and close(), got {type(sink).__name__}"
                )
        self.path = Path(path).expanduser()
        self._every, self._others, self._package = every, tuple(sinks), package
        self._sink: Many | None = None
        self._measurement: Any = None
        self._began = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a run is being written."""
        return self._sink is not None

    def open(self, settings: Mapping[str, Any], *, step: int) -> None:
        """Write run.json and cut metrics.jsonl back to ``step``, from which training goes on. Raises OutputError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.path, error) from error
        run = {
            "format": "lowtide-run",
            "version": 1,
            "source": f"{self._package.__name__}.Trainer",
            "settings": dict(settings),
            "identity": {},
            "versions": self._versions(),
        }
        write_json(self.path / "run.json", run)
        self._sink = Many(JSONL(self.path / "metrics.jsonl", resume_step=step), *self._others)
        self.restart_clock()

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """A record of an open run."""
        if self._sink is not None:
            self._sink.log(step, record)

    def restart_clock(self) -> None:
        """The next step begins now."""
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since the clock was started."""
        return time.perf_counter() - self._began

    def begin_step(self, step: int, optimizer: Any) -> None:
        """Measure the step after ``step`` if its turn has come; once, however often it is asked."""
        if self._sink is not None and self._measurement is None and step % self._every == 0:
            self._measurement = measure(optimizer)

    def end_step(self, optimizer: Any, model: Any) -> dict[str, Any]:
        """What was measured of the step that is over; nothing if its turn had not come."""
        if self._measurement is None:
            return {}
        self._stop_measuring()
        return statistics(optimizer, model)

    def close(self, status: str, step: int, **facts: Any) -> None:
        """Close the metrics and write summary.json; nothing if the run is closed."""
        self._stop_measuring()
        if self._sink is None:
            return
        self._sink.close()
        self._sink = None
        records = list(read_metrics(self.path / "metrics.jsonl"))

        def found(name: str) -> list[float]:
            return [r[name] for r in records if r.get(name) is not None]

        losses, val, seconds = found("loss"), found("val_loss"), found("seconds")
        kinds: dict[str, int] = {}
        for record in records:
            for kind, count in record.get("bytes", {}).items():
                kinds[kind] = max(kinds.get(kind, 0), count)
        summary = {
            "status": status,
            "step": step,
            **facts,
            "val_loss_before": val[0] if val else None,
            "val_loss_after": val[-1] if val else None,
            "train_loss_first": losses[0] if losses else None,
            "train_loss_last": losses[-1] if losses else None,
            "seconds_per_step": numbers.median(seconds) if seconds else None,
            "peak_rss": max(found("rss"), default=None),
            "bytes": kinds,
            "versions": self._versions(),
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }
        write_json(self.path / "summary.json", summary)

    def _stop_measuring(self) -> None:
        if self._measurement is not None:
            self._measurement.close()
            self._measurement = None

    def _versions(self) -> dict[str, str]:
        return {
            "lowtide": lowtide.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            self._package.__name__: self._package.__version__,
        }
