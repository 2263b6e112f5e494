# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: one JSON object a step, appended as the run goes and cut back on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from lowtide.train.errors import output_error
from lowtide.train.files import atomic_path


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; ends quietly at a line that a killed process left unfinished."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    return
                if not line.endswith("\n") or not isinstance(record, dict):
                    return
                yield record
    except FileNotFoundError:
        return


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the records up to and including `step`, so that a resumed run writes no step twice."""
    records = [r for r in read_metrics(path) if isinstance(r.get("step"), int) and r["step"] <= step]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


class MetricsWriter:
    """Appends records to a metrics file, each whole line at once. Raises OutputError when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise output_error(path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one record (finite numbers only)."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            while line:  # a full disk takes a part of the line first and raises on the rest
                line = line[self._file.write(line) :]
        except OSError as error:
            raise output_error(self.path, error) from error

    def sync(self) -> None:
        """Flush to the disk: called before a checkpoint becomes visible."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
