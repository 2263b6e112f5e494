# SPDX-License-Identifier: Apache-2.0
"""The end of a low-rank step that trains outside of its subspace too."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops.optim import STEP_BLOCK, _scalars

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16)
_F32 = (torch.float32,)


def _check(name: str, t: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if t.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise LowtideTypeError(f"{name} must be {wanted}, got {t.dtype}")
    if tuple(t.shape) != shape:
        raise LowtideValueError(f"{name} must have shape {shape}, got {tuple(t.shape)}")


def combine_(
    p: Tensor,
    *,
    alpha: float,
    g: Tensor | None = None,
    k: Tensor | None = None,
    sign: bool = False,
    u: Tensor | None = None,
    index: Tensor | None = None,
    dim: int = 1,
    decay_before: float = 1.0,
    decay_after: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
    step: int = 0,
    param: int = 0,
    offset: int = 0,
) -> None:
    """``p = (p * decay_before + alpha * d) * decay_after`` in place with ``d = k s(g) + u``, in one pass and with nothing of
    the size of ``p`` written but ``p``.

    Args:
        p: the weight, m x n, float32 or bfloat16, contiguous.
        alpha: the factor of d.
        g: the gradient, m x n, float32 or bfloat16; None for zero. It may be ``p`` itself.
        k: factors of the gradient, float32: shape (1, 1), (m, 1) or (1, n). Needed with ``g``.
        sign: s(g) is the sign of g, not g itself.
        u: float32, m x n. With ``index``: m x r (``dim=1``) or r x n (``dim=0``).
        index: int32, ascending, distinct: the columns (``dim=1``) or rows (``dim=0``) that ``u`` holds; there d is u alone.
        decay_before, decay_after: see above.
        stochastic: round bfloat16 weights stochastically; ``seed, step, param`` address the random bits.
        offset: for shards: the position of the first element in the whole tensor, flattened; a multiple of 256.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    if p.dim() != 2:
        raise LowtideValueError(f"p must have two dimensions, got shape {tuple(p.shape)}")
    m, n = p.shape
    _check("p", p, (m, n), _FLOATS)
    if not p.is_contiguous():
        raise LowtideValueError(f"p must be contiguous, got strides {p.stride()}; pass .contiguous()")
    if (g is None) != (k is None):
        raise LowtideValueError(f"g and k come together, got only {'k' if g is None else 'g'}")
    along = 0
    if g is not None and k is not None:
        _check("g", g, (m, n), _FLOATS)
        if k.dtype != torch.float32:
            raise LowtideTypeError(f"k must be float32, got {k.dtype}")
        shapes = {(1, 1): 0, (m, 1): 1, (1, n): 2}
        if tuple(k.shape) not in shapes:
            raise LowtideValueError(f"k must have shape (1, 1), {(m, 1)} or {(1, n)}, got {tuple(k.shape)}")
        along = 0 if k.numel() == 1 else shapes[(k.shape[0], k.shape[1])]
    chosen = 0
    if index is not None:
        if dim not in (0, 1):
            raise LowtideValueError(f"dim must be 0 or 1, got {dim!r}")
        if index.dtype != torch.int32 or index.dim() != 1:
            raise LowtideTypeError(
                f"index must be an int32 vector, got {index.dtype} of shape {tuple(index.shape)}"
            )
        if u is None:
            raise LowtideValueError("index needs u: the rows or columns that it names")
        _check("u", u, (m, index.numel()) if dim == 1 else (index.numel(), n), _F32)
        chosen = 2 if dim == 1 else 1
    elif u is not None:
        _check("u", u, (m, n), _F32)
    _scalars(alpha=alpha, decay_before=decay_before, decay_after=decay_after)
    if check_uint(offset, "offset", 62) % STEP_BLOCK:
        raise LowtideValueError(f"offset must be a multiple of {STEP_BLOCK}, got {offset}")
    address = (check_uint(seed, "seed", 63), check_uint(step, "step", 63), check_uint(param, "param", 32))
    check_mutable([p], "p")
    g, k, u, index = (None if t is None else t.contiguous() for t in (g, k, u, index))
    _op.combine_(
        p, g, k, along, bool(sign), u, index, chosen, alpha, decay_before, decay_after, bool(stochastic), *address, offset
    )  # fmt: skip
    mutated(p)


@fake("lowtide::combine_")
def _(p: Tensor, *_: object) -> None: ...
