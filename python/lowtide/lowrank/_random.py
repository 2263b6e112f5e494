# SPDX-License-Identifier: Apache-2.0
"""Random projections that are drawn when they are used and never stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowtide import random
from lowtide.errors import LowtideValueError
from lowtide.lowrank._projection import check_side, matmul
from lowtide.lowrank._subspaces import _check_count, _matrix

#: Rows of P that exist at a time. No result depends on it but the last bits of :meth:`RandomProjection.project_back`.
TILE = 128
#: Keeps these words apart from the sketches of the refresh at the same seed, step and parameter.
SLOT = 1
KINDS = ("gaussian", "rademacher")


@dataclass(frozen=True)
class RandomProjection:
    """A random projection P (r x d, entries of variance 1/r) that is its address and nothing else.

    Element (i, j) is ``z[i d + j] / sqrt(r)`` of ``lowtide.random`` at (seed, step, slot 1, param), so that every
    replica, thread count and instruction set draws the same P. Products draw it in tiles of 128 rows. ``E[PᵀP] = I``:
    lengths are kept on average (Johnson and Lindenstrauss), rows are not orthonormal. APOLLO (Zhu et al. 2024, arXiv
    2412.05270) and Flora (Hao et al. 2024, arXiv 2402.03293) use the Gaussian one.

    Args:
        rank: rows of P, >= 1. It may exceed the dimensions of G.
        kind: ``"gaussian"`` or ``"rademacher"`` (signs; Achlioptas 2003): the same guarantees, cheaper to draw.

    >>> import numpy as np, lowtide as lt
    >>> G = np.ones((3, 8), dtype=np.float32)
    >>> P = lt.lowrank.RandomProjection(rank=4)
    >>> R = P.project(G, side="right", seed=0)
    >>> bool(np.array_equal(R, lt.lowrank.project(G, P.basis(G, side="right", seed=0), "right")))
    True
    """

    rank: int
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        _check_count(self.rank, "rank", 1)
        if self.kind not in KINDS:
            raise LowtideValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def basis(
        self, G: Any, *, side: str, prev: Any = None, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """P whole: float32, r x d, of the array type of ``G``, of which only the shape matters. ``prev`` is not used."""
        check_side(side)
        dim = _matrix(G).shape[1 if side == "right" else 0]
        return self._rows(G, 0, self.rank, dim, (seed, step, param))

    def project(self, G: Any, *, side: str, seed: int = 0, step: int = 0, param: int = 0) -> Any:
        """``G Pᵀ`` (right, m x r) or ``P G`` (left, r x n), float32; the bits of a product with :meth:`basis`."""
        check_side(side)
        G = _matrix(G)
        right = side == "right"
        if self.rank <= TILE:
            rows = self._rows(G, 0, self.rank, G.shape[1 if right else 0], (seed, step, param))
            return matmul(G, rows, tb=True) if right else matmul(rows, G)
        out = _empty(G, (G.shape[0], self.rank) if right else (self.rank, G.shape[1]))
        for first in range(0, self.rank, TILE):
            last = min(first + TILE, self.rank)
            rows = self._rows(G, first, last, G.shape[1 if right else 0], (seed, step, param))
            if right:
                out[:, first:last] = matmul(G, rows, tb=True)
            else:
                out[first:last] = matmul(rows, G)
        return out

    def project_back(
        self, R: Any, *, side: str, dim: int, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """``R P`` (right, m x dim) or ``Pᵀ R`` (left, dim x n), float32."""
        check_side(side)
        R = _matrix(R)
        right = side == "right"
        if R.shape[1 if right else 0] != self.rank:
            raise LowtideValueError(
                f"R must have {self.rank} {'columns' if right else 'rows'}, the rank, got shape {tuple(R.shape)}"
            )
        out = _empty(R, (R.shape[0], dim) if right else (dim, R.shape[1]))
        out[...] = 0
        for first in range(0, self.rank, TILE):
            last = min(first + TILE, self.rank)
            rows = self._rows(R, first, last, dim, (seed, step, param))
            if right:
                out += matmul(_contiguous(R[:, first:last]), rows)
            else:
                out += matmul(rows, R[first:last], ta=True)
        return out

    def _rows(self, like: Any, first: int, last: int, dim: int, address: tuple[int, int, int]) -> Any:
        """Rows [first, last) of P."""
        seed, step, param = address
        rows = _empty(like, (last - first, dim))
        random.sample(
            seed=seed, step=step, slot=SLOT, param=param, offset=first * dim, dist=self.kind, out=rows
        )
        if self.rank > 1:
            rows *= np.float32(1.0 / np.sqrt(self.rank)).item()
        return rows


def _empty(like: Any, shape: tuple[int, int]) -> Any:
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=np.float32)
    import torch

    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _contiguous(x: Any) -> Any:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
