# SPDX-License-Identifier: Apache-2.0
"""A node on TCP: one asyncio loop that accepts, dials, and carries a node's messages."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from lowtide.errors import LowtideError, LowtideValueError
from lowtide.spsa._wire import FormatError
from lowtide.spsa.comm._messages import Message, codec_of, decode, encode
from lowtide.spsa.comm._node import Node
from lowtide.spsa.comm._session import PREAMBLE_BYTES, Bucket, Session, SessionError

_HANDSHAKE = 5.0
_STRANGERS = 64
_CONNECTIONS = 600
_QUEUE = 256
_BACKLOG = 8 << 20


@dataclass(frozen=True)
class Limits:
    """What one peer may send: more is read later, so that its own side fills up.

    Attributes:
        frames: a second. bytes: a second. Both may come in bursts of two seconds' worth.
    """

    frames: float = 5000.0
    bytes: float = 8 << 20


def split_address(address: str, what: str = "address") -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        LowtideValueError: anything else.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise LowtideValueError(f"{what} must be host:port, got {address!r}")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of :func:`split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, key: bytes, what: str) -> None:
    """Refuse to leave this machine without a key."""
    if not key and not is_loopback(host):
        raise LowtideValueError(
            f"{what}: {host} can be reached by others, so key must be given (or LOWTIDE_KEY, LOWTIDE_KEY_FILE); "
            "make one with: openssl rand -hex 32"
        )


@dataclass
class Traffic:
    """Bytes and frames that went through the sockets, preambles included."""

    sent: int = 0
    received: int = 0
    frames_sent: int = 0
    frames_received: int = 0


class Link:
    """One connection that has proven itself."""

    def __init__(self, session: Session, writer: asyncio.StreamWriter) -> None:
        self.session, self.writer, self.seen = session, writer, time.monotonic()


class Endpoint:
    """Runs a node. Everything happens in the loop that calls it.

    Args:
        node: the number of this node. key: shared, maybe empty. changed: called after every event.
        limits: what peers may send.
    """

    def __init__(
        self, node: int, key: bytes, changed: Callable[[], None], limits: Limits | None = None
    ) -> None:
        self._number, self._key, self._changed = node, key, changed
        self._limits = limits or Limits()
        self.node: Node | None = None
        self.traffic = Traffic()
        self._links: dict[int, Link] = {}
        self._waiting: dict[int, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Link] = set()
        self._strangers = 0
        self._closing = False
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept connections; returns where."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=1 << 17)
        where = self._server.sockets[0].getsockname()
        return where[0], where[1]

    async def connect(self, address: str) -> tuple[int, str]:
        """Open a connection; returns the peer's number and this side's host.

        Raises:
            OSError, SessionError, asyncio.TimeoutError: it cannot be.
        """
        host, port = split_address(address)
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, limit=1 << 17), _HANDSHAKE
        )
        own = writer.get_extra_info("sockname")[0]
        session = Session(self._key, self._number, client=True)
        try:
            first = await asyncio.wait_for(self._shake(session, reader, writer), _HANDSHAKE)
        except BaseException:
            writer.close()
            raise
        self._enter(session, reader, writer, first)
        return session.peer, own

    def run(self, node: Node) -> None:
        """Take a node into service."""
        self.node = node
        self._start(self._ticks())

    async def close(self) -> None:
        """Close everything."""
        if self._server:
            self._server.close()
        self._closing = True
        for link in list(self._open):
            with contextlib.suppress(OSError, RuntimeError):
                link.writer.close()  # what is written still goes out
        for task in list(self._tasks):
            task.cancel()
        await asyncio.wait([*self._tasks, asyncio.ensure_future(asyncio.sleep(0))], timeout=2.0)

    # ------------------------------------------------------------------ the node

    def drive(self, event: Callable[[Node, float], None]) -> None:
        """Let something happen to the node, then send what it wants to send."""
        if self.node is None or self._closing:
            return
        event(self.node, time.monotonic())
        out, self.node.outbox[:] = list(self.node.outbox), []
        for dst, message in out:
            self._send(dst, message)
        self._changed()

    async def _ticks(self) -> None:
        while True:
            assert self.node is not None
            self.drive(lambda node, now: node.tick(now))
            silent = time.monotonic() - 2 * self.node.settings.election - 1.0
            for link in [x for x in self._open if x.seen < silent]:
                link.writer.transport.abort()  # a machine that vanished without a word
            await asyncio.sleep(min(0.05, self.node.settings.beat / 4))

    def _send(self, dst: int, message: Message) -> None:
        assert self.node is not None
        payload = encode(message, codec_of(self.node.identity))
        link = self._links.get(dst)
        if link is not None:
            self._write(link, payload)
        elif dst in self._waiting:
            if len(self._waiting[dst]) < _QUEUE:
                self._waiting[dst].append(payload)
        elif address := self.node.address(dst):
            self._waiting[dst] = [payload]
            self._start(self._dial(dst, address))

    def _write(self, link: Link, payload: bytes) -> None:
        frame = link.session.seal(payload)
        self.traffic.sent += len(frame)
        self.traffic.frames_sent += 1
        link.writer.write(frame)
        if link.writer.transport.get_write_buffer_size() > _BACKLOG:
            link.writer.transport.abort()  # a peer that does not read must not fill our memory

    async def _dial(self, dst: int, address: str) -> None:
        try:
            peer, _ = await self.connect(address)
            link = self._links.get(dst)
            if peer == dst and link is not None:
                for payload in self._waiting.get(dst, []):
                    self._write(link, payload)
        except (OSError, FormatError, asyncio.TimeoutError, LowtideValueError):
            self.drive(lambda node, now: node.lost(dst, now))
            await asyncio.sleep(0.1)  # not more than ten attempts a second
        finally:
            self._waiting.pop(dst, None)

    # ------------------------------------------------------------------ connections

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= _STRANGERS or len(self._open) >= _CONNECTIONS:
            writer.close()
            return
        self._strangers += 1
        session = Session(self._key, self._number, client=False)
        try:
            first = await asyncio.wait_for(self._shake(session, reader, writer), _HANDSHAKE)
        except (OSError, FormatError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            writer.close()
            return
        finally:
            self._strangers -= 1
        self._enter(session, reader, writer, first)

    def _enter(
        self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: list[bytes]
    ) -> None:
        """From now on this connection is the one that messages to its peer take."""
        link = Link(session, writer)
        self._links[session.peer] = link
        self._open.add(link)
        self._start(self._carry(link, reader, first))

    async def _shake(
        self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> list[bytes]:
        """Exchange preambles and proofs; payloads that came right behind them."""
        writer.write(session.preamble)
        session.start(await reader.readexactly(PREAMBLE_BYTES))
        proof = session.seal(b"")
        writer.write(proof)
        self.traffic.sent += len(proof) + PREAMBLE_BYTES
        self.traffic.received += PREAMBLE_BYTES
        payloads: list[bytes] = []
        while not session.proven:
            data = await reader.read(1 << 16)
            if not data:
                raise SessionError("the peer closed the connection; it may hold another key")
            self.traffic.received += len(data)
            payloads += session.feed(data)
        return payloads

    async def _carry(self, link: Link, reader: asyncio.StreamReader, first: list[bytes]) -> None:
        peer, session = link.session.peer, link.session
        now = time.monotonic()
        frames = Bucket(self._limits.frames, 2 * self._limits.frames, now)
        volume = Bucket(self._limits.bytes, 2 * self._limits.bytes, now)
        try:
            self._receive(peer, first)
            while True:
                data = await reader.read(1 << 16)
                if not data or self._closing:
                    return
                link.seen = time.monotonic()
                self.traffic.received += len(data)
                payloads = list(session.feed(data))
                self._receive(peer, payloads)
                now = time.monotonic()
                pause = max(frames.take(len(payloads), now), volume.take(len(data), now))
                if pause:
                    await asyncio.sleep(pause)
        except (OSError, LowtideError):
            pass  # what does not follow the protocol ends the connection, and only that
        finally:
            self._open.discard(link)
            with contextlib.suppress(OSError, RuntimeError):
                link.writer.close()
            if self._links.get(peer) is link:
                del self._links[peer]
                self.drive(lambda node, now: node.lost(peer, now))

    def _receive(self, peer: int, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.traffic.frames_received += 1
            if self.node is None:
                continue
            message = decode(payload, codec_of(self.node.identity))
            self.drive(lambda node, now, m=message: node.receive(peer, m, now))  # type: ignore[misc]
