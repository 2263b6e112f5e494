# SPDX-License-Identifier: Apache-2.0
"""A constraint for weights whose size does not matter, because a normalisation follows: AdamP and SGDP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.norms import total


@dataclass(frozen=True)
class ScaleInvariant:
    """No step along weights that look scale-invariant (AdamP, Heo et al., ICLR 2021, arXiv 2006.08217, algorithm 2). A loss
    that does not depend on the size of a weight has a gradient perpendicular to it, so that is what is tested: first row by row
    (one output channel each), then the matrix as a whole::

        max |cos(g_i, w_i)| < delta / sqrt(size of w_i)   ->   u_i = u_i - <w_i, u_i> / (|w_i| + eps)^2 w_i,  decay times wd_ratio

    Tensors with more than two dimensions are (first, rest); vectors are left alone.

    Attributes:
        delta: of the test, >= 0.
        wd_ratio: what is left of the weight decay of a projected matrix, in [0, 1].
        eps: guards the norms, > 0.
    """

    delta: float = 0.1
    wd_ratio: float = 0.1
    eps: float = 1e-8

    nbytes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta < math.inf:
            raise LowtideValueError(f"delta must be a finite number >= 0, got {self.delta!r}")
        if not 0.0 <= self.wd_ratio <= 1.0:
            raise LowtideValueError(f"wd_ratio must be in [0, 1], got {self.wd_ratio!r}")
        if not 0.0 < self.eps < math.inf:
            raise LowtideValueError(f"eps must be a finite number > 0, got {self.eps!r}")

    def holds(self, p: Tensor) -> bool:
        """See :class:`~lowtide.optim.Constraint`."""
        shape = weight_store.shape(p)
        return len(shape) > 1 and shape.numel() > 0

    def digest(self, p: Tensor) -> str:
        """See :class:`~lowtide.optim.Constraint`."""
        return f"scale-invariant {self.delta!r} {self.wd_ratio!r} {self.eps!r}"

    def of_gradient(self, p: Tensor, grad: Tensor) -> Tensor:
        """See :class:`~lowtide.optim.Constraint`."""
        return grad

    def of_update(self, p: Tensor, update: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """See :class:`~lowtide.optim.Constraint`."""
        from lowtide import ops

        w = (weight_store.dense(p) if weight_store.is_quantized(p) else p.detach()).reshape(update.shape)
        rows = w.shape[0]
        dots = [ops.row_dots(x, y, rows) for x, y in ((grad, w), (grad, grad), (w, w))]
        for by in (dots, [torch.tensor([total(d)], dtype=torch.float64) for d in dots]):
            gw, gg, ww = by
            cosine = gw.abs() / (gg.sqrt().clamp_min(self.eps) * ww.sqrt().clamp_min(self.eps))
            if float(cosine.max()) < self.delta / math.sqrt(w.numel() // by[0].numel()):
                along = ops.row_dots(w, update, rows)
                if ww.numel() == 1:
                    along = torch.tensor([total(along)], dtype=torch.float64)
                share = (along / (ww.sqrt() + self.eps).square()).float().expand(rows).contiguous()
                ops.shear_rows_(update, share, w)
                return update, self.wd_ratio
        return update, 1.0
