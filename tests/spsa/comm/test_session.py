# SPDX-License-Identifier: Apache-2.0
"""Authenticated frames: what was not sent so by a holder of the key does not come through."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from lowtide.errors import LowtideValueError
from lowtide.spsa.comm._endpoint import check_exposure, is_loopback, join_address, split_address
from lowtide.spsa.comm._session import MAX_PAYLOAD, OVERHEAD, Bucket, Session, SessionError, load_key

KEY = b"k" * 32


def pair(key: bytes = KEY, other: bytes = KEY) -> tuple[Session, Session]:
    client, server = Session(key, 11, client=True), Session(other, 22, client=False)
    client.start(server.preamble)
    server.start(client.preamble)
    return client, server


def test_payloads_arrive_in_any_pieces() -> None:
    client, server = pair()
    payloads = [b"a", b"", b"x" * 300, bytes(MAX_PAYLOAD)]
    stream = b"".join(client.seal(p) for p in [b"", *payloads])
    assert len(stream) == sum(map(len, payloads)) + OVERHEAD * 5
    got = []
    for at in range(0, len(stream), 7):
        got += list(server.feed(stream[at : at + 7]))
    assert got == payloads
    assert (server.peer, client.peer) == (11, 22)
    assert server.proven
    assert not client.proven


def test_another_key_is_found_out_at_once() -> None:
    client, server = pair(other=b"q" * 32)
    with pytest.raises(SessionError, match="another key"):
        list(server.feed(client.seal(b"")))


@pytest.mark.parametrize("kind", ["repeat", "skip", "swap", "reflect", "flip"])
def test_frames_that_were_moved_or_changed_are_refused(kind: str) -> None:
    client, server = pair()
    list(server.feed(client.seal(b"")))
    list(client.feed(server.seal(b"")))
    one, two = client.seal(b"one"), client.seal(b"two")
    assert list(server.feed(one)) == [b"one"]
    receiver, stream = server, two[:3] + bytes([two[3] ^ 1]) + two[4:]
    if kind == "repeat":
        stream = one
    elif kind == "skip":
        stream = client.seal(b"three")
    elif kind == "swap":
        stream = client.seal(b"three") + two
    elif kind == "reflect":
        receiver, stream = client, two
    with pytest.raises(SessionError, match="changed"):
        list(receiver.feed(stream))


def test_a_recorded_connection_cannot_be_played_again() -> None:
    client, server = pair()
    record = [client.preamble, client.seal(b"") + client.seal(b"codes")]
    assert list(server.feed(record[1])) == [b"codes"]
    again = Session(KEY, 22, client=False)
    again.start(record[0])
    with pytest.raises(SessionError):
        list(again.feed(record[1]))


def test_strangers_are_read_no_further_than_their_proof() -> None:
    _, server = pair()
    with pytest.raises(SessionError, match="first one must be empty"):
        list(server.feed(struct.pack("<H", 60_000)))


@pytest.mark.parametrize(
    ("change", "what"), [((0, 0x00), "protocol"), ((4, 9), "version 9"), ((12, 0xFF), "impossible node")]
)
def test_preambles_are_checked(change: tuple[int, int], what: str) -> None:
    preamble = bytearray(Session(KEY, 11, client=True).preamble)
    preamble[change[0]] = change[1]
    with pytest.raises(SessionError, match=what):
        Session(KEY, 22, client=False).start(bytes(preamble))


def test_mutated_streams_give_a_prefix_of_what_was_sent() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        client, server = pair()
        sent = [rng.randbytes(rng.randrange(20)) for _ in range(6)]
        stream = bytearray(b"".join(client.seal(p) for p in [b"", *sent]))
        at, kind = rng.randrange(len(stream)), rng.randrange(3)
        if kind == 0:
            stream[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del stream[at : at + rng.randrange(1, 30)]
        else:
            stream[at:at] = stream[: rng.randrange(1, 30)]
        got: list[bytes] = []
        try:
            for payload in server.feed(bytes(stream)):
                got.append(payload)
        except SessionError:
            pass
        assert got == sent[: len(got)]


def test_keys_come_from_bytes_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"f" * 20 + b"\n")
    monkeypatch.delenv("LOWTIDE_KEY", raising=False)
    monkeypatch.delenv("LOWTIDE_KEY_FILE", raising=False)
    assert load_key(None) == b""
    assert load_key(KEY) == KEY
    assert load_key(path) == load_key(str(path)) == b"f" * 20
    monkeypatch.setenv("LOWTIDE_KEY_FILE", str(path))
    assert load_key(None) == b"f" * 20
    monkeypatch.setenv("LOWTIDE_KEY", "e" * 16)
    assert load_key(None) == b"e" * 16
    with pytest.raises(LowtideValueError, match="16 to 4096 bytes, got 5"):
        load_key(b"short")
    with pytest.raises(LowtideValueError, match="cannot be read"):
        load_key(tmp_path / "missing")


def test_rates_are_bounded() -> None:
    bucket = Bucket(100.0, 200.0, 0.0)
    assert bucket.take(200, 0.0) == 0.0
    assert bucket.take(100, 0.0) == 1.0
    assert bucket.take(0, 5.0) == 0.0
    assert bucket.take(200, 5.0) == 0.0


def test_addresses() -> None:
    assert split_address("a.b:80") == ("a.b", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    assert join_address("::1", 80) == "[::1]:80"
    for bad in ("a", "a:", ":80", "a:b", "a:99999"):
        with pytest.raises(LowtideValueError, match="host:port"):
            split_address(bad)
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("example.org")
    check_exposure("0.0.0.0", KEY, "bind")
    with pytest.raises(LowtideValueError, match="key must be given"):
        check_exposure("0.0.0.0", b"", "bind")
