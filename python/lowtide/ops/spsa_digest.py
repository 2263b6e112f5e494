# SPDX-License-Identifier: Apache-2.0
"""Digest of weights for replicas and run logs."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError
from lowtide.ops._common import fake
from lowtide.ops._cuda import native

_op = torch.ops.lowtide


def spsa_digest(w: Tensor, offset: int = 0) -> Tensor:
    """``sum(mix64(bits(w[i]) + (offset + i) * stride)) mod 2**64``: the order of the sum does not matter.

    ``stride`` is 0x9E3779B97F4A7C15, ``mix64`` Stafford's variant 13; any changed element changes the digest. Digests of
    shards add up, modulo 2**64, to that of the whole.

    Args:
        w: CPU or CUDA tensor of any dtype with elements of 1, 2, 4 or 8 bytes; the latter count as two elements of 4, low half
            first. Elements are numbered in C order (a tensor that is not contiguous is copied).
        offset: global index of the first element, in elements of ``w``.

    Returns:
        int64 tensor with no dimensions: the digest as a two's complement number.

    Raises:
        LowtideTypeError: not a CPU tensor of such elements. LowtideValueError: a bad offset.
    """
    if not isinstance(w, Tensor) or w.element_size() not in (1, 2, 4, 8) or not native(w.device):
        raise LowtideTypeError(
            "w must be a CPU tensor of 1-, 2-, 4- or 8-byte elements, got "
            + (f"{w.dtype} on {w.device}" if isinstance(w, Tensor) else type(w).__name__)
        )
    offset = check_uint(offset, "offset", 61)
    w = w.detach().contiguous()
    if w.element_size() == 8:
        w, offset = w.reshape(-1).view(torch.int32), 2 * offset
    return _op.spsa_digest(w, offset)


@fake("lowtide::spsa_digest")
def _(w: Tensor, *_: object) -> Tensor:
    return w.new_empty((), dtype=torch.int64)
