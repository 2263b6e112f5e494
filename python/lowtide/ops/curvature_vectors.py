# SPDX-License-Identifier: Apache-2.0
"""The vector algebra of Krylov methods and finite differences: one parallel region a call, each element read once.

Tensors are contiguous CPU tensors of any shapes, float32 or bfloat16; arithmetic is in float32, sums are in double over
exact products, by a fixed tree: no bit depends on the instruction set, the threads or the rest of the list. Every
function raises LowtideValueError or LowtideTypeError that names a bad argument, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops._curvature_lists import check_factor, check_tensor, check_tensors

_op = torch.ops.lowtide


def curvature_dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """``<x_i, y_i>`` for each pair, float64 ``(len(xs),)``; ``ys`` may be ``xs``."""
    xs = check_tensors("xs", xs)
    ys = check_tensors("ys", ys, like=xs)
    if not xs:  # an empty list carries no dispatch key
        return torch.empty(0, dtype=torch.float64)
    result: Tensor = _op.curvature_dot(xs, ys)
    return result


def curvature_axpby_(ys: Sequence[Tensor], a: float, xs: Sequence[Tensor], b: float) -> None:
    """``y_i = a y_i + b x_i``; products and sum are each rounded.

    Args:
        ys: float32 or bfloat16, apart from each other and from all ``xs``. With ``a=0`` they are not read.
        xs: as many tensors of the same sizes.
        a, b: factors, rounded to float32.
    """
    ys = list(ys)
    check_tensors("ys", ys)
    sources = check_tensors("xs", xs, like=ys)
    a, b = check_factor("a", a), check_factor("b", b)
    if not ys:
        return
    check_mutable(ys, "ys")
    _op.curvature_axpby_(ys, a, sources, b)
    mutated(*ys)


def curvature_fd_finish_(plus: Tensor, minus: Tensor, scale: float, q: Tensor | None = None) -> Tensor:
    """``plus = (plus - minus) scale``: a central difference of gradients becomes a product with the Hessian.

    Args:
        plus, minus: float32 tensors of the same size, apart.
        scale: 1 / (2 h), rounded to float32.
        q: float32, of the same size; what the product is wanted against.

    Returns:
        float64 ``(2,)``: ``|plus|**2`` of the new plus, and ``<plus, q>`` (0 without q).
    """
    check_tensor("plus", plus, (torch.float32,))
    check_tensor("minus", minus, (torch.float32,), plus.numel())
    if q is not None:
        check_tensor("q", q, (torch.float32,), plus.numel())
    scale = check_factor("scale", scale)
    check_mutable((plus,), "plus")
    result: Tensor = _op.curvature_fd_finish_(plus, minus.detach(), scale, None if q is None else q.detach())
    mutated(plus)
    return result


@fake("lowtide::curvature_dot")
def _(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    return xs[0].new_empty((len(xs),), dtype=torch.float64)


@fake("lowtide::curvature_axpby_")
def _(*_: object) -> None: ...


@fake("lowtide::curvature_fd_finish_")
def _(plus: Tensor, *_: object) -> Tensor:
    return plus.new_empty((2,), dtype=torch.float64)
