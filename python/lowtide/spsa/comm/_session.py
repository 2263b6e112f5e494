# SPDX-License-Identifier: Apache-2.0
"""Authenticated frames on one connection, without the connection.

Each side opens with a preamble: ``"LTZO"``, version u8, node u64, nonce 16 bytes. Both nonces, both nodes and the shared key
give a key for each direction. A frame is ``length u16, payload, tag``: the tag is HMAC-SHA256 over the number of the
frame and the frame, cut to 8 bytes. So a frame that was forged, recorded, repeated, left out or moved does not pass,
and the connection ends there: a forger has one guess in 2**64 a connection. Nothing is encrypted.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from lowtide.errors import LowtideValueError
from lowtide.spsa._wire import FormatError
from lowtide.spsa.comm._protocol import PROTOCOL

MAGIC = b"LTZO"
_PREAMBLE = struct.Struct("<4sBQ16s")
PREAMBLE_BYTES = _PREAMBLE.size
NONCE_BYTES = 16
TAG_BYTES = 8
#: Bytes a frame adds to its payload.
OVERHEAD = 2 + TAG_BYTES
MAX_PAYLOAD = 0xFFFF
#: A key shorter than this could be guessed.
MIN_KEY = 16


class SessionError(FormatError):
    """What came cannot be from a peer with the same key, or is not this protocol."""


def load_key(key: bytes | str | os.PathLike[str] | None) -> bytes:
    """The shared key: bytes as they are, the contents of a file, or the environment.

    Args:
        key: at least 16 bytes; or the path of a file that holds them; None takes ``LOWTIDE_KEY`` (the key itself) or
            ``LOWTIDE_KEY_FILE`` (a path), and without them the empty key: no authentication.

    Raises:
        LowtideValueError: too short, or the file cannot be read.
    """
    if key is None:
        if text := os.environ.get("LOWTIDE_KEY"):
            key = text.encode()
        elif path := os.environ.get("LOWTIDE_KEY_FILE"):
            key = Path(path)
        else:
            return b""
    if not isinstance(key, bytes):
        try:
            with open(key, "rb") as file:
                key = file.read(4097).strip()
        except OSError as error:
            raise LowtideValueError(f"key: the file {os.fspath(key)!r} cannot be read: {error}") from None
    if not MIN_KEY <= len(key) <= 4096:
        raise LowtideValueError(
            f"key must be {MIN_KEY} to 4096 bytes, got {len(key)}; make one with: openssl rand -hex 32"
        )
    return key


class Session:
    """One connection's two directions.

    Args:
        key: the shared key. node: this one. client: whether this side opened the connection.
        nonce: 16 random bytes, fresh for each connection; None draws them.
    """

    def __init__(self, key: bytes, node: int, client: bool, nonce: bytes | None = None) -> None:
        self._key, self._client = key, client
        self._nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
        self.preamble = _PREAMBLE.pack(MAGIC, PROTOCOL, node, self._nonce)
        self._sent = self._received = 0
        self._send_key = self._receive_key = b""
        self._buffer = bytearray()
        self.peer = 0

    def start(self, preamble: bytes) -> None:
        """Take the other side's preamble.

        Raises:
            SessionError: not this protocol or not this version of it.
        """
        magic, version, self.peer, nonce = _PREAMBLE.unpack(preamble)
        if magic != MAGIC:
            raise SessionError("preamble: the peer does not speak this protocol")
        if version != PROTOCOL:
            raise SessionError(
                f"preamble: the peer speaks version {version}, this is {PROTOCOL}; use the same release of lowtide everywhere"
            )
        if nonce == self._nonce or not 0 < self.peer < 1 << 63:
            raise SessionError("preamble: it is this side's own, or names an impossible node")
        both = (self.preamble, preamble) if self._client else (preamble, self.preamble)
        secret = hmac.digest(self._key, b"lowtide.spsa" + b"".join(both), "sha256")
        keys = [hmac.digest(secret, side, "sha256") for side in (b"client", b"server")]
        self._send_key, self._receive_key = keys if self._client else keys[::-1]

    def seal(self, payload: bytes) -> bytes:
        """The frame of a payload of at most 65535 bytes."""
        if len(payload) > MAX_PAYLOAD:
            raise LowtideValueError(f"payload must be at most {MAX_PAYLOAD} bytes, got {len(payload)}")
        body = len(payload).to_bytes(2, "little") + payload
        tag = hmac.digest(self._send_key, self._sent.to_bytes(8, "little") + body, "sha256")[:TAG_BYTES]
        self._sent += 1
        return body + tag

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Payloads of the frames that ``data`` completes; a peer that is not yet known may send only an empty one.

        Raises:
            SessionError: a tag is wrong; nothing after it may be read.
        """
        self._buffer += data
        while len(self._buffer) >= 2:
            size = int.from_bytes(self._buffer[:2], "little")
            if self._received == 0 and size:
                raise SessionError("frame: the first one must be empty")
            if len(self._buffer) < size + OVERHEAD:
                return
            body = bytes(self._buffer[: 2 + size])
            tag = bytes(self._buffer[2 + size : size + OVERHEAD])
            right = hmac.digest(self._receive_key, self._received.to_bytes(8, "little") + body, "sha256")
            if not hmac.compare_digest(tag, right[:TAG_BYTES]):
                where = (
                    "the peer holds another key"
                    if self._received == 0
                    else "frame: it was changed on the way"
                )
                raise SessionError(where)
            del self._buffer[: size + OVERHEAD]
            self._received += 1
            if self._received > 1:
                yield body[2:]

    @property
    def proven(self) -> bool:
        """Whether the peer has shown that it holds the key."""
        return self._received > 0


class Bucket:
    """A bound on a rate: ``take`` says how long to wait before going on.

    Args:
        rate: units a second. burst: units at once.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._level, self._at = rate, burst, burst, now

    def take(self, amount: float, now: float) -> float:
        """Take units; the seconds until the level is no longer negative."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._level / self._rate)
