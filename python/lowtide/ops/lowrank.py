# SPDX-License-Identifier: Apache-2.0
"""Subspace refresh: randomized SVD and its warm start."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.ops._common import fake

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16)


def rsvd(
    G: Tensor,
    rank: int,
    *,
    side: str,
    prev: Tensor | None = None,
    oversample: int = 8,
    power_iters: int = 1,
    seed: int = 0,
    step: int = 0,
    param: int = 0,
) -> Tensor:
    """Orthonormal basis of the leading singular directions of a gradient, float32, r x d, d its long last side.

    Without ``prev``: randomized SVD (Halko, Martinsson and Tropp 2011), rows in the order of singular values; the
    sketch is drawn from the streams of role ``"u"`` at (seed, step, param), of G folded along its other side where
    that is long. With ``prev``: subspace iterations from there, as many as the change of the gradient asks for,
    then the basis of the new subspace closest to ``prev`` (orthogonal Procrustes), so that each row keeps its
    meaning and sign. See :class:`lowtide.lowrank.RandomizedSVD`. The same bits for every instruction set and
    thread count.

    Args:
        G: m x n, float32 or bfloat16; from a CUDA device it is copied to the host, and the basis back.
        rank: rows of the basis; clamped to min(m, n), which the result's shape says.
        side: ``"right"`` (d = n, G ~ (G Qᵀ) Q) or ``"left"`` (d = m, G ~ Qᵀ (Q G)).
        prev: the basis to start from, of the result's shape, roughly orthonormal.
        oversample: extra rows of the sketch. power_iters: products with GᵀG after the sketch; one more if the last
            one still gained much energy.
        seed, step: 63-bit integers. param: 32-bit integer.

    Raises:
        LowtideValueError: a bad argument, or inf or NaN in ``G``.
    """
    if not isinstance(G, Tensor) or G.dtype not in _FLOATS:
        got = G.dtype if isinstance(G, Tensor) else type(G).__name__
        raise LowtideTypeError(f"G must be a float32 or bfloat16 tensor, got {got}")
    if G.dim() != 2:
        raise LowtideValueError(f"G must have two dimensions, got shape {tuple(G.shape)}")
    if side not in ("right", "left"):
        raise LowtideValueError(f"side must be 'right' or 'left', got {side!r}")
    for value, name, least in (
        (rank, "rank", 1),
        (oversample, "oversample", 0),
        (power_iters, "power_iters", 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise LowtideValueError(f"{name} must be an integer >= {least}, got {value!r}")
    r, d = min(rank, *G.shape), G.shape[1] if side == "right" else G.shape[0]
    if prev is not None:
        if not isinstance(prev, Tensor) or prev.dtype not in _FLOATS:
            got = prev.dtype if isinstance(prev, Tensor) else type(prev).__name__
            raise LowtideTypeError(f"prev must be a float32 or bfloat16 tensor, got {got}")
        if tuple(prev.shape) != (r, d):
            raise LowtideValueError(
                f"prev must have the shape of the new basis, {(r, d)}, got {tuple(prev.shape)}; leave it out to start "
                "again"
            )
        prev = prev.detach().float().contiguous()
    left = side == "left"
    G = G.detach()
    if not G.is_contiguous():
        if G.mT.is_contiguous():  # the same matrix, read along its other side
            G, left = G.mT, not left
        else:
            G = G.contiguous()
    args = (
        *(G, rank, left, prev, oversample, power_iters),
        *(check_uint(seed, "seed", 63), check_uint(step, "step", 63), check_uint(param, "param", 32)),
    )
    if torch.compiler.is_compiling():
        traced: Tensor = _op.rsvd(*args)
        return traced
    try:
        result: Tensor = _op.rsvd(*args)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if "not finite" in message:
            raise LowtideValueError(f"G: {message}") from None
        raise LowtideRuntimeError(message) from error
    return result


@fake("lowtide::rsvd")
def _(g: Tensor, rank: int, left: bool, *_: object) -> Tensor:
    rows = min(rank, g.shape[0], g.shape[1])
    return g.new_empty((rows, g.shape[0] if left else g.shape[1]), dtype=torch.float32)
