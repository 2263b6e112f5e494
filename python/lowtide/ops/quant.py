# SPDX-License-Identifier: Apache-2.0
"""Ops of the group codecs. The list forms are one op call for a whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.quant._format import (
    NONFINITE,
    ROLE_QUANT_SR,
    ROLE_WEIGHT_SR,
    ROUNDINGS,
    SCHEMES,
    Address,
    check_format,
    choice,
    group_count,
    nonfinite_error,
    range_id,
    row_bytes,
)

_op = torch.ops.lowtide
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _check_float(x: Tensor, name: str) -> None:
    if x.dtype not in _FLOATS:
        raise LowtideTypeError(
            f"{name} must be float32, bfloat16 or float16, got {x.dtype}; convert it with .float()"
        )


def _check_packed(
    codes: Tensor, scale: Tensor, zero: Tensor | None, cols: int, bits: int, group: int
) -> None:
    """Shapes and dtypes of one packed matrix."""
    check_format(bits, group)
    rows = scale.shape[0] if scale.dim() == 2 else -1
    want = (rows, group_count(cols, group))
    if codes.dtype != torch.uint8 or (zero is not None and zero.dtype != torch.uint8):
        raise LowtideTypeError("codes and zero must be uint8")
    if scale.dtype != torch.float32:
        raise LowtideTypeError(
            f"scale must be float32, got {scale.dtype}: a rounded scale is a gain error on every weight"
        )
    if tuple(scale.shape) != want or (zero is not None and tuple(zero.shape) != want):
        raise LowtideValueError(
            f"scale (and zero) must have shape (rows, {want[1]}) for {cols} columns in groups of {group}, "
            f"got {tuple(scale.shape)}" + (f" and {tuple(zero.shape)}" if zero is not None else "")
        )
    if tuple(codes.shape) != (rows, row_bytes(cols, bits)):
        raise LowtideValueError(
            f"codes must have shape ({rows}, {row_bytes(cols, bits)}) for {cols} columns of {bits} bits, "
            f"got {tuple(codes.shape)}"
        )
    for name, t in (("codes", codes), ("scale", scale), ("zero", zero)):
        if t is not None and not t.is_contiguous():
            raise LowtideValueError(f"{name} must be contiguous; pass {name}.contiguous()")


def _as_matrix(x: Tensor) -> tuple[Tensor, int, int]:
    """``x`` (..., cols) contiguous, its rows and its columns."""
    _check_float(x, "x")
    if x.dim() == 0:
        raise LowtideValueError("x must have at least one dimension; pass x.reshape(1)")
    return x.detach().contiguous(), math.prod(x.shape[:-1]), x.shape[-1]


def _raise_nonfinite(bad: Tensor) -> None:
    """Refuse ``bad`` non-finite elements of x."""
    if count := int(bad):
        raise nonfinite_error(count, "x")


def _check_source(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int
) -> None:
    """Refuse storage that has not the rows and columns of ``x``."""
    _check_float(x, "x")
    _check_packed(codes, scale, zero, x.shape[-1], bits, group)
    if x.numel() != scale.shape[0] * x.shape[-1]:
        raise LowtideValueError(
            f"x of shape {tuple(x.shape)} does not have the {scale.shape[0]} rows of scale"
        )


def _check_target(
    out: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int
) -> None:
    """Refuse an ``out`` that has not the rows of the packed matrix."""
    _check_float(out, "out")
    _check_packed(codes, scale, zero, out.shape[-1], bits, group)
    if out.numel() != scale.shape[0] * out.shape[-1] or not out.is_contiguous():
        raise LowtideValueError(f"out must be contiguous with the {scale.shape[0]} rows of scale")


def _empty_matrix(scale: Tensor, cols: int, dtype: torch.dtype) -> Tensor:
    """Storage for the decoded rows of ``scale``."""
    if dtype not in _FLOATS:
        raise LowtideTypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
    return scale.new_empty((scale.shape[0], cols), dtype=dtype)


def _params(params: Sequence[int] | None, n: int) -> list[int]:
    if params is None:
        return list(range(n))
    if len(params) != n:
        raise LowtideValueError(f"params must list one id for each of the {n} tensors, got {len(params)}")
    return [check_uint(p, "params", 32) for p in params]


def _address(seed: int, step: int, slot: int, offset: int) -> tuple[int, int, int, int]:
    return (
        check_uint(seed, "seed", 63),
        check_uint(step, "step", 63),
        check_uint(slot, "slot", 32),
        check_uint(offset, "offset", 62),
    )


def quantize_group(
    x: Tensor,
    *,
    bits: int,
    group: int,
    scheme: str = "symmetric",
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    offset: int = 0,
    compat: bool = False,
    headroom: bool = False,
    nonfinite: str = "raise",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of ``x`` (..., cols) in groups along its last dimension.

    ``headroom=True`` leaves values room to grow by 1/16 before :func:`requant_add_sr_` needs another scale;
    ``compat=True`` is Q-GaLore's quantizer.

    Returns:
        codes uint8 (rows, row_bytes), scale float32 (rows, groups), zero uint8 (rows, groups) or ``None``
        for the symmetric scheme.
    """
    check_format(bits, group)
    choice(scheme, "scheme", SCHEMES)
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    range_ = range_id(scheme, compat=compat, headroom=headroom)
    seed, step, slot, offset = _address(seed, step, slot, offset)
    # A graph cannot look at the count: there the op itself raises, before writing.
    in_graph = torch.compiler.is_compiling()
    codes, scale, zero, bad = quantize_checked(
        x, bits, group, scheme, rounding, Address(seed, step, slot, check_uint(param, "param", 32), offset),
        range_, check=in_graph and nonfinite == "raise",
    )  # fmt: skip
    if not in_graph and nonfinite == "raise":
        _raise_nonfinite(bad)
    return codes, scale, zero


def quantize_checked(
    x: Tensor,
    bits: int,
    group: int,
    scheme: str,
    rounding: str,
    at: Address,
    range_: int,
    *,
    check: bool = False,
    bf16_scale: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Codes, scale, zero and the number of non-finite elements; arguments are checked but for ``x``.

    ``bf16_scale`` gives float32 scales that bfloat16 holds exactly, and codes computed with them.
    """
    x, rows, cols = _as_matrix(x)
    groups = group_count(cols, group)
    codes = x.new_empty((rows, row_bytes(cols, bits)), dtype=torch.uint8)
    scale = x.new_empty((rows, groups), dtype=torch.float32)
    zero = x.new_empty((rows, groups), dtype=torch.uint8) if scheme == "asymmetric" else None
    bad = _op.quantize_group_list_(
        [x], [codes], [scale], [] if zero is None else [zero], bits, group, rounding == "stochastic", range_,
        at.seed, at.step, at.slot, [at.param], ROLE_QUANT_SR, at.offset, check, bf16_scale,
    )  # fmt: skip
    return codes, scale, zero, bad


def quantize_group_list_(
    xs: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor] | None,
    *,
    bits: int,
    group: int,
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    slot: int = 0,
    params: Sequence[int] | None = None,
    compat: bool = False,
    headroom: bool = False,
    nonfinite: str = "raise",
) -> Tensor | None:
    """Quantize each of ``xs`` into storage that exists; ``zeros=None`` is the symmetric scheme.

    Returns:
        The number of non-finite elements (int64, no dimensions), or ``None`` for empty lists.
    """
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    ids = _params(params, len(xs))
    seed, step, slot, _ = _address(seed, step, slot, 0)
    pairs = zeros if zeros is not None else [None] * len(xs)
    if not len(xs) == len(codes) == len(scales) == len(pairs):
        raise LowtideValueError("xs, codes, scales and zeros must have equal lengths")
    range_ = range_id("symmetric" if zeros is None else "asymmetric", compat=compat, headroom=headroom)
    if not xs:  # an empty list carries no dispatch key
        return None
    for x, c, s, z in zip(xs, codes, scales, pairs, strict=True):
        _check_source(x, c, s, z, bits, group)
    changed = [*codes, *scales, *(zeros or [])]
    check_mutable(changed, "codes, scale or zero")
    try:
        bad: Tensor = _op.quantize_group_list_(
            [x.detach().contiguous() for x in xs],
            list(codes),
            list(scales),
            list(zeros or []),
            bits,
            group,
            rounding == "stochastic",
            range_,
            seed,
            step,
            slot,
            ids,
            ROLE_QUANT_SR,
            0,
            nonfinite == "raise",
        )
    except RuntimeError as error:
        raise _translated(error, "x") from None
    mutated(*changed)
    return bad


def _translated(error: RuntimeError, name: str) -> Exception:
    """The op's own refusal of non-finite input as the error that the eager path raises."""
    text = str(error)
    if "non-finite" not in text:
        return error
    return nonfinite_error(int(text.split(" non-finite")[0].split()[-1]), name)


def dequantize_group(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    bits: int,
    group: int,
    cols: int,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """(code - zero) * scale as a float32, bfloat16 or float16 matrix (rows, cols)."""
    _check_packed(codes, scale, zero, cols, bits, group)
    if out is None:
        out = _empty_matrix(scale, cols, dtype)
    else:
        shape = (scale.shape[0], cols)
        _check_float(out, "out")
        if tuple(out.shape) != shape or not out.is_contiguous():
            raise LowtideValueError(f"out must be contiguous with shape {shape}, got {tuple(out.shape)}")
        check_mutable((out,), "out")
    _op.dequantize_group_list_([codes], [scale], [] if zero is None else [zero], [out], bits, group)
    mutated(out)
    return out


def dequantize_group_list_(
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor] | None,
    outs: Sequence[Tensor],
    *,
    bits: int,
    group: int,
) -> None:
    """Decode each packed matrix into the tensor of ``outs`` that has its shape."""
    pairs = zeros if zeros is not None else [None] * len(outs)
    if not len(outs) == len(codes) == len(scales) == len(pairs):
        raise LowtideValueError("codes, scales, zeros and outs must have equal lengths")
    if not outs:
        return
    for out, c, s, z in zip(outs, codes, scales, pairs, strict=True):
        _check_target(out, c, s, z, bits, group)
    check_mutable(outs, "out")
    _op.dequantize_group_list_(list(codes), list(scales), list(zeros or []), list(outs), bits, group)
    mutated(*outs)


def requant_add_sr_(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    delta: Tensor,
    *,
    alpha: float = 1.0,
    decay: float = 1.0,
    bits: int,
    group: int,
    seed: int,
    step: int,
    slot: int = 0,
    param: int,
    offset: int = 0,
    nonfinite: str = "raise",
) -> Tensor:
    """``w <- w * decay + alpha * delta`` on a packed matrix, stochastically rounded, in place.

    A group keeps its scale while the new values fit it, so a weight that is not asked to move keeps its code.

    Returns:
        The number of groups left unchanged for non-finite values (int64, no dimensions). With
        ``nonfinite="raise"`` a non-finite element of ``delta`` is refused before anything changes.
    """
    skipped = requant_add_sr_list_(
        [codes],
        [scale],
        None if zero is None else [zero],
        [delta],
        alpha=alpha,
        decay=decay,
        bits=bits,
        group=group,
        seed=seed,
        step=step,
        slot=slot,
        params=[param],
        offset=offset,
        nonfinite=nonfinite,
    )
    assert skipped is not None
    return skipped


def requant_add_sr_list_(
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor] | None,
    deltas: Sequence[Tensor],
    *,
    alpha: float = 1.0,
    decay: float = 1.0,
    bits: int,
    group: int,
    seed: int,
    step: int,
    slot: int = 0,
    params: Sequence[int] | None = None,
    offset: int = 0,
    nonfinite: str = "raise",
) -> Tensor | None:
    """:func:`requant_add_sr_` on many matrices in one call; ``None`` for empty lists."""
    choice(nonfinite, "nonfinite", NONFINITE)
    if not math.isfinite(alpha):
        raise LowtideValueError(f"alpha must be finite, got {alpha!r}")
    if not 0 <= decay <= 1:
        raise LowtideValueError(f"decay must be in [0, 1], got {decay!r}")
    ids = _params(params, len(deltas))
    seed, step, slot, offset = _address(seed, step, slot, offset)
    pairs = zeros if zeros is not None else [None] * len(deltas)
    if not len(deltas) == len(codes) == len(scales) == len(pairs):
        raise LowtideValueError("codes, scales, zeros and deltas must have equal lengths")
    if not deltas:
        return None
    for d, c, s, z in zip(deltas, codes, scales, pairs, strict=True):
        if d.dtype != torch.float32:
            raise LowtideTypeError(f"delta must be float32, got {d.dtype}; convert it with .float()")
        if d.dim() == 0 or d.numel() != s.shape[0] * d.shape[-1]:
            raise LowtideValueError(
                f"delta of shape {tuple(d.shape)} does not have the {s.shape[0]} rows of scale"
            )
        _check_packed(c, s, z, d.shape[-1], bits, group)
    changed = [*codes, *scales, *(zeros or [])]
    check_mutable(changed, "codes, scale or zero")
    try:
        skipped: Tensor = _op.requant_add_sr_list_(
            list(codes),
            list(scales),
            list(zeros or []),
            [d.detach().contiguous() for d in deltas],
            float(alpha),
            float(decay),
            bits,
            group,
            seed,
            step,
            slot,
            ids,
            ROLE_WEIGHT_SR,
            offset,
            nonfinite == "raise",
        )
    except RuntimeError as error:
        raise _translated(error, "delta") from None
    mutated(*changed)
    return skipped


@fake("lowtide::quantize_group_list_")
def _(xs: list[Tensor], *_: object) -> Tensor:
    return xs[0].new_empty((), dtype=torch.int64)


@fake("lowtide::requant_add_sr_list_")
def _(codes: list[Tensor], *_: object) -> Tensor:
    return codes[0].new_empty((), dtype=torch.int64)


@fake("lowtide::dequantize_group_list_")
def _(codes: list[Tensor], *_: object) -> None: ...
