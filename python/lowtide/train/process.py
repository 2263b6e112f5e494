# SPDX-License-Identifier: Apache-2.0
"""Resident memory of this process, read from the kernel; standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int | None:
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def rss() -> int:
    """Resident set of this process in bytes (its peak where the kernel tells only that)."""
    value = _status_bytes("VmRSS")
    return peak_rss() if value is None else value


def peak_rss() -> int:
    """Largest resident set in bytes since the start, or since the last `reset_peak_rss`."""
    value = _status_bytes("VmHWM")
    if value is not None:
        return value
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Start a new peak measurement; False where the kernel does not offer it."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Hand freed heap pages back to the kernel, so that `rss` shows what is in use (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
