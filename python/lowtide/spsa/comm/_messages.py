# SPDX-License-Identifier: Apache-2.0
"""Messages between nodes, as bytes: a type, then varints. Everything read is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lowtide.spsa._codec import Codec, get_codec
from lowtide.spsa._commit import MAX_STEP, Commit, unpack_commits
from lowtide.spsa._wire import FormatError, Reader, put_text, varint
from lowtide.spsa.comm._config import (
    MAX_ADDRESS,
    MAX_NODE,
    MAX_TOTAL,
    Config,
    Member,
    put_member,
    read_member,
)
from lowtide.spsa.comm._history import CHAIN

#: Epochs and indices are below this.
MAX_COUNT = 1 << 48
#: Rungs of a ladder of hashes, at most.
MAX_LADDER = 64
#: Commits in one State message, at most.
MAX_PART = 1024
#: Bytes of all commits in one State message, about.
PART_BYTES = 32768
_MAX_REASON = 400
_DIGEST = 32

Entry: TypeAlias = "Commit | Config"


@dataclass(frozen=True)
class Join:
    """A node asks for what it does not have: the first message of a new one, and of one that fell behind."""

    protocol: int
    member: Member
    identity: Identity
    ladder: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Identity:
    """What all workers of a run have in common, see ``Hello``."""

    run_id: bytes
    codec: str
    rng: bytes
    manifest: bytes
    base: bytes


@dataclass(frozen=True)
class Refuse:
    """No, and why."""

    reason: str


@dataclass(frozen=True)
class Redirect:
    """Another node leads (0: unknown yet)."""

    node: int
    address: str


@dataclass(frozen=True)
class State:
    """Where the run is: commits from ``first`` on, of which hash ``chain`` is before; ``more`` parts follow."""

    epoch: int
    leader: int
    index: int
    config: Config
    first: int
    chain: bytes
    commits: tuple[Commit, ...]
    more: bool


@dataclass(frozen=True)
class Ready:
    """A node that has caught up asks for slots."""

    step: int


@dataclass(frozen=True)
class Submit:
    """Codes of some slots of a step."""

    epoch: int
    step: int
    codes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Propose:
    """The leader of an epoch proposes entry ``index``: a commit, or another configuration."""

    epoch: int
    index: int
    entry: Entry


@dataclass(frozen=True)
class Ack:
    """A node holds what was proposed."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Decided:
    """Enough nodes hold entry ``index``: it is decided."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Beat:
    """A sign of life, with what its sender has and whom it follows (0: nobody): both ways."""

    epoch: int
    leader: int
    index: int
    step: int


@dataclass(frozen=True)
class Vote:
    """A candidate asks for a vote; ``pending`` is 1 + the epoch of the proposal it holds, 0 without."""

    epoch: int
    index: int
    pending: int


@dataclass(frozen=True)
class VoteReply:
    """The answer."""

    epoch: int
    granted: bool


@dataclass(frozen=True)
class DigestReport:
    """A worker's digest of its weights after ``step`` steps."""

    step: int
    digest: bytes


@dataclass(frozen=True)
class Diverged:
    """The digest at ``step`` is not that of the others; the last one that was: ``since``."""

    step: int
    since: int


@dataclass(frozen=True)
class Leave:
    """A node goes."""


Message: TypeAlias = (
    "Join | Refuse | Redirect | State | Ready | Submit | Propose | Ack | Decided | Beat | Vote | VoteReply"
    " | DigestReport | Diverged | Leave"
)
_TYPES = (
    Join, Refuse, Redirect, State, Ready, Submit, Propose, Ack, Decided, Beat, Vote, VoteReply,
    DigestReport, Diverged, Leave,
)  # fmt: skip
_NUMBER = {cls: i + 1 for i, cls in enumerate(_TYPES)}
#: Messages of bounded integers only: their bounds, in the order of their fields.
_PLAIN: dict[type, tuple[int, ...]] = {
    Ready: (MAX_STEP,),
    Ack: (MAX_COUNT, MAX_COUNT),
    Decided: (MAX_COUNT, MAX_COUNT),
    Beat: (MAX_COUNT, MAX_NODE, MAX_COUNT, MAX_STEP),
    Vote: (MAX_COUNT, MAX_COUNT, MAX_COUNT),
    VoteReply: (MAX_COUNT, 1),
    Diverged: (MAX_STEP, MAX_STEP),
    Leave: (),
}


def _put_bytes(data: bytes) -> bytes:
    return varint(len(data)) + data


def _put_codes(codes: tuple[tuple[int, int], ...], codec: Codec) -> bytes:
    slots = b"".join(varint(slot) for slot, _ in codes)
    return varint(len(codes)) + slots + codec.pack(code for _, code in codes)


def encode(message: Message, codec: Codec | None) -> bytes:
    """The bytes of a message; ``codec`` is that of the run, needed where there are codes."""
    kind = type(message)
    head = bytes([_NUMBER[kind]])
    if kind in _PLAIN:
        return head + b"".join(varint(int(v)) for v in vars(message).values())
    if isinstance(message, Join):
        i = message.identity
        parts = [
            varint(message.protocol),
            put_member(message.member),
            i.run_id,
            put_text(i.codec, "codec", 16),
        ]
        parts += [_put_bytes(d) for d in (i.rng, i.manifest, i.base)]
        parts += [varint(len(message.ladder)), *(varint(s) + c for s, c in message.ladder)]
        return head + b"".join(parts)
    if isinstance(message, Refuse):
        return head + put_text(message.reason[:300], "reason", _MAX_REASON)
    if isinstance(message, Redirect):
        return head + varint(message.node) + put_text(message.address, "address", MAX_ADDRESS)
    if isinstance(message, DigestReport):
        return head + varint(message.step) + _put_bytes(message.digest)
    if codec is None:
        raise ValueError(f"{kind.__name__} needs a codec")
    if isinstance(message, Submit):
        return head + varint(message.epoch) + varint(message.step) + _put_codes(message.codes, codec)
    if isinstance(message, Propose):
        body = _put_entry(message.entry, codec)
        return head + varint(message.epoch) + varint(message.index) + body
    if isinstance(message, State):
        parts = [varint(v) for v in (message.epoch, message.leader, message.index)]
        parts += [message.config.to_bytes(), varint(message.first), message.chain, varint(int(message.more))]
        parts += [varint(len(message.commits)), *(c.to_bytes(codec) for c in message.commits)]
        return head + b"".join(parts)
    raise TypeError(kind)


def _put_entry(entry: Entry, codec: Codec) -> bytes:
    if isinstance(entry, Commit):
        return b"\x00" + entry.to_bytes(codec)
    return b"\x01" + entry.to_bytes()


def _read_commit(reader: Reader, codec: Codec) -> Commit:
    commits = unpack_commits(reader, codec)
    if len(commits) != 1:
        raise FormatError(f"commit: a record of {len(commits)} steps where one belongs", reader.pos)
    return commits[0]


def decode(data: bytes, codec: Codec | None) -> Message:
    """The message in some bytes, all of them.

    Raises:
        FormatError: not a message, with the offset.
    """
    reader = Reader(data)
    number = reader.u8("type")
    if not 1 <= number <= len(_TYPES):
        raise FormatError(f"type: {number} is no message", 0)
    message = _read(_TYPES[number - 1], reader, codec)
    reader.done("message")
    return message


def _read(kind: type, reader: Reader, codec: Codec | None) -> Message:
    if kind in _PLAIN:
        values = [reader.varint(kind.__name__, bound) for bound in _PLAIN[kind]]
        if kind is VoteReply:
            return VoteReply(values[0], bool(values[1]))
        message: Message = kind(*values)
        return message
    if kind is Join:
        return _read_join(reader)
    if kind is Refuse:
        return Refuse(reader.text("reason", _MAX_REASON))
    if kind is Redirect:
        return Redirect(reader.varint("node", MAX_NODE), reader.text("address", MAX_ADDRESS))
    if kind is DigestReport:
        step = reader.varint("step", MAX_STEP)
        return DigestReport(step, reader.take(reader.varint("digest", _DIGEST), "digest"))
    if codec is None:
        raise FormatError(f"type: {kind.__name__} before the codec is known", 0)
    epoch = reader.varint("epoch", MAX_COUNT)
    if kind is Submit:
        step = reader.varint("step", MAX_STEP)
        count = reader.varint("number of codes", MAX_TOTAL)
        slots = [reader.varint("slot", MAX_TOTAL) for _ in range(count)]
        at = reader.pos
        raw = reader.take(codec.size(count), "codes")
        try:
            codes = codec.unpack(raw, count).tolist()
        except ValueError as error:
            raise FormatError(f"codes: {error}", at) from None
        return Submit(epoch, step, tuple(zip(slots, codes, strict=True)))
    if kind is Propose:
        index = reader.varint("index", MAX_COUNT)
        what = reader.u8("kind of entry")
        if what > 1:
            raise FormatError(f"kind of entry: {what} is none", reader.pos - 1)
        return Propose(epoch, index, Config.read(reader) if what else _read_commit(reader, codec))
    leader = reader.varint("leader", MAX_NODE)
    index = reader.varint("index", MAX_COUNT)
    config = Config.read(reader)
    first = reader.varint("first step", MAX_STEP)
    chain = reader.take(CHAIN, "chain")
    more = bool(reader.varint("more", 1))
    commits = tuple(_read_commit(reader, codec) for _ in range(reader.varint("commits", MAX_PART)))
    return State(epoch, leader, index, config, first, chain, commits, more)


def _read_join(reader: Reader) -> Join:
    protocol = reader.varint("protocol", 1 << 16)
    member = read_member(reader)
    run_id = reader.take(16, "run id")
    codec = reader.text("codec", 16)
    digests = [reader.take(reader.varint("digest", _DIGEST), "digest") for _ in range(3)]
    count = reader.varint("rungs", MAX_LADDER, 1)
    ladder = tuple((reader.varint("step", MAX_STEP), reader.take(CHAIN, "chain")) for _ in range(count))
    return Join(protocol, member, Identity(run_id, codec, *digests), ladder)


def codec_of(identity: Identity | None) -> Codec | None:
    """The codec of a run; None before it is known."""
    return get_codec(identity.codec) if identity else None
