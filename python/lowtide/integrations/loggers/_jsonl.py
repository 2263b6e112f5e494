# SPDX-License-Identifier: Apache-2.0
"""JSON lines: the file that ``lowtide report`` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowtide.errors import LowtideRuntimeError, LowtideValueError
from lowtide.integrations.loggers._sink import Closing, check_step, plain
from lowtide.train.errors import output_error
from lowtide.train.metrics import MetricsWriter, truncate_metrics


class JSONL(Closing):
    """One JSON object a call, appended and handed to the system at once: a killed run loses no step.

    Args:
        path: the file, usually ``RUN/metrics.jsonl``; missing directories are made.
        resume_step: keep only records up to and including this step before appending, so that a resumed run writes no step
            twice. None: append to whatever is there.

    JSON has no NaN: a number that is not finite is written as ``null``.

    Raises:
        OutputError: the file cannot be written. LowtideTypeError, LowtideValueError: a value or step that is none.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None) -> None:
        self.path = Path(path).expanduser()
        if resume_step is not None and (not isinstance(resume_step, int) or resume_step < 0):
            raise LowtideValueError(f"resume_step must be an integer >= 0 or None, got {resume_step!r}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if resume_step is not None and self.path.exists():
                truncate_metrics(self.path, resume_step)
        except OSError as error:
            raise output_error(self.path, error) from error
        self._writer: MetricsWriter | None = MetricsWriter(self.path)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append ``{"step": step, **values}``."""
        if self._writer is None:
            raise LowtideRuntimeError(f"{self.path} is closed; log before close()")
        record = {"step": check_step(step), **plain(values)}
        record["step"] = check_step(step)  # whatever the values say
        self._writer.write(_finite(record))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
