# SPDX-License-Identifier: Apache-2.0
"""Ops of the codecs with fixed levels. The list forms are one op call for a whole model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideValueError
from lowtide.ops._common import check_mutable, fake, mutated
from lowtide.ops.quant import (
    _address,
    _as_matrix,
    _check_packed,
    _check_source,
    _check_target,
    _empty_matrix,
    _params,
    _raise_nonfinite,
    _translated,
)
from lowtide.quant._format import (
    LEVEL_MAPS,
    NONFINITE,
    ROLE_QUANT_SR,
    ROUNDINGS,
    Address,
    check_format,
    choice,
    group_count,
    map_bits,
    row_bytes,
)

_op = torch.ops.lowtide


def quantize_map(
    x: Tensor,
    *,
    map: str,
    group: int,
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    offset: int = 0,
    bf16_scale: bool = False,
    nonfinite: str = "raise",
) -> tuple[Tensor, Tensor]:
    """Codes of ``x`` (..., cols) for the levels of ``map``, in groups along its last dimension.

    Args:
        map: ``"nf4"``, ``"dynamic"``, ``"dynamic_unsigned"`` or ``"linear_nozero"`` (4 bits), ``"dynamic8"`` or
            ``"dynamic8_unsigned"``.
        bf16_scale: scales that bfloat16 holds exactly (still returned as float32), and codes computed with them.

    Returns:
        codes uint8 (rows, row_bytes), scale float32 (rows, groups).
    """
    check_format(map_bits(map), group)
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    seed, step, slot, offset = _address(seed, step, slot, offset)
    at = Address(seed, step, slot, check_uint(param, "param", 32), offset)
    # A graph cannot look at the count: there the op itself raises, before writing.
    in_graph = torch.compiler.is_compiling()
    codes, scale, bad = quantize_map_checked(
        x, map, group, rounding, at, bf16_scale, check=in_graph and nonfinite == "raise"
    )
    if not in_graph and nonfinite == "raise":
        _raise_nonfinite(bad)
    return codes, scale


def quantize_map_checked(
    x: Tensor, map: str, group: int, rounding: str, at: Address, bf16_scale: bool, *, check: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and the number of non-finite elements; arguments are checked but for ``x``."""
    x, rows, cols = _as_matrix(x)
    codes = x.new_empty((rows, row_bytes(cols, map_bits(map))), dtype=torch.uint8)
    scale = x.new_empty((rows, group_count(cols, group)), dtype=torch.float32)
    bad = _op.quantize_map_list_(
        [x], [codes], [scale], LEVEL_MAPS[map], group, rounding == "stochastic", at.seed, at.step, at.slot,
        [at.param], ROLE_QUANT_SR, at.offset, check, bf16_scale,
    )  # fmt: skip
    return codes, scale, bad


def quantize_map_list_(
    xs: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    map: str,
    group: int,
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    slot: int = 0,
    params: Sequence[int] | None = None,
    bf16_scale: bool = False,
    nonfinite: str = "raise",
) -> Tensor | None:
    """Quantize each of ``xs`` into storage that exists; scales are float32.

    Returns:
        The number of non-finite elements (int64, no dimensions), or ``None`` for empty lists.
    """
    bits = map_bits(map)
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    ids = _params(params, len(xs))
    seed, step, slot, _ = _address(seed, step, slot, 0)
    if not len(xs) == len(codes) == len(scales):
        raise LowtideValueError("xs, codes and scales must have equal lengths")
    if not xs:  # an empty list carries no dispatch key
        return None
    for x, c, s in zip(xs, codes, scales, strict=True):
        _check_source(x, c, s, None, bits, group)
    changed = [*codes, *scales]
    check_mutable(changed, "codes or scale")
    try:
        bad: Tensor = _op.quantize_map_list_(
            [x.detach().contiguous() for x in xs], list(codes), list(scales), LEVEL_MAPS[map], group,
            rounding == "stochastic", seed, step, slot, ids, ROLE_QUANT_SR, 0, nonfinite == "raise", bf16_scale,
        )  # fmt: skip
    except RuntimeError as error:
        raise _translated(error, "x") from None
    mutated(*changed)
    return bad


def dequantize_map(
    codes: Tensor,
    scale: Tensor,
    *,
    map: str,
    group: int,
    cols: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """level[code] * scale as a float32, bfloat16 or float16 matrix (rows, cols)."""
    _check_packed(codes, scale, None, cols, map_bits(map), group)
    out = _empty_matrix(scale, cols, dtype)
    dequantize_map_list_([codes], [scale], [out], map=map, group=group)
    return out


def dequantize_map_list_(
    codes: Sequence[Tensor], scales: Sequence[Tensor], outs: Sequence[Tensor], *, map: str, group: int
) -> None:
    """Decode each packed matrix into the tensor of ``outs`` that has its shape."""
    bits = map_bits(map)
    if not len(outs) == len(codes) == len(scales):
        raise LowtideValueError("codes, scales and outs must have equal lengths")
    if not outs:
        return
    for out, c, s in zip(outs, codes, scales, strict=True):
        _check_target(out, c, s, None, bits, group)
    check_mutable(outs, "out")
    _op.dequantize_map_list_(list(codes), list(scales), list(outs), LEVEL_MAPS[map], group)
    mutated(*outs)


@fake("lowtide::quantize_map_list_")
def _(xs: list[Tensor], *_: object) -> Tensor:
    return xs[0].new_empty((), dtype=torch.int64)


@fake("lowtide::dequantize_map_list_")
def _(codes: list[Tensor], *_: object) -> None: ...
