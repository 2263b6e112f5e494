# SPDX-License-Identifier: Apache-2.0
"""Matrix product over packed operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide._operands import Packed, check_inner, operand
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated

__all__ = ["Packed", "matmul"]

_op = torch.ops.lowtide


def matmul(
    a: Tensor | Any, b: Tensor | Any, *, ta: bool = False, tb: bool = False, out: Tensor | None = None
) -> Tensor:
    """``op(a) @ op(b)`` in float32; quantized operands are decoded tile by tile, never expanded.

    Every element is one chain of fused multiply-adds over the inner index, so the result has the same bits for
    every instruction set, thread count and storage layout. It is not differentiable: the result never requires
    grad (``lowtide.quant.Linear`` wraps it in an autograd function).

    Args:
        a, b: 2-D CPU tensors, float32 or bfloat16, or packed matrices: any object with the attributes of
            :class:`Packed`. A transposed view of a contiguous matrix is used in place; other strides are copied.
        ta, tb: use the transpose of ``a``, of ``b``.
        out: float32, contiguous, of the result's shape; must not share memory with the operands.

    Returns:
        float32 tensor, op(a) rows x op(b) columns, or ``out``.
    """
    x = operand(_detached(a), "a", ta, torch_only=True)
    y = operand(_detached(b), "b", tb, torch_only=True)
    check_inner(x, y)
    if out is None:
        result: Tensor = _op.matmul(*x.args, *y.args)
        return result
    if out.dtype != torch.float32 or tuple(out.shape) != (x.rows, y.cols) or not out.is_contiguous():
        error = LowtideTypeError if out.dtype != torch.float32 else LowtideValueError
        raise error(
            f"out must be a contiguous float32 tensor of shape ({x.rows}, {y.cols}), got {out.dtype} "
            f"{tuple(out.shape)}"
        )
    if out is a or out is b:
        raise LowtideValueError("out must not share memory with a or b; pass another tensor or leave it out")
    check_mutable((out,), "out")
    _op.matmul_out(out, *x.args, *y.args)
    mutated(out)
    return out


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) and x.requires_grad else x


def _sides(args: tuple[Any, ...]) -> tuple[Any, Any]:
    a, _, _, a_bits, a_cols, _, ta, b, _, _, b_bits, b_cols, _, tb = args
    m = (a_cols if a_bits else a.shape[1]) if ta else a.shape[0]
    n = b.shape[0] if tb else (b_cols if b_bits else b.shape[1])
    return m, n


@fake("lowtide::matmul")
def _(*args: Any) -> Tensor:
    result: Tensor = args[0].new_empty(_sides(args), dtype=torch.float32)
    return result


@fake("lowtide::matmul_out")
def _(out: Tensor, *_: object) -> None: ...
