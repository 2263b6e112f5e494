# SPDX-License-Identifier: Apache-2.0
"""Frames of a run log: what follows its header.

    varint size | body: u8 kind, payload | u32 check

``check`` is the CRC32C of the chain hash before the frame, the size and the body, so that a frame fits in one place
only. The chain hash after it is the BLAKE2b-128 of the same bytes. Kinds:

    BATCH   varint changes, (varint steps after the first, varint setting, f64 value)*, commits (see _commit)
    MEMBER  varint step, u8 joins, varint epoch, varint first slot, varint slots, text worker
    DIGEST  varint step, 16 bytes of the weights before that step, 16 bytes: the chain hash before
    SNAP    varint step, text file name, SHA-256 of the file, 16 bytes: the chain hash before
    END     varint step, 16 bytes: the chain hash before

Settings are the learning rates of all groups, then their weight decays; only changes are written.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import Codec
from lowtide.spsa._commit import (
    MAX_SLOTS,
    MAX_STEP,
    MAX_STEPS,
    Commit,
    commits_of,
    pack_commits,
    unpack_codes,
)
from lowtide.spsa._wire import FormatError, Reader, Truncated, crc32c, put_text, varint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH, MEMBER, DIGEST, SNAP, END = range(1, 6)
#: Bytes of a frame's body, at most.
MAX_BODY = 1 << 19
#: Bytes of a frame beside its body, at most.
OVERHEAD = 3 + 4
_MAX_EPOCH = 1 << 48

#: (steps after the batch's first, index of the setting, its new value)
Change: TypeAlias = "tuple[int, int, float]"


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive steps as codes [steps, slots], and the settings that changed on the way."""

    first: int
    codes: NDArray[np.uint32]
    codec: Codec
    changes: tuple[Change, ...] = ()

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + len(self.codes)

    @property
    def commits(self) -> list[Commit]:
        """The commits themselves; codes are kept instead because they are a hundredth of the size."""
        return commits_of(self.first, self.codes, self.codec)


@dataclass(frozen=True)
class Member:
    """A worker joined (with slots first .. first + count - 1) or left before ``step``."""

    step: int
    joins: bool
    epoch: int
    first: int
    count: int
    worker: str


@dataclass(frozen=True)
class Digest:
    """Digest of the weights before ``step``."""

    step: int
    digest: bytes


@dataclass(frozen=True)
class Snap:
    """The state before ``step`` was saved in the file ``name`` beside the log."""

    step: int
    name: str
    sha256: bytes


@dataclass(frozen=True)
class End:
    """The log was closed before ``step``."""

    step: int


Event: TypeAlias = "Member | Digest | Snap | End"
Frame: TypeAlias = "Batch | Event"


def _batch(commits: Sequence[Commit], changes: Sequence[Change], codec: Codec) -> bytes:
    packed = b"".join(varint(k) + varint(i) + struct.pack("<d", x) for k, i, x in changes)
    return bytes((BATCH,)) + varint(len(changes)) + packed + pack_commits(commits, codec)


def _event(frame: Event, chain: bytes) -> bytes:
    step = varint(frame.step)
    if isinstance(frame, Member):
        slots = varint(frame.epoch) + varint(frame.first) + varint(frame.count)
        return bytes((MEMBER,)) + step + bytes((frame.joins,)) + slots + put_text(frame.worker, "worker", 64)
    if isinstance(frame, Digest):
        return bytes((DIGEST,)) + step + frame.digest + chain
    if isinstance(frame, Snap):
        return bytes((SNAP,)) + step + put_text(frame.name, "name", 255) + frame.sha256 + chain
    return bytes((END,)) + step + chain


def pack_batch(
    commits: Sequence[Commit], changes: Sequence[Change], codec: Codec, chain: bytes
) -> tuple[bytes, bytes]:
    """The bytes of a batch that follows ``chain`` (16 bytes), and the chain hash after it."""
    return _link(_batch(commits, changes, codec), chain)


def pack_event(frame: Event, chain: bytes) -> tuple[bytes, bytes]:
    """The bytes of any other frame that follows ``chain``, and the chain hash after it."""
    return _link(_event(frame, chain), chain)


def _link(body: bytes, chain: bytes) -> tuple[bytes, bytes]:
    if len(body) > MAX_BODY:
        raise LowtideValueError(f"a frame must have at most {MAX_BODY} bytes, got {len(body)}")
    linked = varint(len(body)) + body
    check = crc32c(linked, crc32c(chain))
    return linked + check.to_bytes(4, "little"), hashlib.blake2b(chain + linked, digest_size=16).digest()


def unpack_frame(reader: Reader, codec: Codec, settings: int, chain: bytes) -> tuple[Frame, bytes]:
    """The next frame after ``chain``, and the chain hash after it.

    Args:
        reader: at the frame; left behind it.
        codec, settings: of the log: how codes are written, number of settings (two a parameter group).
        chain: 16 bytes.

    Raises:
        Truncated: the data ends within the frame.
        FormatError: the frame is damaged or belongs elsewhere.
    """
    start = reader.pos
    size = reader.varint("size of a frame", MAX_BODY, 1)
    at = reader.pos
    if size + 4 > reader.left:
        raise Truncated(f"frame: {size + 4} bytes announced, {reader.left} left", start)
    linked = reader.data[start : at + size]
    reader.pos = at + size
    if reader.u32("check") != crc32c(linked, crc32c(chain)):
        raise FormatError("a frame is damaged, or does not follow the one before it", start)
    body = Reader(reader.data, at, at + size)
    frame = _unpack_body(body, codec, settings, chain)
    body.done("frame")
    return frame, hashlib.blake2b(chain + linked, digest_size=16).digest()


def _unpack_body(r: Reader, codec: Codec, settings: int, chain: bytes) -> Frame:
    at = r.pos
    kind = r.u8("kind")
    if kind == BATCH:
        count = r.varint("number of changes", settings * MAX_STEPS)
        raw = [
            (r.varint("step of a change", MAX_STEPS), r.varint("setting", settings - 1), r.f64("value"))
            for _ in range(count)
        ]
        first, codes = unpack_codes(r, codec)
        keys = [(k, i) for k, i, _ in raw]
        if any(a >= b for a, b in pairwise(keys)) or (keys and keys[-1][0] >= len(codes)):
            raise FormatError("changes of settings are out of order", at)
        if any(x < 0 for _, _, x in raw):
            raise FormatError("a learning rate or weight decay is negative", at)
        return Batch(first, codes, codec, tuple(raw))
    step = r.varint("step", MAX_STEP)
    if kind == MEMBER:
        joins = r.u8("joins")
        if joins > 1:
            raise FormatError(f"joins: {joins} where 0 or 1 belongs", at)
        epoch, first = r.varint("epoch", _MAX_EPOCH), r.varint("first slot", MAX_SLOTS)
        return Member(step, bool(joins), epoch, first, r.varint("slots", MAX_SLOTS), r.text("worker", 64))
    frame: Frame
    if kind == DIGEST:
        frame = Digest(step, r.take(16, "digest"))
    elif kind == SNAP:
        frame = Snap(step, r.text("name", 255), r.take(32, "SHA-256"))
        if frame.name in ("", ".", "..") or "/" in frame.name or "\\" in frame.name:
            raise FormatError(f"a snapshot must be a file beside the log, got {frame.name!r}", at)
    elif kind == END:
        frame = End(step)
    else:
        raise FormatError(f"frames of kind {kind} are unknown: update lowtide", at)
    if r.take(16, "chain hash") != chain:
        raise FormatError("the chain of hashes is broken: frames before this one were replaced", at)
    return frame


def changes_between(before: Sequence[float] | None, after: Sequence[float], offset: int) -> list[Change]:
    """Changes from one tuple of settings to the next; all of them where there is none before."""
    return [(offset, i, x) for i, x in enumerate(after) if before is None or before[i] != x]
