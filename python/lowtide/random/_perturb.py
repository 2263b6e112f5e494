# SPDX-License-Identifier: Apache-2.0
"""perturb over NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.random._stream import _address

_DTYPES = (np.float32, np.float16, np.uint16)


def _check(x: Any, name: str, size: int, *, writable: bool = True) -> None:
    if not isinstance(x, np.ndarray):
        raise LowtideTypeError(f"{name} must be a NumPy array or a torch tensor, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise LowtideTypeError(f"{name} must be float32, float16, or bfloat16 as uint16, got {x.dtype}")
    if not x.flags.c_contiguous:
        raise LowtideValueError(f"{name} must be contiguous in C order; pass np.ascontiguousarray({name})")
    if writable and not x.flags.writeable:
        raise LowtideValueError(f"{name} is read-only; pass a writable copy")
    if x.size != size:
        raise LowtideValueError(f"{name} must have the {size} elements of w, got {x.size}")


def perturb(
    w: Any,
    scale: float,
    *,
    out: Any,
    minus: Any = None,
    seed: int,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    offset: int = 0,
    dist: str = "gaussian",
    threshold: float = math.inf,
) -> Any:
    """``out = w + scale z``, and ``minus = w - scale z`` if it is given; z is never stored.

    Product and sum are each rounded to float32, the result to the dtype of ``out``, nearest even.

    Args:
        w: float32 or float16 NumPy array (uint16 holds bfloat16), or a float32, bfloat16 or float16 torch CPU tensor;
            contiguous.
        scale: multiplier, rounded to float32.
        out: array or tensor like w of equally many elements and any of these dtypes, or w itself.
        minus: another of out's dtype, apart from both.
        seed, step, slot, param, offset, dist: address of z as in :func:`sample`, role ``"z"``.
        threshold: where ``|w|`` is above it, w goes through as it is (Sparse-MeZO, arXiv 2402.15751, section 3).

    Returns:
        ``out``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named; nothing was changed.
    """
    seed, step, slot, param, _, offset, number = _address(seed, step, slot, param, "z", offset, dist)
    if not math.isfinite(scale):
        raise LowtideValueError(f"scale must be finite, got {scale!r}")
    if not threshold >= 0:
        raise LowtideValueError(f"threshold must be >= 0 (math.inf for no mask), got {threshold!r}")
    if is_torch(w):
        from lowtide import ops

        tail = (w, float(scale), seed, step, slot, param, offset, number, float(threshold))
        if minus is None:
            ops.spsa_perturb(out, *tail)
        else:
            ops.spsa_perturb_pair(out, minus, *tail)
        return out
    _check(w, "w", getattr(w, "size", 0), writable=False)
    _check(out, "out", w.size)
    if minus is not None:
        _check(minus, "minus", w.size)
        if minus.dtype != out.dtype:
            raise LowtideTypeError(f"minus must have out's dtype {out.dtype}, got {minus.dtype}")
    _core.spsa_perturb(out, minus, w, float(scale), seed, step, slot, param, offset, number, float(threshold))
    return out
