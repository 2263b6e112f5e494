# SPDX-License-Identifier: Apache-2.0
"""Other libraries, each imported when it is first used: ``lt.integrations.lightning``, ``loggers``, ``peft``, ``transformers``."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["lightning", "loggers", "peft", "transformers"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"lowtide.integrations.{name}")
    raise AttributeError(f"module 'lowtide.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
