# SPDX-License-Identifier: Apache-2.0
"""Workers and the sequencer over TCP, for programs that are not asynchronous."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import get_codec
from lowtide.spsa._commit import Commit
from lowtide.spsa._wire import FormatError
from lowtide.spsa.comm._config import MAX_NAME, MAX_TOTAL, Config, Member
from lowtide.spsa.comm._endpoint import Endpoint, Limits, Traffic, check_exposure, join_address, split_address
from lowtide.spsa.comm._history import History
from lowtide.spsa.comm._messages import Identity
from lowtide.spsa.comm._node import Node, Settings
from lowtide.spsa.comm._protocol import CommError, DivergedError, Hello, Joined
from lowtide.spsa.comm._session import load_key

T = TypeVar("T")


class _Runner:
    """An endpoint in a thread of its own."""

    def __init__(self, key: bytes | str | os.PathLike[str] | None, limits: Limits | None) -> None:
        self._key = load_key(key)
        self._number = secrets.randbits(62) + 1
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lowtide-comm", daemon=True)
        self._thread.start()
        self._endpoint = Endpoint(self._number, self._key, self._notify, limits)
        self._node: Node | None = None
        self._closed = False

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _drive(self, event: Callable[[Node, float], None]) -> None:
        self._loop.call_soon_threadsafe(self._endpoint.drive, event)

    @property
    def traffic(self) -> Traffic:
        """Bytes and frames so far, counted at the sockets."""
        return replace(self._endpoint.traffic)

    @property
    def members(self) -> list[str]:
        """Names of those who take part now."""
        return [m.name for m in self._node.config.members] if self._node else []

    @property
    def roster(self) -> dict[str, range]:
        """The slots of each worker that takes part now; copies are not in it."""
        config = self._node.config if self._node else Config()
        return {m.name: config.own_slots(m.node) for m in config.workers}

    @property
    def address(self) -> str:
        """``host:port`` under which others reach this node: a newcomer may ask any of them."""
        return self._node.me.address if self._node else ""

    @property
    def leader(self) -> str:
        """Name of the member that orders commits; empty while there is none."""
        node = self._node
        found = node.config.member(node.leader) if node else None
        return found.name if found else ""

    @property
    def epoch(self) -> int:
        """Number of the leader, counted from 1."""
        return self._node.epoch if self._node else 0

    @property
    def step(self) -> int:
        """The step that is open."""
        return self._node.step if self._node else 0

    def close(self) -> None:
        """Close all connections and end the thread."""
        if self._closed:
            return
        self._linger()
        self._closed = True
        self._notify()
        try:
            asyncio.run_coroutine_threadsafe(self._endpoint.close(), self._loop).result(10.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10.0)
            if not self._thread.is_alive():
                self._loop.close()

    def _linger(self) -> None:
        """A leader stays until the others have what it decided, so that a run's last step reaches all of them."""
        node = self._node
        if node is None or node.left:
            return
        end = time.monotonic() + 3 * node.settings.beat
        with self._changed:
            while (lead := node.lead) and not lead.heeded and time.monotonic() < end:
                self._changed.wait(0.05)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TCP(_Runner):
    """A worker: it evaluates slots, and takes over the sequencer's part if that fails.

    Args:
        address: ``host:port`` of the sequencer, or of any worker.
        worker: a name, unique among the living.
        slots: directions it wants to evaluate a step.
        key: the shared key: bytes (16 or more), or the path of a file with it; None takes ``LOWTIDE_KEY`` or
            ``LOWTIDE_KEY_FILE``. Without a key only this machine can be reached.
        bind: ``host:port`` to listen on, for the election of another sequencer; None takes the interface that reaches
            ``address`` and any port.
        advertise: ``host:port`` under which others reach it, where that is not ``bind``.
        patience: seconds without a sign of life of any sequencer until a call fails.
        settings: times of the protocol; those of the present leader count.
        limits: what a peer may send.

    Raises:
        LowtideValueError: a bad argument.
    """

    def __init__(
        self, address: str, *, worker: str, slots: int = 1, key: bytes | str | os.PathLike[str] | None = None,
        bind: str | None = None, advertise: str | None = None, patience: float = 60.0,
        settings: Settings | None = None, limits: Limits | None = None,
    ) -> None:  # fmt: skip
        host, _ = split_address(address)
        if not 1 <= len(worker.encode()) <= MAX_NAME or not worker.isprintable():
            raise LowtideValueError(
                f"worker must be a printable name of at most {MAX_NAME} bytes, got {worker!r}"
            )
        if not 1 <= slots <= MAX_TOTAL:
            raise LowtideValueError(f"slots must be in [1, {MAX_TOTAL}], got {slots!r}")
        if not patience > 0:
            raise LowtideValueError(f"patience must be > 0, got {patience!r}")
        check_exposure(host, load_key(key), "address")
        self._listen = split_address(bind, "bind") if bind else None
        if self._listen:
            check_exposure(self._listen[0], load_key(key), "bind")
        if advertise:
            split_address(advertise, "advertise")
        self._address, self._advertise, self._patience = address, advertise, patience
        self._worker, self._slots, self._settings = worker, slots, settings or Settings()
        super().__init__(key, limits)

    def join(self, hello: Hello) -> Joined:
        """Join the run, see ``Comm.join``.

        Raises:
            CommError: nobody answers, or the answer is no (it says why).
        """
        hello.check()
        if self._node is not None:
            raise CommError("join was called before; a communicator joins once")
        history = History(hello.run_id, get_codec(hello.codec), hello.first, hello.chain)
        history.extend(hello.commits)
        identity = Identity(hello.run_id, hello.codec, hello.rng, hello.manifest, hello.base)
        node = self._node = self._await(self._enter(identity, history))
        self._wait(lambda: node.joined, "the state of the run")
        assert node.history is not None
        start = max(node.start, node.history.first)
        return Joined(
            node.config.slots_total, start, tuple(node.history.commits[start - hello.first :]), node.epoch
        )

    async def _enter(self, identity: Identity, history: History) -> Node:
        end = time.monotonic() + self._patience
        while True:
            try:
                peer, host = await self._endpoint.connect(self._address)
                break
            except FormatError as error:
                raise CommError(f"{self._address}: {error}") from None
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
                if time.monotonic() > end:
                    raise CommError(
                        f"{self._address} does not answer ({error!r}); is the sequencer running?"
                    ) from None
                await asyncio.sleep(0.2)
        where = await self._endpoint.listen(*(self._listen or (host, 0)))
        address = self._advertise or join_address(*where)
        me = Member(self._number, self._worker, self._slots, address)
        node = Node(me, self._settings, time.monotonic(), identity=identity, history=history)
        self._endpoint.run(node)
        self._endpoint.drive(lambda n, now: n.join(peer, now))
        return node

    def slots(self, step: int) -> list[int]:
        """The slots of this worker, see ``Comm.slots``; waits until it is a member."""
        node = self._joined()
        asked = 0.0

        def settled() -> bool:
            nonlocal asked
            if node.step > step:
                return True
            if node.step == step and not node.is_member and time.monotonic() - asked > node.settings.beat:
                asked = time.monotonic()
                self._drive(lambda n, now: n.ready(now))
            return node.step == step and node.is_member

        self._wait(settled, f"its slots in step {step}")
        return [] if node.step > step else node.config.slots_of(node.me.node)

    def exchange(self, step: int, codes: dict[int, int]) -> Commit:
        """Give codes, wait for the commit, see ``Comm.exchange``."""
        node = self._joined()
        history = node.history
        assert history is not None
        if step < history.first:
            raise CommError(f"step {step} is before the beginning of this worker's history, {history.first}")
        pairs = tuple(sorted(codes.items()))
        self._drive(lambda n, now: n.submit(step, pairs, now))
        self._wait(lambda: history.step > step, f"the commit of step {step}")
        commit = history.at(step)
        assert commit is not None
        return commit

    def digest(self, step: int, digest: bytes) -> None:
        """Compare weights, see ``Comm.digest``."""
        node = self._joined()
        self._check(node)
        self._drive(lambda n, now: n.report(step, digest, now))

    def close(self) -> None:
        """Say goodbye and close."""
        if self._node is not None and not self._closed:
            self._linger()
            self._drive(lambda n, now: n.leave())
        super().close()

    def _joined(self) -> Node:
        if self._node is None:
            raise CommError("join must be called first")
        return self._node

    def _check(self, node: Node) -> None:
        if self._closed:
            raise CommError("this communicator was closed")
        if node.refused:
            raise CommError(f"the run refuses this worker: {node.refused}")
        if node.diverged:
            raise DivergedError(node.diverged.step, node.diverged.since)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        node = self._joined()
        with self._changed:
            while True:
                self._check(node)
                if ready():
                    return
                silence = time.monotonic() - node.heard
                if silence > self._patience:
                    raise CommError(
                        f"no sequencer with a quorum was heard of for {silence:.0f} s while waiting for {what}: too few of the members "
                        f"{', '.join(self.members) or '(none)'} live. The log is whole: start a new sequencer and join it"
                    )
                self._changed.wait(0.5)


class Sequencer(_Runner):
    """The first member of a run: it orders commits and evaluates nothing.

    Args:
        bind: ``host:port`` to listen on; port 0 takes a free one.
        key: as for :class:`TCP`.
        slots: directions of a step, dealt to the workers in proportion to what they want; 0: what they want in sum.
        copies: further workers that evaluate each slot, so that as many may be slow without a loss.
        advertise: ``host:port`` under which workers reach it, where that is not ``bind``.
        name: what it is called.
        settings: times of the protocol. limits: what a peer may send.

    Raises:
        LowtideValueError: a bad argument. CommError: the port cannot be listened on.
    """

    def __init__(
        self, bind: str = "127.0.0.1:0", *, key: bytes | str | os.PathLike[str] | None = None, slots: int = 0,
        copies: int = 0, advertise: str | None = None, name: str = "sequencer",
        settings: Settings | None = None, limits: Limits | None = None,
    ) -> None:  # fmt: skip
        host, port = split_address(bind, "bind")
        check_exposure(host, load_key(key), "bind")
        if not 0 <= slots <= MAX_TOTAL:
            raise LowtideValueError(f"slots must be in [0, {MAX_TOTAL}], got {slots!r}")
        if not 0 <= copies < 256:
            raise LowtideValueError(f"copies must be in [0, 256), got {copies!r}")
        super().__init__(key, limits)
        try:
            self._await(self._begin(host, port, advertise, name, slots, copies, settings))
        except OSError as error:
            self.close()
            raise CommError(f"bind: {bind} cannot be listened on: {error}") from None

    async def _begin(
        self, host: str, port: int, advertise: str | None, name: str, slots: int, copies: int, settings: Settings | None
    ) -> None:  # fmt: skip
        address = join_address(*await self._endpoint.listen(host, port))
        me = Member(self._number, name, 0, advertise or address)
        config = Config((me,), me.node, slots, copies)
        self._node = Node(me, settings or Settings(), time.monotonic(), config=config)
        self._endpoint.run(self._node)
