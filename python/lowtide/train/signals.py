# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a wish to stop after the step, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `requested`; the next one raises KeyboardInterrupt.

    Inactive where `active` is false or outside the main thread, in which Python alone allows signal handlers.
    """

    def __init__(self, active: bool = True) -> None:
        self.requested = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopSignals:
        if self._active:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
