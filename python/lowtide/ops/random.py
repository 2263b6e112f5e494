# SPDX-License-Identifier: Apache-2.0
"""Ops of the random family."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.ops._common import check_mutable, fake, mutated

_op = torch.ops.lowtide


def random_sample(
    out: Tensor, seed: int, step: int, slot: int, param: int, role: int, offset: int, dist: int
) -> None:
    """Fill ``out``, contiguous float32, as :func:`lowtide.random.sample` does, with role and distribution by their ids."""
    check_mutable((out,), "out")
    _op.random_sample(out, seed, step, slot, param, role, offset, dist)
    mutated(out)


def random_add_(
    x: Tensor, scale: float, seed: int, step: int, slot: int, param: int, role: int, offset: int, dist: int
) -> None:
    """:func:`lowtide.random.add_` with role and distribution by their ids."""
    check_mutable((x,), "x")
    _op.random_add_(x, scale, seed, step, slot, param, role, offset, dist)
    mutated(x)


def random_add_list_(
    xs: list[Tensor], scale: float, seed: int, step: int, slot: int, params: list[int], role: int, dist: int
) -> None:
    """``x += scale * z`` for each of a list of whole tensors; ``params`` are their parameter ids."""
    if not xs:  # an empty list carries no dispatch key
        return
    check_mutable(xs, "x")
    _op.random_add_list_(xs, scale, seed, step, slot, params, role, dist)
    mutated(*xs)


def random_dot(
    x: Tensor, seed: int, step: int, slot: int, param: int, role: int, offset: int, dist: int
) -> Tensor:
    """:func:`lowtide.random.dot` with role and distribution by their ids: float64, no dimensions."""
    return _op.random_dot(x, seed, step, slot, param, role, offset, dist)


@fake("lowtide::random_sample")
def _(out: Tensor, *_: object) -> None: ...


@fake("lowtide::random_add_")
def _(x: Tensor, *_: object) -> None: ...


@fake("lowtide::random_add_list_")
def _(xs: list[Tensor], *_: object) -> None: ...


@fake("lowtide::random_dot")
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((), dtype=torch.float64)
