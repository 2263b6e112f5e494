# SPDX-License-Identifier: Apache-2.0
"""Commits: which slots contributed to a step, and with which code. The only input of the state machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import Codec
from lowtide.spsa._wire import FormatError, Reader, varint

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Slots of a step, at most.
MAX_SLOTS = 1 << 16
#: Steps of one record, at most.
MAX_STEPS = 1 << 12
#: Bytes of the packed codes of one record, at most.
MAX_CODES = 1 << 18
#: Steps are below this.
MAX_STEP = 1 << 48


@dataclass(frozen=True)
class Commit:
    """Step ``step`` of ``total`` slots: ``codes`` are (slot, code) pairs, slots ascending; others did not contribute."""

    step: int
    total: int
    codes: tuple[tuple[int, int], ...]

    def check(self, codec: Codec) -> None:
        """Refuse a commit that cannot be written with ``codec``.

        Raises:
            LowtideValueError: a step, slot or code out of range, slots out of order, a code of no contribution.
        """
        if not 0 <= self.step < MAX_STEP:
            raise LowtideValueError(f"step must be in [0, 2**48), got {self.step!r}")
        if not 1 <= self.total <= MAX_SLOTS or codec.size(self.total) > MAX_CODES:
            raise LowtideValueError(f"total must be in [1, {MAX_SLOTS}], got {self.total!r}")
        before = -1
        for slot, code in self.codes:
            if not before < slot < self.total:
                raise LowtideValueError(
                    f"codes must have ascending slots below {self.total}, got slot {slot} after {before}"
                )
            if codec.decode(code) is None:
                raise LowtideValueError(f"slot {slot} has the code of no contribution; leave it out")
            before = slot

    def to_bytes(self, codec: Codec) -> bytes:
        """The record of this one commit, as on the wire and in the log."""
        return pack_commits([self], codec)

    @staticmethod
    def from_bytes(data: bytes, codec: Codec) -> Commit:
        """The commit of a record that holds exactly one.

        Raises:
            FormatError: anything else, with the offset.
        """
        reader = Reader(data)
        commits = unpack_commits(reader, codec)
        reader.done("commit")
        if len(commits) != 1:
            raise FormatError(f"commit: a record of {len(commits)} steps where one belongs")
        return commits[0]


def pack_commits(commits: Sequence[Commit], codec: Codec) -> bytes:
    """The record of consecutive steps with the same number of slots.

    ``varint first step, varint steps, varint slots, codes[steps][slots]``: a slot that did not contribute has
    the codec's code for that.

    Raises:
        LowtideValueError: steps that do not follow each other, or too many.
    """
    if not 1 <= len(commits) <= MAX_STEPS:
        raise LowtideValueError(f"commits must be 1 to {MAX_STEPS}, got {len(commits)}")
    first, total = commits[0].step, commits[0].total
    codes = [codec.none] * (len(commits) * total)
    if codec.size(len(codes)) > MAX_CODES:
        raise LowtideValueError(f"commits must take at most {MAX_CODES} bytes, got {codec.size(len(codes))}")
    for k, commit in enumerate(commits):
        commit.check(codec)
        if commit.step != first + k or commit.total != total:
            raise LowtideValueError("commits must be of consecutive steps with the same number of slots")
        for slot, code in commit.codes:
            codes[k * total + slot] = code
    return varint(first) + varint(len(commits)) + varint(total) + codec.pack(codes)


def unpack_codes(reader: Reader, codec: Codec) -> tuple[int, NDArray[np.uint32]]:
    """The first step of a record and its codes [steps, slots]; the reader is left behind it.

    Raises:
        FormatError: a value out of bounds, a code that does not exist, an end too early.
    """
    first = reader.varint("first step", MAX_STEP - 1)
    steps = reader.varint("number of steps", MAX_STEPS, 1)
    total = reader.varint("number of slots", MAX_SLOTS, 1)
    if first + steps > MAX_STEP:
        raise FormatError(f"first step: {first} and {steps} steps go beyond 2**48", reader.pos)
    size = codec.size(steps * total)
    if size > MAX_CODES:
        raise FormatError(f"codes: {size} bytes, at most {MAX_CODES} are allowed", reader.pos)
    at = reader.pos
    raw = reader.take(size, "codes")
    try:
        return first, codec.unpack(raw, steps * total).reshape(steps, total)
    except LowtideValueError as error:
        raise FormatError(f"codes: {error}", at) from None


def commits_of(first: int, codes: NDArray[np.uint32], codec: Codec) -> list[Commit]:
    """The commits of :func:`unpack_codes`."""
    if codes.shape[1] == 1:  # the common log, without an array a step
        return [
            Commit(first + k, 1, ((0, c),) if c != codec.none else ())
            for k, c in enumerate(codes[:, 0].tolist())
        ]
    commits = []
    for k, row in enumerate(codes):
        slots = np.flatnonzero(row != codec.none)
        pairs = tuple(zip(slots.tolist(), row[slots].tolist(), strict=True))
        commits.append(Commit(first + k, len(row), pairs))
    return commits


def unpack_commits(reader: Reader, codec: Codec) -> list[Commit]:
    """The commits of a record; the reader is left behind it. Raises as :func:`unpack_codes`."""
    return commits_of(*unpack_codes(reader, codec), codec)
