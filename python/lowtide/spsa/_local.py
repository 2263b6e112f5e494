# SPDX-License-Identifier: Apache-2.0
"""One process that owns every slot: what an SPSA without ``comm`` uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowtide.spsa._commit import Commit


class Local:
    """The communicator of a single process: a step's codes are its commit.

    Args:
        total: slots of a step.
    """

    def __init__(self, total: int) -> None:
        self.total = total

    def slots(self, step: int) -> list[int]:
        """All of them."""
        return list(range(self.total))

    def exchange(self, step: int, codes: Mapping[int, int]) -> Commit:
        """The commit of these codes."""
        from lowtide.spsa._commit import Commit

        return Commit(step, self.total, tuple(sorted(codes.items())))

    def digest(self, step: int, d: bytes) -> None:
        """Nobody to compare with."""

    def close(self) -> None:
        """Nothing to close."""
