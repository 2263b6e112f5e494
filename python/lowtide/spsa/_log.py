# SPDX-License-Identifier: Apache-2.0
"""Reading a run log: every commit of a run, in a few bytes a step, checked before anything is believed.

A log ends where its writer stopped, so an end in the middle of a frame is normal: the log is cut at the last good
frame, and that is said. Damage anywhere else is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lowtide.errors import LowtideRuntimeError
from lowtide.spsa._codec import ExponentRule
from lowtide.spsa._commit import Commit
from lowtide.spsa._frames import Batch, Digest, End, Frame, Member, Snap, unpack_frame
from lowtide.spsa._header import Header, hyper_of, root
from lowtide.spsa._method import Hyper
from lowtide.spsa._wire import FormatError, Reader, Truncated

#: Bytes of a log, at most.
MAX_LOG = 1 << 32
#: Bytes before the first frame of the file of unfinished steps: the chain hash it continues.
TAIL_HEAD = 16


class LogError(LowtideRuntimeError):
    """A log that cannot be read: names the file, the byte, what is wrong and the remedy."""


class LogWarning(UserWarning):
    """A log was cut at its last good frame."""


@dataclass(frozen=True)
class Cut:
    """Where and why reading stopped before the end of the file; ``lost`` bytes follow."""

    offset: int
    lost: int
    reason: str


class Mark(NamedTuple):
    """A frame, where it begins, and what holds before it."""

    frame: Frame
    offset: int
    chain: bytes
    settings: tuple[float, ...] | None
    step: int


class Step(NamedTuple):
    """One step of a run: what was committed, under which settings."""

    commit: Commit
    hyper: Hyper


def tail_path(path: Path) -> Path:
    """The file beside a log that holds the steps of its unfinished batch."""
    return path.with_name(path.name + ".tail")


def read_bounded(path: Path, most: int = MAX_LOG) -> bytes:
    """The bytes of a file, which may be ``most`` long."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LogError(f"{path}: a log may have {most} bytes at most; this is another file")
    return data


class LogReader:
    """A run log, read and verified whole.

    Args:
        path: the ``.ltlog`` file. Steps of an unfinished batch are read from ``PATH.tail``, if that continues it.
        damage: ``"error"``, or ``"cut"``: treat damage in the middle like an end in the middle.

    Attributes:
        header: of the run. marks: every frame with its place.
        step: the step after the last one. chain: hash of everything read.
        cut: None, or what had to be left out (a :class:`LogWarning` says it too).
        complete: the log was closed by its writer.
        size: bytes of the file that are good. tail: number of marks that came from ``PATH.tail``.

    Raises:
        LogError: not a log, damage, a version unknown here; with the byte and the remedy.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, damage: str = "error") -> None:
        self.path = Path(path)
        tail_file = tail_path(self.path)
        # The tail first: a writer that goes on meanwhile moves its steps into the log, and then they are there twice.
        tail = read_bounded(tail_file) if tail_file.is_file() else b""
        data = read_bounded(self.path)
        self._read(data, tail, damage)

    @classmethod
    def from_bytes(
        cls, data: bytes, *, name: str = "log", tail: bytes = b"", damage: str = "error"
    ) -> LogReader:
        """A log from memory; ``name`` is for messages."""
        reader = cls.__new__(cls)
        reader.path = Path(name)
        reader._read(data, tail, damage)
        return reader

    # ------------------------------------------------------------------ parsing

    def _read(self, data: bytes, tail: bytes, damage: str) -> None:
        self.marks: list[Mark] = []
        self.cut: Cut | None = None
        self.complete, self.tail = False, 0
        try:
            self.header, begin = Header.from_bytes(data)
        except FormatError as error:
            raise LogError(f"{self.path}: at byte {error.offset}: {error}; take another copy") from None
        self.chain, self.step = root(data[:begin]), self.header.first_step
        self._settings: tuple[float, ...] | None = None
        reader = Reader(data, begin)
        self.size = begin
        try:
            self._frames(reader)
        except FormatError as error:
            self._stop(data, error, damage)
        if tail and not self.complete:
            self._continue(tail)
        self._say()

    def _say(self) -> None:
        if self.cut:
            warnings.warn(
                f"{self.path}: cut at byte {self.cut.offset}, before step {self.step}: {self.cut.reason}; "
                f"{self.cut.lost} bytes are left out",
                LogWarning,
                stacklevel=4,
            )

    def _frames(self, reader: Reader) -> None:
        """Frames up to the end of the data; what was good stays when this raises."""
        codec, settings = self.header.the_codec, 2 * self.header.groups
        while reader.left:
            at = reader.pos
            if self.complete:
                raise FormatError("there are bytes behind the end", at)
            frame, chain = unpack_frame(reader, codec, settings, self.chain)
            first = frame.first if isinstance(frame, Batch) else frame.step
            if first != self.step:
                raise FormatError(f"a frame of step {first} where step {self.step} belongs", at)
            mark = Mark(frame, at, self.chain, self._settings, self.step)
            if isinstance(frame, Batch):
                self._settings = self._after(frame, at)
                self.step = frame.end
            self.complete = isinstance(frame, End)
            self.marks.append(mark)
            self.chain, self.size = chain, reader.pos

    def _after(self, batch: Batch, at: int) -> tuple[float, ...]:
        """The settings after a batch; the first step must have all of them."""
        count = 2 * self.header.groups
        if self._settings is None and [c[:2] for c in batch.changes[:count]] != [
            (0, i) for i in range(count)
        ]:
            raise FormatError("the first step lacks a learning rate or weight decay", at)
        values = list(self._settings or [0.0] * count)
        for _, index, value in batch.changes:
            values[index] = value
        return tuple(values)

    def _stop(self, data: bytes, error: FormatError, damage: str) -> None:
        at, lost = self.size, len(data) - self.size
        # A disk that lost power may have written the length of a file but not its bytes.
        torn = isinstance(error, Truncated) or not data[at:].strip(b"\0")
        if not torn and damage != "cut":
            raise LogError(
                f"{self.path}: at byte {error.offset}: {error}; the log is good up to step {self.step}: take another copy, "
                f"or keep that part with lowtide log {self.path} --cut"
            )
        self.cut = Cut(at, lost, "the file ends within a frame" if torn else str(error))

    def _continue(self, tail: bytes) -> None:
        """Steps of the unfinished batch, if the tail continues this log."""
        if tail[:TAIL_HEAD] != self.chain:
            known = {m.chain for m in self.marks}
            if len(tail) > TAIL_HEAD and tail[:TAIL_HEAD] not in known and self.cut is None:
                self.cut = Cut(
                    self.size, len(tail), "its file of unfinished steps (.tail) does not continue it"
                )
            return
        size, before = self.size, len(self.marks)
        reader = Reader(tail, TAIL_HEAD)
        try:
            self._frames(reader)
        except FormatError as error:
            self.cut = Cut(
                size, len(tail) - reader.pos, f"its file of unfinished steps (.tail) is torn: {error}"
            )
        self.size, self.tail = size, len(self.marks) - before

    # ------------------------------------------------------------------ contents

    @property
    def settings(self) -> tuple[float, ...] | None:
        """Learning rates and decays after the last step; None before the first."""
        return self._settings

    def steps(self, upto: int | None = None) -> Iterator[Step]:
        """Every step in order, before step ``upto``."""
        for mark in self.marks:
            if not isinstance(mark.frame, Batch):
                continue
            values = list(mark.settings or (0.0,) * (2 * self.header.groups))
            changes = list(mark.frame.changes)
            hyper = hyper_of(tuple(values))
            for offset, commit in enumerate(mark.frame.commits):
                if upto is not None and commit.step >= upto:
                    return
                if changes and changes[0][0] == offset:
                    while changes and changes[0][0] == offset:
                        _, index, value = changes.pop(0)
                        values[index] = value
                    hyper = hyper_of(tuple(values))
                yield Step(commit, hyper)

    def digests(self) -> dict[int, bytes]:
        """Digests of the weights by the step before which they were taken."""
        marks = (m.frame for m in self.marks)
        return {f.step: f.digest for f in marks if isinstance(f, Digest)}

    def members(self) -> list[Member]:
        """Workers that joined or left, in order."""
        return [m.frame for m in self.marks if isinstance(m.frame, Member)]

    def snapshots(self) -> list[Snap]:
        """Saved states, in order."""
        return [m.frame for m in self.marks if isinstance(m.frame, Snap)]

    def values(self) -> Iterator[tuple[int, list[tuple[int, float]]]]:
        """(step, [(slot, g), ...]) of every step, decoded."""
        codec = self.header.the_codec
        rule = ExponentRule(self.header.codec)
        for step in self.steps():
            decoded = [(slot, codec.decode(code, rule.exponent)) for slot, code in step.commit.codes]
            yield step.commit.step, [(slot, g) for slot, g in decoded if g is not None]
            rule.update([code for _, code in step.commit.codes])
