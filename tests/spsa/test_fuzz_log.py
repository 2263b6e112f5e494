# SPDX-License-Identifier: Apache-2.0
"""Damaged logs: no crash, no hang, and never commits that the run did not make."""

from __future__ import annotations

import hashlib
import random
import time
import warnings

import pytest

from lowtide.errors import LowtideError
from lowtide.spsa._codec import CODECS
from lowtide.spsa._commit import Commit
from lowtide.spsa._header import SIZE, root
from lowtide.spsa._log import LogReader
from lowtide.spsa._log_writer import LogWriter
from lowtide.spsa._wire import FormatError, Reader, crc32c, varint

from .logs import commits, header, hyper
from .mutate import mutate

Run = tuple[bytes, list[tuple[Commit, object]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Small logs of every codec with every kind of frame."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "s").write_bytes(b"state")
    out = []
    for number, (codec, total) in enumerate([("log8", 1), ("log8", 3), ("f32", 2), ("sign1", 5), ("f16", 1)]):
        run = commits(24, codec, total, seed=number)
        path = folder / f"{number}.ltlog"
        head = header(codec, run_id=bytes([number]) * 16)
        with LogWriter(path, head, batch=7, fsync="never") as log:
            log.member("w", joins=True, epoch=number, count=total)
            for c in run:
                if c.step == 9:
                    log.digest(bytes(16))
                    log.snapshot(folder / "s")
                log.append(c, hyper(c.step, 5))
        out.append((path.read_bytes(), [(c, hyper(c.step, 5)) for c in run]))
    return out


def read(data: bytes, tail: bytes = b"", damage: str = "error") -> list[tuple[Commit, object]] | None:
    """What a reader believes, or None where it refuses; anything but a LowtideError is a finding."""
    try:
        reader = LogReader.from_bytes(data, tail=tail, damage=damage)
        return [(s.commit, s.hyper) for s in reader.steps()]
    except LowtideError:
        return None


def raw_faults(runs: list[Run], count: int, seed: int) -> tuple[int, int]:
    """Damage without knowledge of the format: what is believed is a prefix of the truth."""
    rng, believed, refused = random.Random(seed), 0, 0
    for _ in range(count):
        data, _ = rng.choice(runs)
        other, _ = rng.choice(runs)
        bad = mutate(data, other, rng)
        tail = mutate(data, other, rng) if rng.random() < 0.1 else b""
        got = read(bad, tail, rng.choice(("error", "cut")))
        if got is None:
            refused += 1
            continue
        believed += 1
        whose = next(t for d, t in runs if d[:SIZE] == bad[:SIZE])
        assert got == whose[: len(got)], (seed, data, bad)
    return believed, refused


def forge(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Damage by someone who knows the format: contents of frames change, checks and chains are made to fit."""
    begin = SIZE + int.from_bytes(data[12:16], "little")
    head = bytearray(data[:begin])
    if rng.random() < 0.3:
        head = bytearray(mutate(bytes(head), other, rng, 2))
        head[12:16] = max(0, len(head) - SIZE).to_bytes(4, "little")
        head[108:112] = crc32c(bytes(head[SIZE:])).to_bytes(4, "little")
        head[124:128] = crc32c(bytes(head[:124])).to_bytes(4, "little")
    out, chain = bytes(head), root(bytes(head))
    reader = Reader(data, begin)
    while reader.left:
        size = reader.varint("size", 1 << 20)
        body = reader.take(size, "body")
        reader.u32("check")
        if rng.random() < 0.3:
            body = mutate(body, other, rng, 2)
        if body[:1] in (b"\x03", b"\x04", b"\x05") and rng.random() < 0.7:
            body = body[:-16] + chain
        linked = varint(len(body)) + body
        out += linked + crc32c(linked, crc32c(chain)).to_bytes(4, "little")
        chain = hashlib.blake2b(chain + linked, digest_size=16).digest()
    return out


def forged_faults(runs: list[Run], count: int, seed: int) -> tuple[int, int]:
    """Whatever is believed must at least make sense: steps in order, codes that exist, settings that are numbers."""
    rng, believed, refused = random.Random(seed), 0, 0
    for _ in range(count):
        data, _ = rng.choice(runs)
        other, _ = rng.choice(runs)
        bad = forge(data, rng, other)
        got = read(bad)
        if got is None:
            refused += 1
            continue
        believed += 1
        reader = LogReader.from_bytes(bad)
        codec = CODECS[reader.header.codec]
        for step, (commit, values) in enumerate(got, start=reader.header.first_step):
            assert commit.step == step
            commit.check(codec)
            assert len(values.lr) == reader.header.groups
        list(reader.values())
    return believed, refused


def record_faults(count: int, seed: int) -> int:
    """The record of commits alone, as peers send it: what is accepted is canonical."""
    rng, accepted = random.Random(seed), 0
    good = [(CODECS[n], commits(1, n, t, first=300)[0].to_bytes(CODECS[n])) for n in CODECS for t in (1, 9)]
    for _ in range(count):
        codec, data = rng.choice(good)
        bad = mutate(data, rng.choice(good)[1], rng)
        try:
            commit = Commit.from_bytes(bad, codec)
        except FormatError:
            continue
        accepted += 1
        assert commit.to_bytes(codec) == bad
    return accepted


def check(runs: list[Run], raw: int, forged: int, records: int, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        a = raw_faults(runs, raw, seed)
        b = forged_faults(runs, forged, seed + 1)
        c = record_faults(records, seed + 2)
    print(
        f"{raw} raw: {a[0]} cut, {a[1]} refused; {forged} forged: {b[0]} believed, {b[1]} refused; "
        f"{records} records: {c} accepted; {time.perf_counter() - start:.0f} s"
    )
    # A fuzzer whose inputs are all refused, or all believed, tests nothing.
    assert min(a[0], a[1], b[0], b[1], c) > (raw + forged + records) // 200


def test_damaged_logs(runs: list[Run]) -> None:
    check(runs, 4000, 2000, 4000, seed=1)


@pytest.mark.slow
def test_a_million_damaged_logs(runs: list[Run]) -> None:
    check(runs, 600_000, 200_000, 300_000, seed=1000)


def test_the_reader_is_quick(runs: list[Run]) -> None:
    """Announced sizes cost nothing: a log of nonsense is refused before anything is allocated."""
    data = runs[0][0]
    begin = SIZE + int.from_bytes(data[12:16], "little")
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for byte in range(256):
            read(data[:begin] + bytes([byte]) * 4096)
    assert time.perf_counter() - start < 5
