# SPDX-License-Identifier: Apache-2.0
"""Subspaces of matrices whose rows lie on several processes: projections and norms as sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowtide.ops.matmul import Packed
from lowtide.optim.bases import Basis, DenseBasis, IndexBasis, SeededBasis
from lowtide.optim.norms import channel_energy, total
from lowtide.optim.residuals import Here
from lowtide.optim.shards import Rows
from lowtide.optim.weights import finite


def summed(x: Tensor, rows: Rows) -> Tensor:
    """``x`` added up over the processes that share the rows, in place; the same bits on each."""
    import torch.distributed as dist

    if rows.world > 1:
        dist.all_reduce(x, group=rows.group)
    return x


@dataclass(frozen=True)
class Across(Here):
    """Norms of a matrix of which a process has some rows. Per-channel ones of columns are sums over processes; those of rows
    are here, and their totals are such sums."""

    rows: Rows
    side: str

    def energy(self, grad: Tensor, side: str) -> Tensor:
        """See :class:`~lowtide.optim.residuals.Here`."""
        energy = channel_energy(grad, side)
        return summed(energy, self.rows) if side == "left" else energy

    def total(self, energy: Tensor) -> float:
        """See :class:`~lowtide.optim.residuals.Here`."""
        here = total(energy)
        if self.side == "left":
            return here
        return float(summed(torch.tensor(here, dtype=torch.float64, device=energy.device), self.rows))

    def finite(self, grad: Tensor) -> bool:
        """See :class:`~lowtide.optim.residuals.Here`."""
        bad = torch.tensor(int(not finite(grad)), device=grad.device)
        return int(summed(bad, self.rows)) == 0


@dataclass(frozen=True)
class RowsOfBasis:
    """A left projection (d = rows) of which each process applies the columns that belong to its rows; R is the sum."""

    inner: Basis
    rows: Rows

    @property
    def reads_all(self) -> bool:
        """See :class:`~lowtide.optim.bases.Basis`."""
        return self.inner.reads_all

    @property
    def orthonormal(self) -> bool:
        """See :class:`~lowtide.optim.bases.Basis`: R is of more than the rows that are here, so that no norm of theirs compares."""
        return False

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """See :class:`~lowtide.optim.bases.Basis`: those of other processes are not here."""
        return None

    def down(self, grad: Tensor) -> Tensor:
        """The whole R (r x n), on every process."""
        if isinstance(self.inner, IndexBasis):
            here, at = self._chosen_here
            weights = None if self.inner.weights is None else self.inner.weights[here]
            r = torch.zeros(self.inner.indices.numel(), grad.shape[1], device=grad.device)
            r[here] = IndexBasis(at, grad.shape[0], "left", weights).down(grad)
        else:
            r = self._dense.down(grad)
        return summed(r, self.rows)

    def up(self, r: Tensor) -> Tensor:
        """The rows of this process."""
        if isinstance(self.inner, IndexBasis):
            here, at = self._chosen_here
            weights = None if self.inner.weights is None else self.inner.weights[here]
            first, last = self.rows.rows
            return IndexBasis(at, last - first, "left", weights).up(r[here])
        return self._dense.up(r)

    def add_(self, x: Tensor, r: Tensor) -> None:
        """See :class:`~lowtide.optim.bases.Basis`."""
        x += self.up(r)

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """See :class:`~lowtide.optim.bases.Basis`."""
        back = self.up(r)
        return torch.sub(grad, back, out=back)

    @cached_property
    def _chosen_here(self) -> tuple[Tensor, Tensor]:
        """Which of the indices are rows of this process (bool), and which rows of it they are (int32)."""
        assert isinstance(self.inner, IndexBasis)
        first, last = self.rows.rows
        index = self.inner.indices
        here = (index >= first) & (index < last)
        return here, index[here] - first

    @cached_property
    def _dense(self) -> DenseBasis:
        """r x (rows of this process). A drawn projection is formed for the moment: r x d."""
        first, last = self.rows.rows
        matrix: Any
        if isinstance(self.inner, SeededBasis):
            like = torch.zeros(()).expand(self.inner.dim, 1)
            matrix = self.inner.projection.basis(like, side="left", **self.inner.address)
        else:
            assert isinstance(self.inner, DenseBasis)
            matrix = self.inner.matrix
        if isinstance(matrix, Packed):
            from lowtide.lowrank._projection import dense

            matrix = dense(matrix, "basis")
        return DenseBasis(matrix[:, first:last].contiguous(), "left")
