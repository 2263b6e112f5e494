# SPDX-License-Identifier: Apache-2.0
"""Checks of the lists of tensors that the curvature ops take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError

FLOATS = (torch.float32, torch.bfloat16)


def check_tensor(
    name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS, numel: int | None = None
) -> None:
    """A contiguous tensor of one of ``dtypes``, with ``numel`` elements if given."""
    if not isinstance(x, Tensor) or x.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise LowtideTypeError(f"{name} must be a {wanted} tensor, got {got}")
    if not x.is_contiguous():
        raise LowtideValueError(f"{name} must be contiguous, got strides {x.stride()}; pass .contiguous()")
    if numel is not None and x.numel() != numel:
        raise LowtideValueError(f"{name} must have {numel} elements, got {x.numel()}")


def check_tensors(
    name: str,
    xs: Sequence[Tensor] | Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    like: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The tensors, detached: each checked, as many and as large as those of ``like``."""
    if isinstance(xs, Tensor):
        raise LowtideTypeError(f"{name} must be a list of tensors, got a tensor; pass [{name}]")
    if like is not None and len(xs) != len(like):
        raise LowtideValueError(f"{name} must list {len(like)} tensors, got {len(xs)}")
    for i, x in enumerate(xs):
        check_tensor(f"{name}[{i}]", x, dtypes, None if like is None else like[i].numel())
    return [x.detach() for x in xs]


def check_address(seed: int, step: int, slot: int, params: Sequence[int], tensors: int) -> None:
    """The address of a probe, with one parameter id for each tensor."""
    check_uint(seed, "seed", 63)
    check_uint(step, "step", 63)
    check_uint(slot, "slot", 32)
    if len(params) != tensors:
        raise LowtideValueError(f"params must list {tensors} parameter ids, one a tensor, got {len(params)}")
    for i, param in enumerate(params):
        check_uint(param, f"params[{i}]", 32)


def check_factor(name: str, value: float) -> float:
    """A finite number."""
    if not math.isfinite(value):
        raise LowtideValueError(f"{name} must be finite, got {value!r}")
    return float(value)
