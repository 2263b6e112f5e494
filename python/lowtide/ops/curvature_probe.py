# SPDX-License-Identifier: Apache-2.0
"""Probes of +1 and -1 that are never stored, over lists of tensors: one parallel region for a whole model.

z of tensor i is the Rademacher stream of (seed, step, slot, params[i]) and role z from its element 0, as
``lowtide.random.sample(dist="rademacher")`` gives it. Tensors are contiguous CPU tensors of any shapes, float32 or
bfloat16; arithmetic is in float32 and each product and sum is rounded; bfloat16 results are rounded once more, to nearest
even. seed, step: 63 bits; slot, params: 32 bits. Every function raises LowtideValueError or LowtideTypeError that names a
bad argument, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops._curvature_lists import check_address, check_factor, check_tensors

_op = torch.ops.lowtide


def curvature_sign_dot(
    xs: Sequence[Tensor], seed: int, step: int, slot: int, params: Sequence[int]
) -> Tensor:
    """``<z_i, x_i>`` for each tensor, float64 ``(len(xs),)``.

    Summed in double by a fixed tree: no bit depends on the instruction set, the threads or the rest of the list. Reads 4
    bytes an element (2 of bfloat16).
    """
    xs = check_tensors("xs", xs)
    check_address(seed, step, slot, params, len(xs))
    if not xs:  # an empty list carries no dispatch key
        return torch.empty(0, dtype=torch.float64)
    result: Tensor = _op.curvature_sign_dot(xs, seed, step, slot, list(params))
    return result


def _move(
    name: str, xs: Sequence[Tensor], scale: float, seed: int, step: int, slot: int, params: Sequence[int]
) -> None:
    check_tensors("xs", xs)
    check_address(seed, step, slot, params, len(xs))
    scale = check_factor("scale", scale)
    if not xs:
        return
    check_mutable(xs, "xs")
    getattr(_op, name)(list(xs), scale, seed, step, slot, list(params))
    mutated(*xs)


def curvature_sign_axpy_(
    xs: Sequence[Tensor], scale: float, seed: int, step: int, slot: int, params: Sequence[int]
) -> None:
    """``x_i += scale z_i``; the same bits as ``spsa_perturb_list`` with Rademacher signs. Moves 8 bytes an element."""
    _move("curvature_sign_axpy_", xs, scale, seed, step, slot, params)


def curvature_sign_fill_(
    xs: Sequence[Tensor], scale: float, seed: int, step: int, slot: int, params: Sequence[int]
) -> None:
    """``x_i = scale z_i``: the probe itself, for what must have it in memory. Writes 4 bytes an element."""
    _move("curvature_sign_fill_", xs, scale, seed, step, slot, params)


def curvature_sign_fma_(
    accs: Sequence[Tensor],
    xs: Sequence[Tensor],
    a: float,
    b: float,
    seed: int,
    step: int,
    slot: int,
    params: Sequence[int],
    squared: bool = False,
) -> None:
    """``acc_i = a acc_i + b (z_i * x_i)``, or with ``squared`` ``a acc_i + b x_i**2``, elementwise.

    With x = H z this is one sample of the Hessian's diagonal (Bekas, Kokiopoulou and Saad 2007), and its second moment.

    Args:
        accs: float32; each is its own x or lies apart from all tensors. With ``a=0`` they are not read.
        xs: as many tensors of the same sizes, float32 or bfloat16.
        a, b: factors, rounded to float32.
    """
    accs = list(accs)
    check_tensors("accs", accs, (torch.float32,))
    sources = check_tensors("xs", xs, like=accs)
    check_address(seed, step, slot, params, len(accs))
    a, b = check_factor("a", a), check_factor("b", b)
    if not accs:
        return
    check_mutable(accs, "accs")
    _op.curvature_sign_fma_(accs, sources, a, b, seed, step, slot, list(params), squared)
    mutated(*accs)


def _nothing(*_: object) -> None: ...


for _name in ("axpy", "fill", "fma"):
    fake(f"lowtide::curvature_sign_{_name}_")(_nothing)


@fake("lowtide::curvature_sign_dot")
def _(xs: list[Tensor], *_: object) -> Tensor:
    return xs[0].new_empty((len(xs),), dtype=torch.float64)
