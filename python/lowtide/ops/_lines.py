# SPDX-License-Identifier: Apache-2.0
"""Checks of transforms along the lines of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError


def matrix(x: Tensor, name: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """A contiguous matrix of one of ``dtypes``, or an error that names it."""
    if not isinstance(x, Tensor) or x.dtype not in dtypes:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise LowtideTypeError(f"{name} must be a {wanted} tensor, got {got}")
    if x.dim() != 2:
        raise LowtideValueError(f"{name} must have two dimensions, got shape {tuple(x.shape)}")
    return x.detach().contiguous()


def columns_of(dim: int) -> bool:
    """Whether ``dim`` means that lines are columns."""
    if dim not in (-2, -1, 0, 1):
        raise LowtideValueError(f"dim must be 0 or 1, got {dim!r}")
    return dim in (0, -2)


def index_of(index: Tensor | None) -> Tensor | None:
    """Indices as int32."""
    if index is None:
        return None
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
        raise LowtideTypeError("index must be a 1-D int32 or int64 tensor")
    return index.to(torch.int32).contiguous()


def check_index(index: Tensor | None, n: int) -> None:
    """Refuse what does not ascend within [0, n)."""
    if index is None or index.numel() == 0 or torch.compiler.is_compiling():
        return  # in a graph the op itself refuses
    if int(index[0]) < 0 or int(index[-1]) >= n or not bool((index[1:] > index[:-1]).all()):
        raise LowtideValueError(f"index must ascend within [0, {n}); sort it and drop what is twice")
