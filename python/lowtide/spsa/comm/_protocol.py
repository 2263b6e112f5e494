# SPDX-License-Identifier: Apache-2.0
"""What an optimizer needs from its communication: slots to evaluate, and one agreed commit a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lowtide.errors import LowtideRuntimeError, LowtideValueError
from lowtide.spsa._commit import Commit

#: Version of the wire protocol; peers of another one are refused.
PROTOCOL = 1


class CommError(LowtideRuntimeError):
    """Communication cannot go on; the message says why and what to do. No commit was applied halfway."""


class DivergedError(CommError):
    """This worker's weights differ from those of the others at ``step``; they agreed up to ``since``.

    The log is the truth: load the base weights (or a snapshot) and replay the log.
    """

    def __init__(self, step: int, since: int) -> None:
        super().__init__(
            f"the digest of the weights at step {step} differs from that of the other workers (it agreed at step {since}): "
            "rebuild them by replaying the log; likely causes are a foreign write to the weights or a fault of the memory"
        )
        self.step, self.since = step, since


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself when it joins: it must be of the same run, and may bring a history.

    Attributes:
        run_id: 16 bytes. codec: name of the codec. rng, manifest, base: digests (at most 32 bytes) of the random
            numbers' self-test, of the parameters' names and shapes, of the weights before step 0.
        first: step of ``commits[0]``; above 0 for a worker that starts from a snapshot.
        chain: hash of the commits before ``first``, 16 bytes (:func:`chain_of`); empty where ``first`` is 0.
        commits: what is in its log already, steps ascending.
    """

    run_id: bytes
    codec: str = "log8"
    rng: bytes = b""
    manifest: bytes = b""
    base: bytes = b""
    first: int = 0
    chain: bytes = b""
    commits: Sequence[Commit] = ()

    def check(self) -> None:
        """Refuse digests of impossible sizes."""
        if len(self.run_id) != 16:
            raise LowtideValueError(f"run_id must be 16 bytes, got {len(self.run_id)}")
        for name in ("rng", "manifest", "base"):
            if len(getattr(self, name)) > 32:
                raise LowtideValueError(f"{name} must be at most 32 bytes, got {len(getattr(self, name))}")

    @property
    def step(self) -> int:
        """Where its history ends: the next step."""
        return self.first + len(self.commits)


@dataclass(frozen=True)
class Joined:
    """What a worker got when it joined.

    Attributes:
        slots_total: slots of a step, as things are now; 0 where nobody works yet.
        start: step up to which the worker's own history is that of the run. Where it is below :attr:`Hello.step`,
            the worker followed another history since: it must go back to ``start`` before it replays.
        commits: the steps from ``start`` on, to replay.
        epoch: number of the leader, counted from 1.
    """

    slots_total: int
    start: int = 0
    commits: tuple[Commit, ...] = ()
    epoch: int = 1


class Comm(Protocol):
    """Communication of one worker. All calls come from one thread; those that wait raise :class:`CommError`."""

    def join(self, hello: Hello) -> Joined:
        """Join the run; what has been decided since comes back and must be applied."""

    def slots(self, step: int) -> list[int]:
        """The slots that this worker evaluates in ``step``; none where the step is decided already."""

    def exchange(self, step: int, codes: dict[int, int]) -> Commit:
        """Give the codes of this worker's slots; wait for the commit of the step."""

    def digest(self, step: int, digest: bytes) -> None:
        """Compare the weights after ``step`` steps with those of the others.

        Raises:
            DivergedError: here or in a later call.
        """

    def close(self) -> None:
        """Leave the run."""


class Local:
    """One process evaluates all slots.

    Args:
        slots: directions of a step.
    """

    def __init__(self, slots: int = 1) -> None:
        if slots < 1:
            raise LowtideValueError(f"slots must be at least 1, got {slots!r}")
        self._total = slots
        self._codec: str | None = None

    def join(self, hello: Hello) -> Joined:
        """Nothing to catch up with."""
        hello.check()
        self._codec = hello.codec
        return Joined(self._total, hello.step)

    def slots(self, step: int) -> list[int]:
        """All of them."""
        return list(range(self._total))

    def exchange(self, step: int, codes: dict[int, int]) -> Commit:
        """The commit of one's own codes; those of no contribution are left out."""
        return commit_of(step, self._total, codes, self._codec or "f32")

    def digest(self, step: int, digest: bytes) -> None:
        """Nobody to compare with."""

    def close(self) -> None:
        """Nothing to close."""


def commit_of(step: int, total: int, codes: dict[int, int], codec: str) -> Commit:
    """The commit of codes by slot, slots ascending, without those of no contribution."""
    from lowtide.spsa._codec import get_codec

    none = get_codec(codec).none
    kept = tuple((slot, codes[slot]) for slot in sorted(codes) if slot < total and codes[slot] != none)
    return Commit(step, total, kept)
