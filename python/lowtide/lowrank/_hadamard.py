# SPDX-License-Identifier: Apache-2.0
"""Random rotations by signs and Walsh-Hadamard transforms, of which some coordinates are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowtide import _core, random
from lowtide._arrays import is_torch
from lowtide.errors import LowtideValueError
from lowtide.lowrank._dct_length import check_length
from lowtide.lowrank._projection import check_side
from lowtide.lowrank._subspaces import _check_count, _matrix

#: Streams of the signs and of the choice, apart from those of sketches (0) and Gaussian rows (1).
SIGNS, CHOICE = 2, 3


@dataclass(frozen=True)
class RandomHadamard:
    """A subsampled randomized Hadamard transform P (r x d) that is its address and nothing else (Ailon and Chazelle 2009;
    Tropp 2011): random signs D, the Walsh-Hadamard matrix H, r of its d coordinates, all from ``lowtide.random`` at
    (seed, step, slots 2 and 3, param).

    Products cost d log2(d) additions a line whatever the rank, and no row of P is ever formed. Rows are orthonormal for
    every d: a length that is no power of two is not padded but transformed in two overlapping spans, each with signs of its
    own (:func:`lowtide.ops.hadamard`).

    Args:
        rank: rows of P, >= 1; clamped to d.
        orthonormal: rows of length 1, a projector for GaLore's kind of methods. Otherwise rows are longer by ``sqrt(d / r)``,
            so that lengths are kept on average as by :class:`RandomProjection` (APOLLO).

    >>> import numpy as np, lowtide as lt
    >>> G = np.ones((3, 768), dtype=np.float32)
    >>> P = lt.lowrank.RandomHadamard(rank=64)
    >>> B = P.basis(G, side="right", seed=0)
    >>> bool(np.abs(B @ B.T - np.eye(64)).max() < 1e-6), P.project(G, side="right", seed=0).shape
    (True, (3, 64))
    """

    rank: int
    orthonormal: bool = True

    def __post_init__(self) -> None:
        _check_count(self.rank, "rank", 1)

    def basis(
        self, G: Any, *, side: str, prev: Any = None, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """P whole: float32, r x d, of the array type of ``G``, of which only the shape matters. ``prev`` is not used."""
        check_side(side)
        dim = _matrix(G).shape[1 if side == "right" else 0]
        count = min(self.rank, dim)
        if is_torch(G):
            import torch

            eye: Any = torch.eye(count)
        else:
            eye = np.eye(count, dtype=np.float32)
        return self.project_back(eye, side="right", dim=dim, seed=seed, step=step, param=param)

    def project(self, G: Any, *, side: str, seed: int = 0, step: int = 0, param: int = 0) -> Any:
        """``G Pᵀ`` (right, m x r) or ``P G`` (left, r x n), float32.

        Args:
            G: m x n, float32 (torch: also bfloat16).
            side: ``"right"`` (d = n) or ``"left"`` (d = m).
        """
        check_side(side)
        G = _matrix(G)
        columns = side == "left"
        dim = check_length(int(G.shape[0 if columns else 1]))
        signs, index = self._drawn(dim, (seed, step, param), is_torch(G))
        if is_torch(G):
            from lowtide import ops

            R: Any = ops.hadamard(G, dim=0 if columns else 1, signs=signs, index=index)
        else:
            R = _core.fwht_forward(np.ascontiguousarray(G), signs, index, columns)
        return self._scaled(R, dim)

    def project_back(
        self, R: Any, *, side: str, dim: int, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """``R P`` (right, m x dim) or ``Pᵀ R`` (left, dim x n), float32."""
        check_side(side)
        R = _matrix(R)
        columns = side == "left"
        count = min(self.rank, check_length(dim))
        if R.shape[0 if columns else 1] != count:
            raise LowtideValueError(
                f"R must have {count} {'rows' if columns else 'columns'}, the rank, got shape {tuple(R.shape)}"
            )
        signs, index = self._drawn(dim, (seed, step, param), is_torch(R))
        if is_torch(R):
            from lowtide import ops

            G: Any = ops.hadamard_back(R.float(), dim, dim=0 if columns else 1, signs=signs, index=index)
        else:
            G = _core.fwht_inverse(np.ascontiguousarray(R), signs, index, columns, dim)
        return self._scaled(G, dim)

    def _drawn(self, dim: int, address: tuple[int, int, int], torch_arrays: bool) -> tuple[Any, Any]:
        """The signs (spans x d) and which coordinates are kept (int32, ascending)."""
        seed, step, param = address
        like = "torch" if torch_arrays else "numpy"
        spans = 1 if dim & (dim - 1) == 0 else 2
        signs = random.sample(
            (spans, dim), seed=seed, step=step, slot=SIGNS, param=param, dist="rademacher", like=like
        )
        keys = random.sample(dim, seed=seed, step=step, slot=CHOICE, param=param)
        index = np.sort(np.argsort(keys, kind="stable")[: self.rank]).astype(np.int32)
        if torch_arrays:
            import torch

            return signs, torch.from_numpy(index)
        return signs, index

    def _scaled(self, x: Any, dim: int) -> Any:
        if not self.orthonormal and self.rank < dim:
            x *= np.float32(np.sqrt(dim / self.rank)).item()
        return x
