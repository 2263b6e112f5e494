# SPDX-License-Identifier: Apache-2.0
"""Leading singular triplets of a matrix by the library's own refresh."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.lowrank import RandomizedSVD


def check_svd(kind: str) -> None:
    """Raises LowtideValueError unless ``kind`` is known."""
    if kind not in ("randomized", "exact"):
        raise LowtideValueError(f"svd must be 'randomized' or 'exact', got {kind!r}")


def singular(G: Tensor, rank: int, kind: str, *, seed: int, param: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triplets U (m, rank), S (rank,), Vh (rank, n) of a float32 matrix.

    ``"randomized"``: a basis of 2 rank rows after three products with GᵀG, then the exact decomposition within it.
    ``"exact"``: LAPACK on the whole.
    """
    if kind == "exact":
        u, s, vh = torch.linalg.svd(G, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    basis = RandomizedSVD(2 * rank, power_iters=3).basis(G, side="right", seed=seed, param=param)
    u, s, vh = torch.linalg.svd(G @ basis.T, full_matrices=False)
    return u[:, :rank], s[:rank], vh[:rank] @ basis
