# SPDX-License-Identifier: Apache-2.0
"""Nodes on a simulated network that loses, duplicates, delays, reorders and partitions; everything from one seed."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from dataclasses import dataclass, field

from lowtide.spsa._codec import get_codec
from lowtide.spsa._commit import Commit
from lowtide.spsa.comm._config import Config, Member
from lowtide.spsa.comm._history import History
from lowtide.spsa.comm._messages import Identity, decode, encode
from lowtide.spsa.comm._node import Node, Settings

RUN = Identity(b"r" * 16, "log8", b"rng", b"manifest", b"base")
LOG8 = get_codec("log8")
FAST = Settings(
    beat=0.2,
    election=1.0,
    stagger=0.3,
    first_deadline=3.0,
    min_deadline=0.2,
    quorum=0.5,
    misses=3,
    wait_for=1,
)


def code_of(step: int, slot: int) -> int:
    """What any worker finds for a slot: a pure function; sometimes no contribution."""
    return hashlib.blake2b(f"{step}/{slot}".encode(), digest_size=1).digest()[0]


@dataclass
class Host:
    node: Node
    speed: float
    contact: int = 0
    alive: bool = True
    busy_until: float = 0.0
    computed: int = -1
    next_tick: float = 0.0
    asked_ready: float = -1.0
    slots_seen: list[tuple[int, list[int]]] = field(default_factory=list)


class Simulator:
    """Time, messages and hosts; checks after each event that no two nodes ever disagree."""

    def __init__(self, seed: int, *, total: int = 4, copies: int = 0, settings: Settings = FAST) -> None:
        self.random = random.Random(seed)
        self.settings, self.now = settings, 0.0
        self.drop = self.duplicate = 0.0
        self.delay = 0.01
        self.cut: set[frozenset[int]] = set()
        self.hosts: dict[int, Host] = {}
        self.commits: dict[int, Commit] = {}
        self.configs: dict[int, Config] = {}
        self.leaders: dict[int, int] = {}
        self._queue: list[tuple[float, int, int, int, bytes]] = []
        self._count = itertools.count()
        self._ids = itertools.count(1)
        first = self._member("seq", 0)
        self.sequencer = first.node
        node = Node(first, settings, 0.0, config=Config((first,), first.node, total, copies))
        self.hosts[first.node] = Host(node, 0.0)

    def _member(self, name: str, slots: int) -> Member:
        # Numbers as real nodes have them: in no order.
        return Member(self.random.getrandbits(62) + 1, name, slots, f"{name}:1")

    def worker(self, name: str, *, slots: int = 1, speed: float = 0.05, log: History | None = None) -> int:
        me = self._member(f"{name}-{next(self._ids)}", slots)
        history = History(RUN.run_id, LOG8)
        if log is not None:
            history.extend(log.commits)
        node = Node(me, self.settings, self.now, identity=RUN, history=history)
        contact = self.contact()
        self.hosts[me.node] = Host(node, speed, contact)
        node.join(contact, self.now)
        self._flush(me.node)
        return me.node

    def contact(self) -> int:
        alive = [n for n, h in self.hosts.items() if h.alive and h.node.is_member]
        return self.sequencer if self.sequencer in alive else self.random.choice(alive or [self.sequencer])

    def kill(self, node: int) -> None:
        """The process is gone; others notice the broken connection a little later."""
        self.hosts[node].alive = False
        for other, host in self.hosts.items():
            if host.alive and self.random.random() < 0.9:
                self._later(self.random.uniform(0.0, 0.2), node, other, b"")

    def partition(self, group: set[int]) -> None:
        self.cut = {frozenset((a, b)) for a in group for b in self.hosts if b not in group}

    def _later(self, delay: float, src: int, dst: int, data: bytes) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._count), src, dst, data))

    def _flush(self, src: int) -> None:
        node = self.hosts[src].node
        out, node.outbox[:] = list(node.outbox), []
        for dst, message in out:
            data = encode(message, LOG8)
            assert decode(data, LOG8) == message
            if dst not in self.hosts or frozenset((src, dst)) in self.cut:
                continue
            if self.random.random() < self.drop:
                continue
            for _ in range(1 + (self.random.random() < self.duplicate)):
                self._later(self.random.uniform(0.2, 2.0) * self.delay, src, dst, data)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            ticks = min(h.next_tick for h in self.hosts.values() if h.alive)
            if self._queue and self._queue[0][0] <= ticks:
                when, _, src, dst, data = heapq.heappop(self._queue)
                self.now = max(self.now, when)
                host = self.hosts[dst]
                if host.alive:
                    if data:
                        host.node.receive(src, decode(data, LOG8), self.now)
                    else:
                        host.node.lost(src, self.now)
                    self._after(dst)
            else:
                self.now = max(self.now, ticks)
                for n, host in list(self.hosts.items()):
                    if host.alive and host.next_tick <= self.now:
                        host.next_tick = self.now + 0.02
                        host.node.tick(self.now)
                        self._work(host)
                        self._after(n)

    def _work(self, host: Host) -> None:
        """A training loop: evaluate the slots of the open step, give their codes, ask for slots."""
        node = host.node
        if not node.joined or not node.me.slots:
            return
        if not node.is_member:
            hangs = host.speed > 1e6  # only a training loop that runs asks for slots
            if not hangs and self.now - host.asked_ready > self.settings.beat:
                host.asked_ready = self.now
                node.ready(self.now)
            return
        if host.computed < node.step and host.slots_seen[-1:] != [(node.step, [])]:
            host.computed = node.step
            host.slots_seen.append((node.step, node.config.slots_of(node.me.node)))
            host.busy_until = self.now + host.speed * self.random.uniform(0.8, 1.5)
        step, slots = host.slots_seen[-1]
        if slots and self.now >= host.busy_until:
            host.slots_seen[-1] = (step, [])
            node.submit(step, tuple((s, code_of(step, s)) for s in slots), self.now)

    def _after(self, n: int) -> None:
        self._flush(n)
        node = self.hosts[n].node
        if node.lead:
            assert self.leaders.setdefault(node.epoch, n) == n, f"two leaders of epoch {node.epoch}"
        if node.joined and node.history is not None and node.history.step > node.history.first:
            last = node.history.commits[-1]
            assert self.commits.setdefault(last.step, last) == last, f"two commits of step {last.step}"
        if node.joined:
            assert self.configs.setdefault(node.index, node.config) == node.config, f"index {node.index}"

    def node(self, name: str) -> Node:
        return next(h.node for h in self.hosts.values() if h.node.me.name.split("-")[0] == name)

    @property
    def leader(self) -> Node:
        return max((n for n in self.alive() if n.lead), key=lambda n: n.epoch)

    def alive(self) -> list[Node]:
        return [h.node for h in self.hosts.values() if h.alive]

    def settle(self, steps: int, limit: float = 60.0) -> None:
        """Without further faults the run goes on, and everybody alive has it."""
        self.drop = self.duplicate = 0.0
        self.delay, self.cut = 0.01, set()
        start = max(n.step for n in self.alive())
        end = self.now + limit
        # Who never got an answer from the one address it was given cannot take part.
        lost = [h for h in self.hosts.values() if not h.node.joined and not self.hosts[h.contact].alive]
        for host in lost:
            host.alive = False
        workers = [n for n in self.alive() if n.me.slots]
        while self.now < end and not all(
            n.joined and n.step >= start + steps and n.is_member for n in workers
        ):
            self.run(0.25)
        states = [(n.me.name, n.joined, n.is_member, n.step, n.epoch, bool(n.lead)) for n in self.alive()]
        assert all(n.joined and n.step >= start + steps and n.is_member for n in workers), (start, states)
        for node in workers:
            assert node.history is not None
            for commit in node.history.commits:
                assert self.commits[commit.step] == commit
                for slot, code in commit.codes:
                    assert code == code_of(commit.step, slot) != 0
