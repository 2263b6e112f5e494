# SPDX-License-Identifier: Apache-2.0
"""A progress bar on standard error: tqdm's where it is installed, otherwise none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """A bar of ``total`` bytes, or nothing when ``show`` is false or tqdm is missing; a context manager."""

    def __init__(self, total: int, label: str, show: bool) -> None:
        self._bar: Any = None
        if not show:
            return
        try:
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            return
        self._bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, file=sys.stderr)

    def update(self, nbytes: int) -> None:
        """Advance by ``nbytes``."""
        if self._bar is not None:
            self._bar.update(nbytes)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Progress:
    """Makes bars. ``show=None`` means: only when standard error is a terminal."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show

    def bar(self, total: int, label: str) -> Bar:
        """Open a bar of ``total`` bytes."""
        return Bar(total, label, self.show)
