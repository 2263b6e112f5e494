# SPDX-License-Identifier: Apache-2.0
"""Lengths that the fast cosine transform takes."""

from __future__ import annotations

from typing import Any

from lowtide.errors import LowtideValueError

MOST = 1 << 20


def check_length(n: Any) -> int:
    """``n`` if lines can have that length."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST:
        raise LowtideValueError(f"lines must have 1 to {MOST} values, got {n!r}")
    return n
