# SPDX-License-Identifier: Apache-2.0
"""Slots, quorums, histories and messages."""

from __future__ import annotations

import itertools
import random

import pytest

from lowtide.errors import LowtideValueError
from lowtide.spsa import CODECS, Commit
from lowtide.spsa._wire import FormatError, Reader
from lowtide.spsa.comm import Hello, Local
from lowtide.spsa.comm._config import Config, Member
from lowtide.spsa.comm._history import History
from lowtide.spsa.comm._messages import (
    Ack,
    Beat,
    Decided,
    DigestReport,
    Diverged,
    Identity,
    Join,
    Leave,
    Propose,
    Ready,
    Redirect,
    Refuse,
    State,
    Submit,
    Vote,
    VoteReply,
    decode,
    encode,
)  # fmt: skip

LOG8 = CODECS["log8"]


def config(slots: list[int], **kwargs: int) -> Config:
    members = tuple(Member(100 - i, f"w{i}", s, f"host:{i}") for i, s in enumerate(slots))
    return Config(members, kwargs.pop("anchor", 0), **kwargs)


@pytest.mark.parametrize("total", [0, 1, 3, 4, 7, 64])
@pytest.mark.parametrize("slots", [[1], [1, 1, 1], [0, 1, 2], [3, 1, 0, 5], [0]])
@pytest.mark.parametrize("copies", [0, 1, 2, 9])
def test_slots_are_dealt_once_and_copied(total: int, slots: list[int], copies: int) -> None:
    c = config(slots, total=total, copies=copies)
    own = [list(c.own_slots(m.node)) for m in c.members]
    assert [s for slots_ in own for s in slots_] == list(range(c.slots_total))
    workers = sum(s > 0 for s in slots)
    for slot in range(c.slots_total):
        holders = sum(slot in c.slots_of(m.node) for m in c.members)
        assert holders == min(copies + 1, workers)
    assert c.slots_of(12345) == []


def test_two_quorums_always_meet() -> None:
    for n in range(1, 7):
        nodes = [100 - i for i in range(n)]
        for anchor in [0, *nodes]:
            c = config([1] * n, anchor=anchor)
            subsets = [set(x) for k in range(n + 1) for x in itertools.combinations(nodes, k)]
            quorums = [s for s in subsets if c.quorum(s)]
            assert quorums
            assert all(a & b for a in quorums for b in quorums)
    assert config([1, 1], anchor=100).quorum({100})
    assert not config([1, 1], anchor=100).quorum({99})


def history(steps: int, total: int = 2) -> History:
    h = History(b"r" * 16, LOG8)
    h.extend(Commit(s, total, ((0, s % 255 + 1),)) for s in range(steps))
    return h


@pytest.mark.parametrize("common", [0, 1, 5, 64, 99, 100])
def test_the_ladder_finds_a_common_prefix(common: int) -> None:
    ours, theirs = history(100), history(common)
    theirs.extend(Commit(s, 2, ((1, 9),)) for s in range(common, common + 40))
    found = ours.common(theirs.ladder())
    assert found is not None
    # The rungs are 1, 2, 4, ... steps apart: never more than twice as far back as need be.
    assert found <= common
    assert theirs.step - found <= 2 * (theirs.step - common)
    assert ours.common(History(b"s" * 16, LOG8).ladder()) is None


def test_a_history_takes_steps_in_order_and_forgets() -> None:
    h = history(10)
    chain = h.chain_at(6)
    with pytest.raises(LowtideValueError, match="step 10"):
        h.append(Commit(12, 2, ()))
    h.cut(6)
    assert (h.step, h.chain, h.at(6), h.at(5)) == (6, chain, None, Commit(5, 2, ((0, 6),)))
    with pytest.raises(LowtideValueError, match="chain"):
        History(b"r" * 16, LOG8, 5)


def messages() -> list[object]:
    c = config([1, 0, 2], anchor=99, total=4, copies=1)
    identity = Identity(b"r" * 16, "log8", b"1" * 32, b"", b"base")
    commits = tuple(history(3).commits)
    return [
        Join(1, c.members[0], identity, history(9).ladder()), Refuse("no: because"), Redirect(7, "a:1"),
        State(3, 99, 12, c, 0, b"c" * 16, commits, True), Ready(5), Submit(2, 9, ((0, 255), (300, 1))), Submit(2, 9, ()),
        Propose(4, 5, commits[1]), Propose(4, 5, c), Ack(4, 5), Decided(4, 5), Beat(1, 99, 2, 3), Vote(9, 8, 0),
        VoteReply(9, True), VoteReply(9, False), DigestReport(64, b"d" * 16), Diverged(64, 0), Leave(),
    ]  # fmt: skip


@pytest.mark.parametrize("message", messages(), ids=lambda m: type(m).__name__)
def test_messages_come_back_and_prefixes_do_not(message: object) -> None:
    data = encode(message, LOG8)  # type: ignore[arg-type]
    assert decode(data, LOG8) == message
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:cut], LOG8)
    with pytest.raises(FormatError):
        decode(data + b"\0", LOG8)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_codec_travels(codec: str) -> None:
    code = CODECS[codec].encode(0.75)
    message = Submit(1, 2, ((0, code), (1, CODECS[codec].none), (9, code)))
    assert decode(encode(message, CODECS[codec]), CODECS[codec]) == message


def fuzz(seed: int, count: int) -> None:
    """Mutated messages: either refused with FormatError, or a message that encodes to the same bytes."""
    rng = random.Random(seed)
    corpus = [encode(m, LOG8) for m in messages()]  # type: ignore[arg-type]
    for _ in range(count):
        data = bytearray(rng.choice(corpus))
        kind = rng.randrange(5)
        if kind == 0:
            data = bytearray(rng.randbytes(rng.randrange(0, 60)))
        for _ in range(rng.randrange(1, 4)):
            if not data:
                break
            at = rng.randrange(len(data))
            if kind == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif kind == 3:
                del data[at : at + rng.randrange(1, 9)]
            else:
                data[at:at] = rng.choice(corpus)[: rng.randrange(1, 20)]
        raw = bytes(data)
        try:
            message = decode(raw, LOG8)
        except FormatError:
            continue
        assert encode(message, LOG8) == raw


def test_fuzzed_messages() -> None:
    fuzz(1, 30_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_million_fuzzed_messages(seed: int) -> None:
    fuzz(1000 + seed, 110_000)


def test_config_reads_what_it_writes() -> None:
    c = config([1, 0, 2], anchor=99, total=4, copies=1)
    assert Config.read(Reader(c.to_bytes())) == c


def test_local_commits_its_own_codes() -> None:
    comm = Local(3)
    joined = comm.join(Hello(b"r" * 16, codec="log8"))
    assert (joined.slots_total, joined.commits) == (3, ())
    assert comm.slots(7) == [0, 1, 2]
    assert comm.exchange(7, {2: 5, 0: 128, 1: 0}) == Commit(7, 3, ((0, 128), (2, 5)))
    with pytest.raises(LowtideValueError, match="slots"):
        Local(0)
    with pytest.raises(LowtideValueError, match="run_id"):
        comm.join(Hello(b"short"))
