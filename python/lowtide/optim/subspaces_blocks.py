# SPDX-License-Identifier: Apache-2.0
"""Whole matrices as subspaces: some are trained by the rule for a while, the others wait their turn (FRUGAL's block mode)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.bases import Basis, WholeBasis
from lowtide.optim.refresh import RefreshRequest
from lowtide.optim.stores import BasisStore
from lowtide.optim.subspaces import _FromGradient

ORDERS = ("random", "ascending", "descending", "mirror")
_Peers = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Blocks(_FromGradient):
    """Between refreshes each low-rank matrix is active (its subspace is everything) or inactive (nothing, and no moments): FRUGAL's
    block mode (Zmushko et al., ICML 2025, arXiv 2411.07837, section 4). Nothing is kept of a basis.

    Matrices take turns in an endless sequence; at each refresh the next ones become active while their elements fit
    into ``density`` of all, and at least one. The ``rank`` of the groups is not looked at.

    Attributes:
        density: share of the elements of all low-rank matrices, in [0, 1]. 0: none is ever active.
        order: of the sequence: ``"random"``: shuffled anew each round; ``"ascending"``: as in the model; ``"descending"``; or
            ``"mirror"``: there and back.
    """

    density: float = 0.25
    order: str = "random"

    needs_gradient: ClassVar[bool] = False
    varies: ClassVar[bool] = True
    kind: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        if not 0.0 <= self.density <= 1.0:
            raise LowtideValueError(f"density must be in [0, 1], got {self.density!r}")
        if self.order not in ORDERS:
            raise LowtideValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")

    def find(self, request: RefreshRequest) -> None:
        """See :class:`Subspace`: what is active follows from the number of refreshes."""

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """Set the rank to d (active) or 0."""
        active = _active(request.peers, self.density, self.order, request.seed, request.refreshes)
        state["rank"] = request.dim if request.param in active else 0

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return WholeBasis(state["rank"] > 0, state["dim"], state["side"])


@lru_cache(maxsize=4)
def _active(peers: _Peers, density: float, order: str, seed: int, turn: int) -> frozenset[int]:
    """Ids of the matrices that are active between refresh number ``turn`` and the next."""
    budget = density * sum(numel for _, numel in peers)
    active: list[int] = []
    if not budget:
        return frozenset(active)
    at, rounds = 0, 0
    sequence = _round(peers, order, seed, 0)
    for _ in range(turn + 1):
        active, used = [], 0
        while len(active) < len(peers):
            if at == len(sequence):
                rounds += 1
                at, sequence = 0, _round(peers, order, seed, rounds)
            param, numel = sequence[at]
            if active and (param in active or used + numel > budget):
                break
            active.append(param)
            used += numel
            at += 1
    return frozenset(active)


def _round(peers: _Peers, order: str, seed: int, number: int) -> _Peers:
    """One round of the sequence: every matrix once."""
    if order == "random":
        from lowtide import random

        keys = random.sample(len(peers), seed=seed, step=number, slot=4, like="torch")
        return tuple(peers[i] for i in torch.argsort(keys, stable=True).tolist())
    backwards = order == "descending" or (order == "mirror" and number % 2 == 1)
    return peers[::-1] if backwards else peers
