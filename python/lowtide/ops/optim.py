# SPDX-License-Identifier: Apache-2.0
"""Ops of the optim family: fused AdamW over lists of tensors, and the end of a low-rank step.

The rule is elementwise::

    p = p * decay_before
    m = beta1 * m + (1 - beta1) * g;   v = beta2 * v + (1 - beta2) * g * g
    p = (p - a * m / (sqrt(v) * s + eps)) * decay_after

torch's form is ``a = lr / bc1, s = 1 / sqrt(bc2)``; the Hugging Face and GaLore form ``a = lr * sqrt(bc2) / bc1,
s = 1``. Blocks of 256 elements in which a moment would not stay finite are skipped whole and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, mutated

_op = torch.ops.lowtide
BLOCK = 256
_WEIGHT = (torch.float32, torch.bfloat16)
_F32 = (torch.float32,)
_CODES = (torch.uint8,)


def _check(
    name: str, tensors: Sequence[Tensor], numels: Sequence[int], dtypes: tuple[torch.dtype, ...]
) -> None:
    if len(tensors) != len(numels):
        raise LowtideValueError(f"{name} must list {len(numels)} tensors, got {len(tensors)}")
    for i, (t, n) in enumerate(zip(tensors, numels, strict=True)):
        if t.dtype not in dtypes:
            wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise LowtideTypeError(f"{name}[{i}] must be {wanted}, got {t.dtype}")
        if t.numel() != n:
            raise LowtideValueError(f"{name}[{i}] must have {n} elements, got {t.numel()}")
        if not t.is_contiguous():
            raise LowtideValueError(
                f"{name}[{i}] must be contiguous, got strides {t.stride()}; pass .contiguous()"
            )


def _gradients(gs: Sequence[Tensor]) -> list[Tensor]:
    """Read only, so that a strided gradient can be copied."""
    return [g if g.is_contiguous() else g.contiguous() for g in gs]


def _scalars(**values: float) -> None:
    for name, x in values.items():
        if not math.isfinite(x):
            raise LowtideValueError(f"{name} must be finite, got {x!r}")
        if x < 0 and not name.startswith(("decay", "alpha")):
            raise LowtideValueError(f"{name} must be >= 0, got {x!r}")
        if x > 1 and name.startswith("beta"):
            raise LowtideValueError(f"{name} must be in [0, 1], got {x!r}")


def _address(
    stochastic: bool, seed: int, step: int, params: Sequence[int] | None, count: int
) -> tuple[bool, int, int, list[int]]:
    if params is None:
        if stochastic:
            raise LowtideValueError("params must list one stable id for each tensor when stochastic=True")
        params = [0] * count
    if len(params) != count:
        raise LowtideValueError(f"params must list {count} ids, got {len(params)}")
    return (
        bool(stochastic),
        check_uint(seed, "seed", 63),
        check_uint(step, "step", 63),
        [check_uint(p, "params", 32) for p in params],
    )


def _numels(tensors: Sequence[Tensor]) -> list[int]:
    return [t.numel() for t in tensors]


def _check_codes(
    numels: list[int],
    m_codes: Sequence[Tensor],
    m_absmax: Sequence[Tensor],
    v_codes: Sequence[Tensor],
    v_absmax: Sequence[Tensor],
) -> None:
    blocks = [-(-n // BLOCK) for n in numels]
    _check("m_codes", m_codes, numels, _CODES)
    _check("m_absmax", m_absmax, blocks, _F32)
    _check("v_codes", v_codes, numels, _CODES)
    _check("v_absmax", v_absmax, blocks, _F32)


def _none_skipped() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def adamw_(
    ps: Sequence[Tensor],
    gs: Sequence[Tensor],
    ms: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    a: float,
    s: float,
    eps: float,
    beta1: float,
    beta2: float,
    decay_before: float = 1.0,
    decay_after: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
    step: int = 0,
    params: Sequence[int] | None = None,
) -> Tensor:
    """AdamW with float32 moments, in place over a list.

    Args:
        ps: float32 or bfloat16 weights, contiguous. gs: gradients, float32 or bfloat16.
        ms, vs: float32 moments.
        a, s, eps, beta1, beta2, decay_before, decay_after: the scalars of the step (module docstring).
        stochastic: round bfloat16 weights stochastically; ``seed, step, params`` address the random bits.
        params: a stable id for each tensor, required when ``stochastic``.

    Returns:
        Number of skipped blocks, int64 tensor with no dimensions.
    """
    if not ps:
        return _none_skipped()
    gs = _gradients(gs)
    numels = _numels(ps)
    _check("ps", ps, numels, _WEIGHT)
    _check("gs", gs, numels, _WEIGHT)
    _check("ms", ms, numels, _F32)
    _check("vs", vs, numels, _F32)
    _scalars(a=a, s=s, eps=eps, beta1=beta1, beta2=beta2, decay_before=decay_before, decay_after=decay_after)
    address = _address(stochastic, seed, step, params, len(ps))
    check_mutable(ps, "ps")
    skipped: Tensor = _op.adamw_(
        list(ps), gs, list(ms), list(vs), a, s, eps, beta1, beta2, decay_before, decay_after, *address
    )
    mutated(*ps, *ms, *vs)
    return skipped


def adamw8_(
    ps: Sequence[Tensor],
    gs: Sequence[Tensor],
    m_codes: Sequence[Tensor],
    m_absmax: Sequence[Tensor],
    v_codes: Sequence[Tensor],
    v_absmax: Sequence[Tensor],
    *,
    a: float,
    s: float,
    eps: float,
    beta1: float,
    beta2: float,
    decay_before: float = 1.0,
    decay_after: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
    step: int = 0,
    params: Sequence[int] | None = None,
) -> Tensor:
    """:func:`adamw_` with moments in the 8-bit dynamic map: uint8 codes and an absmax for each 256 elements.

    The weight sees the moments before they are rounded. A positive second moment is never stored as zero.
    Zero moments are codes 127 (first) and 0 (second) with absmax 0.
    """
    if not ps:
        return _none_skipped()
    gs = _gradients(gs)
    numels = _numels(ps)
    _check("ps", ps, numels, _WEIGHT)
    _check("gs", gs, numels, _WEIGHT)
    _check_codes(numels, m_codes, m_absmax, v_codes, v_absmax)
    _scalars(a=a, s=s, eps=eps, beta1=beta1, beta2=beta2, decay_before=decay_before, decay_after=decay_after)
    address = _address(stochastic, seed, step, params, len(ps))
    check_mutable(ps, "ps")
    states = [list(m_codes), list(m_absmax), list(v_codes), list(v_absmax)]
    skipped: Tensor = _op.adamw8_(
        list(ps), gs, *states, a, s, eps, beta1, beta2, decay_before, decay_after, *address
    )
    mutated(*ps, *m_codes, *m_absmax, *v_codes, *v_absmax)
    return skipped


def adam_direction_(
    rs: Sequence[Tensor],
    ms: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    a: float,
    s: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> Tensor:
    """Replace each float32 gradient in ``rs`` by its Adam direction; a skipped block becomes zero.

    Returns:
        Number of skipped blocks, int64 tensor with no dimensions.
    """
    if not rs:
        return _none_skipped()
    numels = _numels(rs)
    _check("rs", rs, numels, _F32)
    _check("ms", ms, numels, _F32)
    _check("vs", vs, numels, _F32)
    _scalars(a=a, s=s, eps=eps, beta1=beta1, beta2=beta2)
    check_mutable(rs, "rs")
    skipped: Tensor = _op.adam_direction_(list(rs), list(ms), list(vs), a, s, eps, beta1, beta2)
    mutated(*rs, *ms, *vs)
    return skipped


def adam8_direction_(
    rs: Sequence[Tensor],
    m_codes: Sequence[Tensor],
    m_absmax: Sequence[Tensor],
    v_codes: Sequence[Tensor],
    v_absmax: Sequence[Tensor],
    *,
    a: float,
    s: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> Tensor:
    """:func:`adam_direction_` with 8-bit moments, stored as in :func:`adamw8_`."""
    if not rs:
        return _none_skipped()
    numels = _numels(rs)
    _check("rs", rs, numels, _F32)
    _check_codes(numels, m_codes, m_absmax, v_codes, v_absmax)
    _scalars(a=a, s=s, eps=eps, beta1=beta1, beta2=beta2)
    check_mutable(rs, "rs")
    states = [list(m_codes), list(m_absmax), list(v_codes), list(v_absmax)]
    skipped: Tensor = _op.adam8_direction_(list(rs), *states, a, s, eps, beta1, beta2)
    mutated(*rs, *m_codes, *m_absmax, *v_codes, *v_absmax)
    return skipped


def apply_update_(
    ps: Sequence[Tensor],
    us: Sequence[Tensor],
    *,
    alpha: float,
    decay_before: float = 1.0,
    decay_after: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
    step: int = 0,
    params: Sequence[int] | None = None,
) -> None:
    """``p = (p * decay_before + alpha * u) * decay_after`` in place; p float32 or bfloat16, u float32."""
    if not ps:
        return
    us = _gradients(us)
    numels = _numels(ps)
    _check("ps", ps, numels, _WEIGHT)
    _check("us", us, numels, _F32)
    _scalars(alpha=alpha, decay_before=decay_before, decay_after=decay_after)
    address = _address(stochastic, seed, step, params, len(ps))
    check_mutable(ps, "ps")
    _op.apply_update_(list(ps), us, alpha, decay_before, decay_after, *address)
    mutated(*ps)


@torch.library.register_fake("lowtide::adamw_")
@torch.library.register_fake("lowtide::adamw8_")
@torch.library.register_fake("lowtide::adam_direction_")
@torch.library.register_fake("lowtide::adam8_direction_")
def _(ps: list[Tensor], *_: object) -> Tensor:
    return ps[0].new_empty((), dtype=torch.int64)


@torch.library.register_fake("lowtide::apply_update_")
def _(ps: list[Tensor], *_: object) -> None: ...
