# SPDX-License-Identifier: Apache-2.0
"""A packed matrix times one vector: linear layers at batch 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import fake
from lowtide.ops.quant import _check_packed

_op = torch.ops.lowtide
_SCHEMES = ("symmetric", "asymmetric", "nf4")


def gemv(w: Any, x: Tensor) -> Tensor:
    """``w @ x`` in float32 for a packed matrix and a vector.

    Two to four times as fast as :func:`lowtide.ops.matmul` with one row. Sixteen chains of fused multiply-adds instead
    of one, over codes that are never rounded to weights: the same bits for every instruction set and thread count, but
    not those of :func:`lowtide.ops.matmul`. It is not differentiable.

    Args:
        w: (rows, cols), any object with the attributes of :class:`Packed`; symmetric, asymmetric or NF4 codes.
        x: float32 or bfloat16, (cols,).

    Returns:
        float32, (rows,).
    """
    scheme = getattr(w, "scheme", None) or ("symmetric" if w.zero is None else "asymmetric")
    if scheme not in _SCHEMES:
        raise LowtideValueError(
            f"w must have one of the schemes {', '.join(_SCHEMES)}, got {scheme!r}; dequantize it first"
        )
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.bfloat16):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise LowtideTypeError(f"x must be a float32 or bfloat16 tensor, got {got}; convert it with .float()")
    cols = int(w.shape[-1])
    if tuple(x.shape) != (cols,):
        raise LowtideValueError(f"x must have shape ({cols},), got {tuple(x.shape)}")
    _check_packed(w.codes, w.scale, w.zero, cols, w.bits, w.group)
    result: Tensor = _op.gemv(
        w.codes, w.scale, w.zero, w.bits, scheme == "nf4", w.group, cols, x.detach().float().contiguous()
    )
    return result


@fake("lowtide::gemv")
def _(codes: Tensor, scale: Tensor, *_: object) -> Tensor:
    return scale.new_empty(codes.shape[0])
