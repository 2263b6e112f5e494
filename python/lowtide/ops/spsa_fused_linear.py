# SPDX-License-Identifier: Apache-2.0
"""A linear layer at both ends of a probe, in one pass over its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import fake
from lowtide.ops._spsa_arguments import check_address, check_perturbation, check_weights

_op = torch.ops.lowtide
_FORWARD = (torch.float32, torch.bfloat16)


def spsa_fused_linear(
    x_plus: Tensor,
    x_minus: Tensor,
    w: Tensor,
    bias_plus: Tensor | None,
    bias_minus: Tensor | None,
    scale: float,
    seed: int,
    step: int,
    slot: int,
    param: int,
    offset: int = 0,
    dist: int = 0,
    threshold: float = math.inf,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``x_plus (w + scale z)^T + bias_plus`` and ``x_minus (w - scale z)^T + bias_minus``.

    A panel of rows of w becomes its pair in cache (as :func:`spsa_perturb_pair` makes it) and is multiplied at once; the perturbed
    matrices never exist. Each sum of products is one chain of float32 fmas in the order of the inputs, as in :func:`matmul`.

    Args:
        x_plus, x_minus: (rows, in), of one dtype, float32 or bfloat16.
        w: (out, in), float32, bfloat16 or float16: a master.
        bias_plus, bias_minus: (out,), already perturbed, any float dtype; None: no bias.
        scale, seed, step, slot, param, offset, dist, threshold: of z, as in :func:`spsa_perturb`.
        dtype: of the perturbed weights in the product, float32 or bfloat16; default: w's.

    Returns:
        y_plus, y_minus: (rows, out) of x_plus's dtype.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """
    dtype = w.dtype if dtype is None else dtype
    if dtype not in _FORWARD:
        raise LowtideTypeError(f"dtype must be float32 or bfloat16, got {dtype}")
    check_weights("w", w)
    if w.dim() != 2:
        raise LowtideValueError(f"w must have shape (out, in), got {tuple(w.shape)}")
    for name, x in (("x_plus", x_plus), ("x_minus", x_minus)):
        if not isinstance(x, Tensor) or x.dtype not in _FORWARD or x.dtype != x_plus.dtype:
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise LowtideTypeError(f"{name} must be float32 or bfloat16, the same as x_plus, got {got}")
        if x.dim() != 2 or x.shape != x_plus.shape or x.shape[1] != w.shape[1]:
            raise LowtideValueError(
                f"{name} must have shape (rows, {w.shape[1]}), the same as x_plus, got {tuple(x.shape)}"
            )
    if (bias_plus is None) != (bias_minus is None):
        raise LowtideValueError("give bias_plus and bias_minus, or neither")
    for name, b in (("bias_plus", bias_plus), ("bias_minus", bias_minus)):
        if b is not None and tuple(b.shape) != (w.shape[0],):
            raise LowtideValueError(f"{name} must have shape ({w.shape[0]},), got {tuple(b.shape)}")
    check_perturbation(scale, threshold, dist)
    check_address(seed, step, slot, param, offset)
    plus, minus = _op.spsa_fused_linear(
        x_plus.contiguous(), x_minus.contiguous(), w.detach(), _float(bias_plus), _float(bias_minus),
        dtype == torch.bfloat16, scale, seed, step, slot, param, offset, dist, threshold,
    )  # fmt: skip
    return plus.to(x_plus.dtype), minus.to(x_plus.dtype)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


@fake("lowtide::spsa_fused_linear")
def _(x_plus: Tensor, x_minus: Tensor, w: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = (x_plus.shape[0], w.shape[0])
    return w.new_empty(shape, dtype=torch.float32), w.new_empty(shape, dtype=torch.float32)
