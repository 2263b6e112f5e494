# SPDX-License-Identifier: Apache-2.0
"""How good a basis is, how far it moved, and which side to project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowtide._arrays import is_torch
from lowtide._operands import is_packed
from lowtide.errors import LowtideValueError
from lowtide.lowrank._projection import dense, matmul, project

_PROJ_TYPES = ("std", "reverse_std", "right", "left")


def _square_sum(x: Any) -> float:
    if is_torch(x):
        return float(x.detach().double().square().sum())
    return float(np.square(x, dtype=np.float64).sum())


def energy(G: Any, basis: Any, side: str) -> float:
    """Captured energy ``||R||_F² / ||G||_F²`` with ``R = project(G, basis, side)``: 1 if nothing is lost.

    Meaningful for (nearly) orthonormal rows. A zero gradient has nothing to lose: 1.0.

    >>> import numpy as np, lowtide as lt
    >>> G = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> B = lt.lowrank.RandomizedSVD(1).basis(G, side="right")
    >>> round(lt.lowrank.energy(G, B, "right"), 5)
    1.0
    """
    whole = _square_sum(G)
    captured = _square_sum(project(G, basis, side))
    return captured / whole if whole > 0 else 1.0


def _check_pair(basis: Any, prev: Any) -> None:
    if len(basis.shape) != 2 or len(prev.shape) != 2 or basis.shape[1] != prev.shape[1]:
        raise LowtideValueError(
            f"basis and prev must be r x d with the same d, got {tuple(basis.shape)} and {tuple(prev.shape)}"
        )
    if basis.shape[0] == 0 or prev.shape[0] == 0:
        raise LowtideValueError("basis and prev must have at least one row")


def similarity(basis: Any, prev: Any) -> float:
    """Overlap of two subspaces, ``||B Bprevᵀ||_F² / r``: 1 the same, 0 orthogonal; about r / d by chance.

    The mean squared cosine of the principal angles. Unlike :func:`first_vector_cosine` it does not change with
    the sign, the order or any rotation of the rows.

    Args:
        basis, prev: r x d, dense or packed.
    """
    _check_pair(basis, prev)
    if is_packed(basis) and is_packed(prev):
        basis = dense(basis, "basis")  # one of them, so that the other stays packed
    return _square_sum(matmul(basis, prev, tb=True)) / int(basis.shape[0])


def first_vector_cosine(basis: Any, prev: Any) -> float:
    """Cosine of the first rows, signed: what q-galore-torch compares with its threshold.

    The sign of a singular vector is arbitrary, so that a stable subspace may look opposite; see
    :func:`similarity`.
    """
    _check_pair(basis, prev)
    a, b = (np.asarray(dense(x, "basis")[0], dtype=np.float64) for x in (basis, prev))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def side_for(shape: Sequence[int], proj_type: str = "std") -> str:
    """The side that GaLore's ``proj_type`` projects: ``"right"`` or ``"left"``.

    Args:
        shape: (m, n) of the gradient.
        proj_type: ``"std"``: right if m >= n, else left (the smaller basis); ``"reverse_std"``: the opposite;
            ``"right"``, ``"left"``: that one.

    >>> import lowtide as lt
    >>> lt.lowrank.side_for((768, 2048)), lt.lowrank.side_for((768, 768))
    ('left', 'right')
    """
    if len(shape) != 2:
        raise LowtideValueError(
            f"shape must be (m, n), got {tuple(shape)}; reshape the gradient to two dimensions"
        )
    if proj_type not in _PROJ_TYPES:
        hint = "; for two-sided projection project one side, then the other" if proj_type == "full" else ""
        raise LowtideValueError(f"proj_type must be one of {', '.join(_PROJ_TYPES)}, got {proj_type!r}{hint}")
    if proj_type in ("right", "left"):
        return proj_type
    tall = shape[0] >= shape[1]
    return "right" if tall == (proj_type == "std") else "left"
