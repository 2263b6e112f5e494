# SPDX-License-Identifier: Apache-2.0
"""What the constructors of several methods share."""

from __future__ import annotations

from lowtide.errors import LowtideValueError
from lowtide.optim.subspaces import (
    ExactSVD,
    RandomHadamard,
    RandomizedSVD,
    RandomOrthonormal,
    RandomRademacher,
    Subspace,
)

Betas = tuple[float, float]


def svd_of(kind: str, *, warm_start: bool = True) -> ExactSVD | RandomizedSVD:
    """The subspace that an argument ``svd`` names."""
    if kind not in ("randomized", "exact"):
        raise LowtideValueError(f"svd must be 'randomized' or 'exact', got {kind!r}")
    return ExactSVD() if kind == "exact" else RandomizedSVD(warm_start=warm_start)


def check_compat(compat: str | None, known: str) -> None:
    """Refuse an argument ``compat`` that is not None or the one library there is."""
    if compat not in (None, known):
        raise LowtideValueError(f"compat must be None or {known!r}, got {compat!r}")


def projection_of(proj: str, svd: str) -> Subspace:
    """The subspace that an argument ``proj`` of GaLore's kind of methods names; ``svd`` as for :func:`svd_of`."""
    kinds: dict[str, Subspace] = {
        "svd": svd_of(svd),
        "random": RandomOrthonormal(),
        "hadamard": RandomHadamard(),
        "rademacher": RandomRademacher(),
    }
    if proj not in kinds:
        raise LowtideValueError(f"proj must be one of {', '.join(kinds)}, got {proj!r}")
    return kinds[proj]
