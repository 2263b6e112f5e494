# SPDX-License-Identifier: Apache-2.0
"""What a low-rank step adds to a matrix, in parts, so that nothing of its size has to be written but the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """The weight moves by ``-lr * factor * (k s(G) + U)``.

    Attributes:
        u: U, fp32, m x n, or None for nothing. With ``index``: the rows (``dim=0``) or columns (``dim=1``) that it names, and
            there the weight moves by U alone.
        factor: a number.
        grad: G, fp32 or bf16, m x n, or None. It may be overwritten where the weight is packed.
        k: fp32, (1, 1), (m, 1) or (1, n); comes with ``grad``.
        sign: s(G) is the sign of G, not G itself.
        index: int32, ascending.
    """

    u: Tensor | None
    factor: float
    grad: Tensor | None = None
    k: Tensor | None = None
    sign: bool = False
    index: Tensor | None = None
    dim: int = 1

    @property
    def whole(self) -> bool:
        """Whether U is all there is."""
        return self.u is not None and self.grad is None and self.index is None

    def dense(self, rows: int, cols: int, *, spoil_gradient: bool = False) -> Tensor:
        """``k s(G) + U`` in one tensor, fp32, rows x cols; in the memory of G where that may be spoilt."""
        from lowtide import ops

        if self.whole:
            assert self.u is not None
            return self.u
        out = self.grad if spoil_gradient else None
        if out is None or out.dtype != torch.float32 or not out.is_contiguous():
            out = torch.zeros(rows, cols)
        ops.combine_(out, alpha=1.0, decay_before=0.0, **self.parts())
        return out

    def parts(self) -> dict[str, Any]:
        """The arguments of :func:`lowtide.ops.combine_`."""
        return {"g": self.grad, "k": self.k, "sign": self.sign, "u": self.u, "index": self.index, "dim": self.dim}  # fmt: skip
