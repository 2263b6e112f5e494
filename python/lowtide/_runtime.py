# SPDX-License-Identifier: Apache-2.0
"""Instruction set and threads of the native kernels."""

from __future__ import annotations

import sys

from lowtide import _core
from lowtide.errors import LowtideValueError


def isa() -> str:
    """The instruction set that runs: ``scalar``, ``baseline``, ``avx2``, ``avx512`` or ``neon``.

    The best available one, unless the environment variable ``LOWTIDE_ISA`` or :func:`set_isa` chose another.
    """
    return _core.active_isa()


def available_isas() -> list[str]:
    """The instruction sets that this build contains and this processor can run."""
    return _core.available_isas()


def set_isa(name: str) -> None:
    """Force an instruction set in this process. Results do not change by a bit; speed does.

    Raises:
        LowtideValueError: unknown name, or not available here.
    """
    _core.set_isa(name)
    # The torch ops hold their own copy of the dispatch state.
    if "lowtide._ops" in sys.modules:
        import torch

        torch.ops.lowtide._set_isa(_core.active_isa_id())


def num_threads() -> int:
    """Threads used for NumPy arrays. Torch tensors use torch's pool (``torch.get_num_threads``)."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set the threads used for NumPy arrays, and torch's too if torch is loaded.

    Raises:
        LowtideValueError: ``n`` is not an integer >= 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise LowtideValueError(f"n must be an integer >= 1, got {n!r}")
    _core.set_num_threads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
