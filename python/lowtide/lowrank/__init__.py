# SPDX-License-Identifier: Apache-2.0
"""Low-rank subspaces of gradients: find a basis, project with it, measure it. NumPy arrays and torch tensors.

A basis B has orthonormal rows and is always stored r x d with its long side last, dense or packed
(INT8/INT4 groups along d, decoded tile by tile, never expanded):

- side ``"right"``: d = n, ``R = G Bᵀ`` (m x r), ``G ~ R B``;
- side ``"left"``: d = m, ``R = B G`` (r x n), ``G ~ Bᵀ R``.
"""

from __future__ import annotations

from lowtide._operands import Packed
from lowtide.lowrank._dct import DCT, DCTBasis
from lowtide.lowrank._measures import energy, first_vector_cosine, side_for, similarity
from lowtide.lowrank._projection import matmul, project, project_back
from lowtide.lowrank._random import RandomProjection
from lowtide.lowrank._subspaces import SVD, RandomizedSVD

__all__ = [
    "DCT",
    "SVD",
    "DCTBasis",
    "Packed",
    "RandomProjection",
    "RandomizedSVD",
    "energy",
    "first_vector_cosine",
    "matmul",
    "project",
    "project_back",
    "side_for",
    "similarity",
]
