# SPDX-License-Identifier: Apache-2.0
"""One module per group of instructions; importing them fills the registry."""

from . import arithmetic, bitwise, compare, control, convert, memory, warp
from .registry import translate

__all__ = ["arithmetic", "bitwise", "compare", "control", "convert", "memory", "translate", "warp"]
