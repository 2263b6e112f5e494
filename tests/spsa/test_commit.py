# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import CODECS
from lowtide.spsa._commit import Commit, pack_commits, unpack_commits
from lowtide.spsa._wire import FormatError, Reader, Truncated, crc32c, put_text, varint


def commit(step: int, total: int, codec, rng) -> Commit:
    slots = [s for s in range(total) if rng.random() < 0.7]
    coded = [(s, codec.encode(rng.gauss(0, 1), 0, rng.getrandbits(32))) for s in slots]
    return Commit(step, total, tuple(coded))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 64, 65])
def test_record_round_trip(name, total):
    codec, rng = CODECS[name], random.Random(total)
    commits = [commit(1000 + k, total, codec, rng) for k in range(5)]
    raw = pack_commits(commits, codec)
    reader = Reader(raw)
    assert unpack_commits(reader, codec) == commits
    reader.done("record")
    for c in commits:
        assert Commit.from_bytes(c.to_bytes(codec), codec) == c
    with pytest.raises(FormatError):
        Commit.from_bytes(raw, codec)


def test_one_slot_costs_one_byte_a_step():
    codec = CODECS["log8"]
    commits = [Commit(t, 1, ((0, 65),)) for t in range(256)]
    assert len(pack_commits(commits, codec)) == 256 + 4


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Commit(-1, 1, ()), "step"),
        (Commit(0, 0, ()), "total"),
        (Commit(0, 70000, ()), "total"),
        (Commit(0, 2, ((1, 5), (0, 5))), "ascending"),
        (Commit(0, 2, ((2, 5),)), "below 2"),
        (Commit(0, 2, ((0, 0),)), "leave it out"),
        (Commit(0, 2, ((0, 256),)), "code"),
    ],
)
def test_impossible_commits_are_not_written(bad, why):
    with pytest.raises(LowtideValueError, match=why):
        bad.to_bytes(CODECS["log8"])


def test_gaps_are_not_written():
    with pytest.raises(LowtideValueError, match="consecutive"):
        pack_commits([Commit(0, 1, ()), Commit(2, 1, ())], CODECS["log8"])


@pytest.mark.parametrize("name", CODECS)
def test_every_cut_and_most_flips_are_seen(name):
    """A record has no checksum of its own: whatever is accepted must be canonical."""
    codec, rng = CODECS[name], random.Random(7)
    raw = commit(300, 9, codec, rng).to_bytes(codec)
    for cut in range(len(raw)):
        with pytest.raises(FormatError):
            Commit.from_bytes(raw[:cut], codec)
    for bit in range(8 * len(raw)):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            other = Commit.from_bytes(bytes(bad), codec)
        except FormatError:
            continue
        assert other.to_bytes(codec) == bytes(bad)


def test_announced_sizes_allocate_nothing():
    codec = CODECS["f32"]
    with pytest.raises(FormatError, match="bytes, at most"):
        Commit.from_bytes(varint(0) + varint(4096) + varint(65536), codec)
    with pytest.raises(FormatError, match="outside"):
        Commit.from_bytes(varint(0) + varint(1) + varint(2**40), codec)


class TestReader:
    @pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63 - 1])
    def test_varints(self, value):
        raw = varint(value)
        reader = Reader(raw)
        assert reader.varint("n", 2**63 - 1) == value
        reader.done("n")
        for cut in range(len(raw)):
            with pytest.raises(Truncated):
                Reader(raw, 0, cut).varint("n", 2**63)

    def test_varints_are_canonical_and_bounded(self):
        with pytest.raises(FormatError, match="longer"):
            Reader(b"\x80\x00").varint("n", 9)
        with pytest.raises(FormatError, match="more than 9"):
            Reader(b"\xff" * 20).varint("n", 2**63)
        with pytest.raises(FormatError, match="outside"):
            Reader(b"\x05").varint("n", 4)
        with pytest.raises(LowtideValueError):
            varint(-1)

    def test_fields(self):
        import struct

        raw = struct.pack("<BId", 7, 8, 0.5) + put_text("größe", "name", 20)
        reader = Reader(raw)
        assert (reader.u8("a"), reader.u32("b"), reader.f64("c"), reader.text("d", 20)) == (
            7,
            8,
            0.5,
            "größe",
        )
        with pytest.raises(FormatError, match="finite"):
            Reader(struct.pack("<d", float("nan"))).f64("c")
        with pytest.raises(FormatError, match="UTF-8"):
            Reader(b"\x01\xff").text("d", 5)
        with pytest.raises(FormatError, match="control"):
            Reader(b"\x01\x07").text("d", 5)
        with pytest.raises(Truncated):
            Reader(raw, 0, 3).take(4, "x")
        with pytest.raises(FormatError, match="too many"):
            Reader(raw).done("x")

    def test_crc_continues(self):
        assert crc32c(b"123456789") == 0xE3069283
        assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
