# SPDX-License-Identifier: Apache-2.0
"""Low-rank subspaces of gradients: find a basis, project with it, measure it. NumPy arrays and torch tensors.

A basis B has orthonormal rows and is always stored r x d with its long side last, dense or packed
(INT8/INT4 groups along d, decoded tile by tile, never expanded):

- side ``"right"``: d = n, ``R = G Bᵀ`` (m x r), ``G ~ R B``;
- side ``"left"``: d = m, ``R = B G`` (r x n), ``G ~ Bᵀ R``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowtide._operands import Packed
from lowtide.lowrank._dct import DCT, DCTBasis
from lowtide.lowrank._hadamard import RandomHadamard
from lowtide.lowrank._measures import energy, first_vector_cosine, side_for, similarity
from lowtide.lowrank._projection import matmul, project, project_back
from lowtide.lowrank._random import RandomProjection
from lowtide.lowrank._subspaces import SVD, RandomizedSVD

if TYPE_CHECKING:
    from lowtide.lowrank._linear import LowRankLinear
    from lowtide.lowrank._welore import MatrixPlan, WeLorePlan, welore_compress_, welore_plan

__all__ = [
    "DCT",
    "SVD",
    "DCTBasis",
    "LowRankLinear",
    "MatrixPlan",
    "Packed",
    "RandomHadamard",
    "RandomProjection",
    "RandomizedSVD",
    "WeLorePlan",
    "energy",
    "first_vector_cosine",
    "matmul",
    "project",
    "project_back",
    "side_for",
    "similarity",
    "welore_compress_",
    "welore_plan",
]

# What is made of torch modules is loaded when it is first used: the rest needs NumPy only.
_TORCH = {
    "LowRankLinear": "_linear",
    "MatrixPlan": "_welore",
    "WeLorePlan": "_welore",
    "welore_compress_": "_welore",
    "welore_plan": "_welore",
}


def __getattr__(name: str) -> Any:
    if name in _TORCH:
        return getattr(importlib.import_module(f"lowtide.lowrank.{_TORCH[name]}"), name)
    raise AttributeError(f"module 'lowtide.lowrank' has no attribute {name!r}")
