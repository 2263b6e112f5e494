# SPDX-License-Identifier: Apache-2.0
"""The progress bar: loss, tokens a second, resident memory, time left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


def human_bytes(count: float) -> str:
    """`1536` as "1.5 KB" (powers of 1000, as memory tables of papers count)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


class Progress:
    """A tqdm bar on stderr, or nothing: `when` is "on", "off" or "auto" (on where stderr is a terminal)."""

    def __init__(self, when: str, *, steps: int, start: int) -> None:
        self._bar: Any = None
        self._note = ""
        if when == "on" or (when == "auto" and sys.stderr.isatty()):
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)

    def note(self, text: str) -> None:
        """Say in front of the bar what is going on."""
        if self._bar is not None and text != self._note:
            self._bar.set_description_str(text, refresh=text != "training")
            self._note = text

    def advance(self, record: dict[str, Any]) -> None:
        """One step done; `record` is its line of metrics."""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {record['loss']:.4f}, {record['tokens_per_second']:.0f} tokens/s, {human_bytes(record['rss'])}",
                refresh=False,
            )
            self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
