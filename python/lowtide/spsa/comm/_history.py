# SPDX-License-Identifier: Apache-2.0
"""The commits that are decided, with a chained hash: who agrees on one hash agrees on all steps before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import Codec
from lowtide.spsa._commit import Commit

#: Bytes of a chain hash.
CHAIN = 16


def root(run_id: bytes) -> bytes:
    """Chain hash before step 0."""
    return hashlib.blake2b(b"lowtide.spsa.chain" + run_id, digest_size=CHAIN).digest()


class History:
    """Commits of the steps ``first``, ``first`` + 1, ...; ``first`` > 0 for a run continued from a snapshot.

    Args:
        run_id: 16 bytes. codec: how codes are written.
        first: step of the first commit that will be appended. chain: hash of all commits before it.
    """

    def __init__(self, run_id: bytes, codec: Codec, first: int = 0, chain: bytes = b"") -> None:
        if first and len(chain) != CHAIN:
            raise LowtideValueError(f"chain must be {CHAIN} bytes where first is not 0, got {len(chain)}")
        self.codec, self.first = codec, first
        self.commits: list[Commit] = []
        self._chains = [chain if first else root(run_id)]

    @property
    def step(self) -> int:
        """The next step: this one is not decided yet."""
        return self.first + len(self.commits)

    @property
    def chain(self) -> bytes:
        """Hash of everything decided."""
        return self._chains[-1]

    def append(self, commit: Commit) -> None:
        """Append the commit of :attr:`step`."""
        if commit.step != self.step:
            raise LowtideValueError(f"commit must be of step {self.step}, got step {commit.step}")
        record = commit.to_bytes(self.codec)
        self.commits.append(commit)
        self._chains.append(hashlib.blake2b(self.chain + record, digest_size=CHAIN).digest())

    def extend(self, commits: Iterable[Commit]) -> None:
        """Append several."""
        for commit in commits:
            self.append(commit)

    def at(self, step: int) -> Commit | None:
        """The commit of a step; None if it is not decided or before the beginning."""
        i = step - self.first
        return self.commits[i] if 0 <= i < len(self.commits) else None

    def chain_at(self, step: int) -> bytes | None:
        """Hash of all commits before ``step``; None if unknown."""
        i = step - self.first
        return self._chains[i] if 0 <= i < len(self._chains) else None

    def cut(self, step: int) -> None:
        """Forget the steps from ``step`` on: they were of another history."""
        keep = max(0, step - self.first)
        del self.commits[keep:]
        del self._chains[keep + 1 :]

    def ladder(self) -> tuple[tuple[int, bytes], ...]:
        """(step, hash) at the head, 1, 2, 4, ... steps before it, and at the beginning."""
        last = len(self.commits)
        rungs = {0, last}
        back = 1
        while back < last:
            rungs.add(last - back)
            back *= 2
        return tuple((self.first + i, self._chains[i]) for i in sorted(rungs, reverse=True))

    def common(self, ladder: Sequence[tuple[int, bytes]]) -> int | None:
        """The latest step of a ladder up to which it is this history; None if there is none."""
        return max((step for step, chain in ladder if self.chain_at(step) == chain), default=None)
