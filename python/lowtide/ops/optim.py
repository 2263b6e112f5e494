# SPDX-License-Identifier: Apache-2.0
"""Ops of the optim family: fused optimizer steps over lists of tensors, and the end of a low-rank step.

A step is elementwise::

    p = (p * decay_before - d) * decay_after

with moments and direction ``d`` by rule:

==============  ===================================================  ====================================
rule            moments                                              direction d
==============  ===================================================  ====================================
``adam``        m = beta1 m + (1 - beta1) g,                         a m / (sqrt(v) s + eps)
                v = beta2 v + (1 - beta2) g g
``adabelief``   m as adam, v = beta2 v + (1 - beta2)(g - m)^2 + eps   a m / (sqrt(v) s + eps)
``lion``        m = beta2 m + (1 - beta2) g, after the direction     a sign(beta1 m + (1 - beta1) g)
``sgd``         m = momentum m + weight g                            a m, or a (g + momentum m): nesterov
``sign``        none                                                 a sign(g)
``diffgrad``    m, v as adam, w = g after the direction               adam's / (1 + exp(-|w - g|))
==============  ===================================================  ====================================

torch's form of Adam is ``a = lr / bc1, s = 1 / sqrt(bc2)``; the Hugging Face and GaLore form
``a = lr * sqrt(bc2) / bc1, s = 1``. Moments are float32, in the 8-bit dynamic map (blocks of 256) or in 4 bits (blocks
of 128; first moments in the signed dynamic map, second ones as (code + 1) / 16). Blocks of 256 elements in which a
moment would not stay finite are skipped whole and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.quant._format import row_bytes

_op = torch.ops.lowtide
_WEIGHT = (torch.float32, torch.bfloat16)
_F32 = (torch.float32,)
_CODES = (torch.uint8,)

#: Elements that share an absmax, by bits of a moment.
STATE_BLOCK = {8: 256, 4: 128}
#: Elements that are stepped or skipped together; shards of a tensor begin at multiples of it.
STEP_BLOCK = 256
#: Scalars of each rule, in the order of its kernel; the position of a rule is its number.
_SCALARS = {
    "adam": ("a", "s", "eps", "beta1", "beta2"),
    "adabelief": ("a", "s", "eps", "beta1", "beta2"),
    "lion": ("a", "beta1", "beta2"),
    "sgd": ("a", "momentum", "weight", "nesterov"),
    "sign": ("a",),
    "diffgrad": ("a", "s", "eps", "beta1", "beta2"),
}
_RULES = tuple(_SCALARS)
#: How many of the moments m, v, w a rule has.
_MOMENTS = {"adam": 2, "adabelief": 2, "lion": 1, "sgd": 1, "sign": 0, "diffgrad": 3}


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
        if x > 1 and name.startswith(("beta", "momentum", "weight")):
            raise LowtideValueError(f"{name} must be in [0, 1], got {x!r}")


def _rule_scalars(rule: str, scalars: dict[str, float]) -> list[float]:
    if rule not in _SCALARS:
        raise LowtideValueError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}")
    wanted = _SCALARS[rule]
    if set(scalars) != set(wanted):
        raise LowtideValueError(
            f"rule {rule!r} takes {', '.join(wanted)}, got {', '.join(scalars) or 'nothing'}"
        )
    _scalars(**scalars)
    return [float(scalars[name]) for name in wanted]


def _address(
    stochastic: bool,
    seed: int,
    step: int,
    params: Sequence[int] | None,
    offsets: Sequence[int] | None,
    count: int,
) -> tuple[bool, int, int, list[int], list[int]]:
    if params is None:
        if stochastic:
            raise LowtideValueError("params must list one stable id for each tensor when stochastic=True")
        params = [0] * count
    if len(params) != count:
        raise LowtideValueError(f"params must list {count} ids, got {len(params)}")
    offsets = [] if offsets is None else [check_uint(o, "offsets", 62) for o in offsets]
    if len(offsets) not in (0, count):
        raise LowtideValueError(f"offsets must list {count} elements, got {len(offsets)}")
    if any(o % STEP_BLOCK for o in offsets):
        raise LowtideValueError(
            f"offsets must be multiples of {STEP_BLOCK}, so that shards hold whole blocks, got {offsets}"
        )
    return (
        bool(stochastic),
        check_uint(seed, "seed", 63),
        check_uint(step, "step", 63),
        [check_uint(p, "params", 32) for p in params],
        offsets,
    )


def _numels(tensors: Sequence[Tensor]) -> list[int]:
    return [t.numel() for t in tensors]


def _check_states(
    rule: str,
    bits: int,
    numels: list[int],
    moments: Sequence[Sequence[Tensor]],
    absmaxes: Sequence[Sequence[Tensor]],
) -> None:
    if bits not in (32, 8, 4):
        raise LowtideValueError(f"bits must be 32, 8 or 4, got {bits!r}")
    for i, (name, tensors, absmax) in enumerate(zip("mvw", moments, absmaxes, strict=True)):
        sizes = numels if i < _MOMENTS[rule] else []
        if bits == 32:
            _check(f"{name}s", tensors, sizes, _F32)
            _check(f"{name}_absmax", absmax, [], _F32)
        else:
            _check(f"{name}_codes", tensors, [row_bytes(n, bits) for n in sizes], _CODES)
            _check(f"{name}_absmax", absmax, [-(-n // STATE_BLOCK[bits]) for n in sizes], _F32)


def _none_skipped() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def fused_step_(
    ps: Sequence[Tensor],
    gs: Sequence[Tensor],
    ms: Sequence[Tensor],
    vs: Sequence[Tensor] = (),
    m_absmax: Sequence[Tensor] = (),
    v_absmax: Sequence[Tensor] = (),
    ws: Sequence[Tensor] = (),
    w_absmax: Sequence[Tensor] = (),
    *,
    rule: str,
    bits: int = 32,
    decay_before: float = 1.0,
    decay_after: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
    step: int = 0,
    params: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    **scalars: float,
) -> Tensor:
    """One step of ``rule`` in place over a list.

    Args:
        ps: float32 or bfloat16 weights, contiguous. gs: gradients, float32 or bfloat16.
        ms, vs, ws: moments: float32 tensors, or uint8 codes (laid out as one row of a packed matrix) with ``m_absmax, v_absmax,
            w_absmax``, float32, one for each :data:`STATE_BLOCK`. Empty where a rule has fewer. The weight sees the moments before
            they are rounded. A positive second moment is never stored as zero.
        rule: ``adam, adabelief, lion, sgd, sign`` or ``diffgrad``; ``scalars`` are its numbers (module docstring).
        bits: 32, 8 or 4: how moments are stored. Zero moments are absmax 0 with codes 127 (8 bits) or 0x77 (4 bits) in
            ``ms`` and ``ws`` and 0 in ``vs``.
        stochastic: round bfloat16 weights stochastically; ``seed, step, params`` address the random bits.
        params: a stable id for each tensor, required when ``stochastic``.
        offsets: for shards: the position of each one's first element in the whole tensor, flattened; multiples of
            :data:`STEP_BLOCK`. A tensor stepped in shards gets the bits of one stepped whole.

    Returns:
        Number of skipped blocks, int64 tensor with no dimensions.

    Raises:
        LowtideValueError, LowtideTypeError: an argument that does not fit, named; nothing was changed.
    """
    if not ps:
        return _none_skipped()
    gs = _gradients(gs)
    numels = _numels(ps)
    values = _rule_scalars(rule, scalars)
    _scalars(decay_before=decay_before, decay_after=decay_after)
    _check("ps", ps, numels, _WEIGHT)
    _check("gs", gs, numels, _WEIGHT)
    states = [list(x) for x in (ms, vs, ws, m_absmax, v_absmax, w_absmax)]
    _check_states(rule, bits, numels, states[:3], states[3:])
    address = _address(stochastic, seed, step, params, offsets, len(ps))
    check_mutable(ps, "ps")
    skipped: Tensor = _op.fused_step_(
        list(ps), gs, *states, _RULES.index(rule), bits, [*values, decay_before, decay_after], *address
    )
    mutated(*ps, *chain.from_iterable(states))
    return skipped


def fused_direction_(
    rs: Sequence[Tensor],
    ms: Sequence[Tensor],
    vs: Sequence[Tensor] = (),
    m_absmax: Sequence[Tensor] = (),
    v_absmax: Sequence[Tensor] = (),
    ws: Sequence[Tensor] = (),
    w_absmax: Sequence[Tensor] = (),
    *,
    rule: str,
    bits: int = 32,
    **scalars: float,
) -> Tensor:
    """Replace each float32 gradient in ``rs`` by its direction and advance the moments; a skipped block becomes zero.

    Arguments and errors as :func:`fused_step_`.

    Returns:
        Number of skipped blocks, int64 tensor with no dimensions.
    """
    if not rs:
        return _none_skipped()
    numels = _numels(rs)
    values = _rule_scalars(rule, scalars)
    _check("rs", rs, numels, _F32)
    states = [list(x) for x in (ms, vs, ws, m_absmax, v_absmax, w_absmax)]
    _check_states(rule, bits, numels, states[:3], states[3:])
    check_mutable(rs, "rs")
    skipped: Tensor = _op.fused_direction_(list(rs), *states, _RULES.index(rule), bits, [*values, 1.0, 1.0])
    mutated(*rs, *chain.from_iterable(states))
    return skipped


def adamw_(
    ps: Sequence[Tensor], gs: Sequence[Tensor], ms: Sequence[Tensor], vs: Sequence[Tensor], **options: Any
) -> Tensor:
    """:func:`fused_step_` with ``rule="adam"`` and float32 moments."""
    return fused_step_(ps, gs, ms, vs, rule="adam", **options)


def adamw8_(
    ps: Sequence[Tensor],
    gs: Sequence[Tensor],
    m_codes: Sequence[Tensor],
    m_absmax: Sequence[Tensor],
    v_codes: Sequence[Tensor],
    v_absmax: Sequence[Tensor],
    **options: Any,
) -> Tensor:
    """:func:`fused_step_` with ``rule="adam"`` and 8-bit moments."""
    return fused_step_(ps, gs, m_codes, v_codes, m_absmax, v_absmax, rule="adam", bits=8, **options)


def adam_direction_(
    rs: Sequence[Tensor], ms: Sequence[Tensor], vs: Sequence[Tensor], **scalars: Any
) -> Tensor:
    """:func:`fused_direction_` with ``rule="adam"`` and float32 moments."""
    return fused_direction_(rs, ms, vs, rule="adam", **scalars)


def adam8_direction_(
    rs: Sequence[Tensor],
    m_codes: Sequence[Tensor],
    m_absmax: Sequence[Tensor],
    v_codes: Sequence[Tensor],
    v_absmax: Sequence[Tensor],
    **scalars: Any,
) -> Tensor:
    """:func:`fused_direction_` with ``rule="adam"`` and 8-bit moments."""
    return fused_direction_(rs, m_codes, v_codes, m_absmax, v_absmax, rule="adam", bits=8, **scalars)


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
    offsets: Sequence[int] | None = None,
) -> None:
    """``p = (p * decay_before + alpha * u) * decay_after`` in place; p float32 or bfloat16, u float32.

    ``seed, step, params, offsets``: see :func:`fused_step_`.
    """
    if not ps:
        return
    us = _gradients(us)
    numels = _numels(ps)
    _check("ps", ps, numels, _WEIGHT)
    _check("us", us, numels, _F32)
    _scalars(alpha=alpha, decay_before=decay_before, decay_after=decay_after)
    address = _address(stochastic, seed, step, params, offsets, len(ps))
    check_mutable(ps, "ps")
    _op.apply_update_(list(ps), us, alpha, decay_before, decay_after, *address)
    mutated(*ps)


@fake("lowtide::fused_step_")
@fake("lowtide::fused_direction_")
def _(ps: list[Tensor], *_: object) -> Tensor:
    return ps[0].new_empty((), dtype=torch.int64)


@fake("lowtide::apply_update_")
def _(ps: list[Tensor], *_: object) -> None: ...
