# SPDX-License-Identifier: Apache-2.0
"""Subspaces of cosines: nothing is stored but which ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import check_array, is_torch
from lowtide.errors import LowtideValueError
from lowtide.lowrank._dct_length import check_length
from lowtide.lowrank._projection import check_side
from lowtide.lowrank._subspaces import _check_count, _matrix

_POWERS = ("l1", "l2")


@dataclass(frozen=True)
class DCTBasis:
    """Some rows of the orthonormal DCT-II matrix of size ``dim``: a basis r x d that is never formed.

    :func:`lowtide.lowrank.project`, :func:`project_back` and :func:`energy` take it as they take a matrix, and run the
    fast transform: n log n work a row whatever the rank.

    Attributes:
        index: int32, ascending: which cosines (0 is the mean).
        dim: d.
    """

    index: Any
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """(r, d)."""
        return int(self.index.shape[0]), self.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the indices."""
        return int(self.index.nbytes)

    def project(self, G: Any, side: str) -> Any:
        """See :func:`lowtide.lowrank.project`."""
        columns = _columns(G, side, self.dim, "G")
        if is_torch(G):
            from lowtide import ops

            return ops.dct(G, dim=0 if columns else 1, index=self.index)
        return _core.dct_forward(np.ascontiguousarray(G), self._array(), columns)

    def project_back(self, R: Any, side: str) -> Any:
        """See :func:`lowtide.lowrank.project_back`."""
        columns = _columns(R, side, self.shape[0], "R")
        if is_torch(R):
            from lowtide import ops

            return ops.idct(R.float(), self.dim, dim=0 if columns else 1, index=self.index)
        low = np.ascontiguousarray(R)
        return _core.dct_inverse(low, self._array(), columns, self.dim)

    def dense(self) -> Any:
        """The rows themselves, float32, r x d."""
        eye = np.eye(self.shape[0], dtype=np.float32)
        rows = _core.dct_inverse(eye, self._array(), False, self.dim)
        if is_torch(self.index):
            import torch

            return torch.from_numpy(rows)
        return rows

    def _array(self) -> Any:
        index = self.index.numpy() if is_torch(self.index) else self.index
        check_array(index, "index", np.int32)
        return index


def _columns(x: Any, side: str, want: int, name: str) -> bool:
    check_side(side)
    _matrix(x)
    at = 1 if side == "right" else 0
    if len(x.shape) != 2 or x.shape[at] != want:
        raise LowtideValueError(
            f"{name} must have {want} {'columns' if at else 'rows'} for side={side!r} of this basis, got shape "
            f"{tuple(x.shape)}"
        )
    return side == "left"


@dataclass(frozen=True)
class DCT:
    """The cosines in which the gradient is largest (DCT-AdamW, arXiv 2505.17967, §3): no factorization, and a basis
    of r integers.

    The paper chooses columns of its DCT-3 matrix or rows of it (``makhoul``), which are different bases; these are
    the rows, the DCT-II that a fast transform computes.

    Args:
        rank: cosines to choose, >= 1; clamped to d.
        power: what ranks a cosine: ``"l1"``, the sum of its coefficients' magnitudes over the other side of the
            gradient (the paper's), or ``"l2"``, their energy: the best choice of r cosines.
    """

    rank: int
    power: str = "l1"

    def __post_init__(self) -> None:
        _check_count(self.rank, "rank", 1)
        if self.power not in _POWERS:
            raise LowtideValueError(f"power must be one of {', '.join(_POWERS)}, got {self.power!r}")

    def basis(
        self, G: Any, *, side: str, prev: Any = None, seed: int = 0, step: int = 0, param: int = 0
    ) -> DCTBasis:
        """The chosen cosines. Equal ones are taken from the low frequencies up.

        ``prev``, ``seed``, ``step`` and ``param`` are accepted for the common interface and not used.

        Args:
            G: m x n, float32 (torch: also bfloat16).
            side: ``"right"`` (d = n) or ``"left"`` (d = m).

        Raises:
            LowtideValueError: a bad argument, or inf or NaN in ``G``.
        """
        check_side(side)
        G = _matrix(G)
        columns, square = side == "left", self.power == "l2"
        dim = check_length(G.shape[0 if columns else 1])
        if is_torch(G):
            import torch

            from lowtide import ops

            power = ops.dct_power(G, dim=0 if columns else 1, square=square).numpy()
        else:
            power = _core.dct_power(np.ascontiguousarray(G), columns, square)
        if not np.isfinite(power).all():
            raise LowtideValueError("G is not finite: it holds inf or NaN; skip this step")
        best = np.argsort(-power, kind="stable")[: self.rank]
        index = np.sort(best).astype(np.int32)
        return DCTBasis(torch.from_numpy(index) if is_torch(G) else index, dim)
