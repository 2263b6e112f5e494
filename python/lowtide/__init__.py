# SPDX-License-Identifier: Apache-2.0
"""lowtide: train large models in little memory, with native kernels.

Low rank, low bit, zeroth order, curvature. ``import lowtide as lt`` needs NumPy only; everything that
takes torch tensors imports torch when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowtide._runtime import available_isas, isa, num_threads, set_isa, set_num_threads
from lowtide.errors import (
    LowtideError,
    LowtideImportError,
    LowtideRuntimeError,
    LowtideTypeError,
    LowtideValueError,
)

__version__ = "0.1.0"

# Loaded on first use, so that importing lowtide stays cheap and torch stays optional.
_LAZY = (
    "random",
    "quant",
    "lowrank",
    "optim",
    "continual",
    "spsa",
    "curvature",
    "ops",
    "train",
    "assets",
    "testing",
    "integrations",
    "report",
)

if TYPE_CHECKING:
    from lowtide import lowrank as lowrank
    from lowtide import random as random

__all__ = [
    "LowtideError",
    "LowtideImportError",
    "LowtideRuntimeError",
    "LowtideTypeError",
    "LowtideValueError",
    "available_isas",
    "isa",
    "num_threads",
    "set_isa",
    "set_num_threads",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"lowtide.{name}")
    raise AttributeError(f"module 'lowtide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
