# SPDX-License-Identifier: Apache-2.0
"""Saved moments of another number of processes, or of none, in the layout of this optimizer (:mod:`lowtide.optim.shards`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.ops.optim import STATE_BLOCK
from lowtide.optim import weights as weight_store
from lowtide.optim.shards import Rows, is_distributed, windows
from lowtide.quant._format import group_count, row_bytes

State = dict[str, Any]


def fit(want: State, entry: State, p: Tensor, bits: int) -> State:
    """The saved state ``entry`` of ``p`` with its tensors laid out as in the fresh state ``want``, bit for bit. What does not fit stays
    as it is, for :func:`lowtide.optim.saved.check_saved` to refuse. All processes that share ``p`` must call this together.

    Args:
        want, entry: by name. p: the parameter. bits: of the codes of its moments, if it has any.
    """
    shape = weight_store.shape(p)
    if want.get("side") == "right":
        shape = torch.Size((shape[0], want["rank"]))
    fitted = dict(entry)
    for name, like in want.items():
        got = entry.get(name)
        if not isinstance(like, Tensor) or not isinstance(got, Tensor) or _alike(got, like):
            continue
        if name.startswith("basis") or got.dtype != like.dtype:
            continue
        if not name.endswith((".codes", ".absmax")) and got.shape != like.shape:
            continue
        per = bits if name.endswith(".codes") else -bits if name.endswith(".absmax") else 0
        whole: Tensor = got.full_tensor() if is_distributed(got) else got  # type: ignore[attr-defined]
        flat = _flat(whole, shape, per)
        if flat is not None:
            fitted[name] = _laid_out(flat, like, p, shape, per)
    return fitted


def _alike(got: Tensor, like: Tensor) -> bool:
    if is_distributed(got) != is_distributed(like) or got.shape != like.shape:
        return False
    a: Any = got
    b: Any = like
    return not is_distributed(got) or (a.placements == b.placements and a.device_mesh == b.device_mesh)


def _size(count: int, per: int) -> int:
    """Entries for so many elements from the start of a block: codes of ``per`` bits, absmax of codes of ``-per`` bits, or numbers."""
    if per == 0:
        return count
    return row_bytes(count, per) if per > 0 else group_count(count, STATE_BLOCK[-per])


def _flat(whole: Tensor, shape: torch.Size, per: int) -> Tensor | None:
    """A moment of this shape without windows, flat; None where ``whole`` is none."""
    size = _size(shape.numel(), per)
    if whole.dim() != 2 or per == 0:
        return whole.reshape(-1) if whole.numel() == size else None
    parts = windows(shape, whole.shape[0])
    if whole.shape[1] != _size(max(end - begin for begin, end in parts), per):
        return None
    flat = whole.new_zeros(size)
    for (begin, end), row in zip(parts, whole, strict=True):
        count = _size(end - begin, per)
        flat[_size(begin, per) : _size(begin, per) + count] = row[:count]
    return flat


def _laid_out(flat: Tensor, like: Tensor, p: Tensor, shape: torch.Size, per: int) -> Tensor:
    if not is_distributed(like):
        return flat.reshape(like.shape)
    rows = Rows.of(p).like(shape)
    begin, end = (rows.start, rows.stop) if per == 0 else rows.window
    part = flat[_size(begin, per) : _size(begin, per) + _size(end - begin, per)]
    here: Any = like
    out = torch.zeros_like(here.to_local()).reshape(-1)
    out[: part.numel()] = part
    return rows.wrap(out.reshape(here.to_local().shape), like.shape)
