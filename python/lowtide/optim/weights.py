# SPDX-License-Identifier: Apache-2.0
"""The weight-store axis: fp32, bf16 (stochastic rounding) and packed INT8 weights behind the same few functions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops.optim import STEP_BLOCK
from lowtide.optim.norms import total
from lowtide.optim.shards import Rows, is_distributed, local, pieces
from lowtide.optim.updates import Update
from lowtide.quant import is_quant_weight
from lowtide.quant._weight import QuantParameter

if TYPE_CHECKING:
    from lowtide.optim.meter import Meter


def check(p: Tensor) -> None:
    """Refuse what no store can hold."""
    if is_quantized(p):
        return
    if is_distributed(p) and p.dtype == torch.uint8:
        raise LowtideTypeError(
            f"packed weights cannot be sharded, got a DTensor of codes of shape {tuple(p.shape)}; leave their layers out of fully_shard and "
            "train them with in_backward(..., process_group=), or quantize nothing and use FSDP2 with AdamW8bit"
        )
    if p.dtype not in (torch.float32, torch.bfloat16):
        raise LowtideTypeError(
            f"parameters must be float32, bfloat16 or lt.quant weights, got {p.dtype}; convert the model with .float() or .bfloat16()"
        )
    if p.device.type in ("cpu", "cuda") and not p.is_contiguous():
        raise LowtideValueError(
            f"parameters must be contiguous, got strides {p.stride()} for shape {tuple(p.shape)}"
        )


def is_quantized(p: Tensor) -> TypeGuard[QuantParameter]:
    """True for the packed weight of an ``lt.quant.Linear``."""
    return is_quant_weight(p)


def shape(p: Tensor) -> torch.Size:
    """The logical shape (packed codes have another)."""
    return torch.Size(p.quant.shape) if is_quantized(p) else p.shape


def gradient(p: Tensor) -> Tensor | None:
    """The gradient to step with, or None."""
    return p.quant.main_grad if is_quantized(p) else p.grad


def release(p: Tensor) -> None:
    """Drop the gradient."""
    if is_quantized(p):
        p.quant.main_grad = None
    else:
        p.grad = None


def consume(p: Tensor, grad: Tensor) -> Tensor:
    """The gradient as an fp32 buffer that may be overwritten; a packed weight gives its own away."""
    if is_quantized(p):
        p.quant.main_grad = None
    return grad if grad.dtype == torch.float32 and grad.is_contiguous() else grad.float().contiguous()


def finite(x: Tensor) -> bool:
    """Whether no element is inf or NaN: one pass that only reads (``isfinite().all()`` takes 50 times as long)."""
    from lowtide import ops
    from lowtide.ops._cuda import native

    if x.numel() == 0:
        return True
    if not native(x.device) or x.dtype not in (torch.float32, torch.bfloat16):
        return all(bool(end.isfinite()) for end in torch.aminmax(x))
    # Squares and their sums cannot leave the range of doubles.
    energy = ops.channel_energy(x.reshape(x.shape[0] if x.dim() > 1 else 1, -1), dim=1)
    return math.isfinite(float(ops.ordered_sum(energy)))


def dense(p: Tensor) -> Tensor:
    """The weight in fp32; a packed one is decoded for the moment."""
    return p.quant.dequantize() if is_quantized(p) else p.detach().float()


def root_mean_square(p: Tensor) -> float:
    """Of a weight; 0 of a tensor without elements."""
    from lowtide import ops

    w = p.quant.dequantize() if is_quantized(p) else p.detach()
    if w.numel() == 0:
        return 0.0
    rows = w.shape[0] if w.dim() > 1 else 1
    return math.sqrt(total(ops.row_dots(w, w, rows)) / w.numel())


def nonfinite_blocks(grad: Tensor) -> Tensor:
    """Blocks of 256 elements that hold inf or NaN."""
    bad = ~grad.isfinite().reshape(-1)
    return torch.nn.functional.pad(bad, (0, -bad.numel() % 256)).reshape(-1, 256).any(1).sum()


def nbytes(p: Tensor) -> int:
    """Bytes of the weight (of a sharded one: here) with its scales and zero points."""
    return int(p.quant.nbytes) if is_quantized(p) else local(p).nbytes


def metered(
    meter: Meter | None,
    params: Sequence[Tensor],
    param_ids: Sequence[int],
    step: int,
    update: tuple[Tensor, float, float] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Around a change of weights; see :meth:`lowtide.optim.meter.Meter.rounding`."""
    return contextlib.nullcontext() if meter is None else meter.rounding(params, param_ids, step, update)


def apply(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    alpha: float,
    before: float,
    after: float,
    stochastic: bool,
    seed: int,
    step: int,
    param_ids: Sequence[int],
    meter: Meter | None = None,
) -> None:
    """``w = (w * before + alpha * update) * after`` in the weight's own store; updates are finite."""
    from lowtide import ops

    dense = [i for i, p in enumerate(params) if not is_quantized(p)]
    if dense:
        chosen, ids = [params[i] for i in dense], [param_ids[i] for i in dense]
        with metered(meter, chosen, ids, step):
            ops.apply_update_(
                chosen, [updates[i].reshape(params[i].shape) for i in dense], alpha=alpha, decay_before=before,
                decay_after=after, stochastic=stochastic, seed=seed, step=step, params=ids,
            )  # fmt: skip
    for i in sorted(set(range(len(params))) - set(dense)):
        p = params[i]
        assert is_quantized(p)
        with metered(meter, [p], [param_ids[i]], step, (updates[i], alpha * after, before * after)):
            p.quant.requant_add_(
                updates[i],
                alpha=alpha * after,
                decay=before * after,
                seed=seed,
                step=step,
                param=param_ids[i],
            )


def combine(
    p: Tensor,
    update: Update,
    *,
    lr: float,
    before: float,
    after: float,
    stochastic: bool,
    seed: int,
    step: int,
    param_id: int,
    meter: Meter | None = None,
    rows: Rows | None = None,
) -> None:
    """``w = (w * before - lr * update) * after`` in the weight's own store; with ``rows`` w is what this process has of it."""
    from lowtide import ops

    alpha = -lr * update.factor
    if rows is not None:
        _combine_rows(p, update, rows, alpha, before, after, stochastic, seed, step, param_id, meter)
        return
    if update.whole or is_quantized(p):
        m, n = shape(p)[0], shape(p)[1:].numel()
        u = update.dense(m, n, spoil_gradient=True)
        if not update.whole:
            release(p)  # its memory may hold the update now
        apply(
            [p], [u], alpha=alpha, before=before, after=after, stochastic=stochastic, seed=seed, step=step,
            param_ids=[param_id], meter=meter,
        )  # fmt: skip
        return
    with metered(meter, [p], [param_id], step):
        ops.combine_(
            p.view(p.shape[0], -1), alpha=alpha, **update.parts(), decay_before=before, decay_after=after,
            stochastic=stochastic, seed=seed, step=step, param=param_id,
        )  # fmt: skip


def _combine_rows(
    p: Tensor,
    update: Update,
    rows: Rows,
    alpha: float,
    before: float,
    after: float,
    stochastic: bool,
    seed: int,
    step: int,
    param_id: int,
    meter: Meter | None,
) -> None:
    from lowtide import ops

    if p.numel() == 0:
        return
    address: dict[str, Any] = {"decay_before": before, "decay_after": after, "stochastic": stochastic, "seed": seed, "step": step}  # fmt: skip
    p = p.view(p.shape[0], -1)
    with metered(meter, [p], [param_id], step):
        if not update.whole and rows.start % STEP_BLOCK == 0:
            ops.combine_(p, alpha=alpha, **update.parts(), **address, param=param_id, offset=rows.start)
            return
        # combine_ starts where a block does.
        for piece in pieces(rows, {"p": p, "g": update.dense(*p.shape)}, {}, {}):
            x, u = piece.tensors["p"], piece.tensors["g"]
            ops.apply_update_([x], [u], alpha=alpha, **address, params=[param_id], offsets=[piece.offset])
            piece.finish()
