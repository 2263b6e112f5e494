# SPDX-License-Identifier: Apache-2.0
"""Subspaces of rows and columns at once: ``proj_type="full"``, R = A G Bᵀ (r x r)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.bases import Basis, DenseBasis, TwoSidedBasis
from lowtide.optim.refresh import Refresh, RefreshRequest
from lowtide.optim.residuals import Residual, ScaledGradient, ScaledResidual
from lowtide.optim.stores import BasisStore
from lowtide.optim.subspaces import Subspace
from lowtide.optim.transports import Rotate, Transport

LEFT = "basis.left"
_SEED_OF_LEFT = 0x2545F4914F6CDD1D  # the two sides of a square matrix must not draw the same numbers


@dataclass(frozen=True)
class TwoSided:
    """A basis of ``inner``'s kind for each side, in ``state``: "basis" for the right one, "basis.left"."""

    inner: Subspace
    store: BasisStore
    state: dict[str, Any]

    needs_gradient: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False
    two_sided: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    kind: ClassVar[str] = "dense"

    @property
    def needs_prev(self) -> bool:
        """It looks for itself."""
        return False

    def find(self, request: RefreshRequest) -> None:
        """Both are found and kept by :meth:`keep`."""

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """See :class:`Subspace`."""
        for side, name in (("right", "basis"), ("left", LEFT)):
            prev = store.dense(state, name) if self.inner.needs_prev else None
            seed = request.seed if side == "right" else request.seed ^ _SEED_OF_LEFT
            matrix = self.inner.find(dataclasses.replace(request, side=side, prev=prev, seed=seed))
            assert matrix is not None
            store.save(state, matrix, name)

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        right, left = store.load(state), store.load(state, LEFT)
        assert right is not None
        assert left is not None
        return TwoSidedBasis(DenseBasis(right, "right"), DenseBasis(left, "left"))


def check_two_sided(subspace: Subspace, refresh: Refresh, transport: Transport, residual: Residual) -> None:
    """Refuse what ``proj_type="full"`` cannot go with."""
    reason = ""
    if subspace.kind != "dense" or subspace.needs_mean or not subspace.two_sided:
        reason = f"subspace {type(subspace).__name__} has one side"
    elif refresh.needs_prev:
        reason = f"refresh {type(refresh).__name__} compares bases of one side"
    elif isinstance(transport, Rotate):
        reason = "transport Rotate turns moments on one side"
    elif isinstance(residual, (ScaledResidual, ScaledGradient)):
        reason = f"residual {type(residual).__name__} needs channels that are whole"
    if reason:
        raise LowtideValueError(f"proj_type 'full' projects both sides, but {reason}; use 'std'")
