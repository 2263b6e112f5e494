# SPDX-License-Identifier: Apache-2.0
"""The leader's part of a node: members, deadlines, and the one entry that is proposed."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING

from lowtide.spsa._codec import get_codec
from lowtide.spsa._commit import MAX_CODES, Commit
from lowtide.spsa.comm._config import MAX_MEMBERS, MAX_TOTAL, Config, Member
from lowtide.spsa.comm._history import History
from lowtide.spsa.comm._messages import (
    MAX_PART,
    PART_BYTES,
    Ack,
    Beat,
    Decided,
    DigestReport,
    Diverged,
    Join,
    Propose,
    Refuse,
    State,
    Submit,
)  # fmt: skip
from lowtide.spsa.comm._protocol import PROTOCOL, commit_of

if TYPE_CHECKING:
    from lowtide.spsa.comm._node import Node

#: Steps whose digests are compared at the same time.
_DIGESTS = 8
_ARRIVALS = 256


class Leader:
    """What a node does while it leads: created at its election, dropped when a higher epoch shows up."""

    def __init__(self, node: Node, now: float) -> None:
        self.node = node
        self.guests: dict[int, Member] = {}
        self.gone: dict[int, float] = {}
        self.late = 0
        self._started = node.epoch > 1
        self._ready: list[int] = []
        self._remove: set[int] = set()
        self._left: set[int] = set()
        self._acks: set[int] = set()
        self._codes: dict[int, int] = {}
        self._from: set[int] = set()
        self._misses: Counter[int] = Counter()
        self._opened = self._beaten = now
        self._times: dict[int, float] = {}
        self._arrivals: deque[float] = deque(node.intervals, maxlen=_ARRIVALS)
        self._digests: dict[int, dict[int, bytes]] = {}
        self._agreed: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._seen: dict[int, float] = {m.node: now for m in node.config.members}

    def begin(self, now: float) -> None:
        """Finish what was proposed before; then this node becomes the anchor."""
        node = self.node
        if node.pending:
            self._propose(node.pending.entry)
        self._beat_all()
        self.advance(now)

    # ------------------------------------------------------------------ members

    def join(self, src: int, m: Join, now: float) -> None:
        """Somebody wants the state of the run."""
        reason = self._refusal(src, m)
        if reason:
            self.node.send(src, Refuse(reason))
            return
        history = self.node.history
        assert history is not None
        common = history.common(m.ladder)
        if common is None:
            self.node.send(
                src,
                Refuse(
                    f"history: the steps before {history.first} are not here, and the log that was brought (up to step "
                    f"{m.ladder[0][0]}) is of another run or ends earlier; start from a snapshot of step {history.first} or later"
                ),
            )
            return
        self.gone.pop(src, None)
        if self.node.config.member(src) is None:
            self.guests[src] = m.member
        self._state(src, common)

    def _refusal(self, src: int, m: Join) -> str:
        node = self.node
        if m.protocol != PROTOCOL:
            return f"protocol: this is version {PROTOCOL}, got {m.protocol}; use the same release of lowtide everywhere"
        if m.member.node != src:
            return "node: a message in another node's name"
        if node.identity is None:
            try:
                codec = get_codec(m.identity.codec)
            except ValueError:
                return (
                    f"codec: {m.identity.codec!r} is unknown here; use the same release of lowtide everywhere"
                )
            node.identity = m.identity
            step, chain = m.ladder[0]
            node.history = History(m.identity.run_id, codec, step, chain if step else b"")
        for name, what in (
            ("run_id", "the run id"), ("codec", "the codec"), ("rng", "the digest of the random numbers' self-test"),
            ("manifest", "the digest of the parameters (names, shapes, dtypes, settings)"),
            ("base", "the digest of the weights at step 0"),
        ):  # fmt: skip
            if getattr(node.identity, name) != getattr(m.identity, name):
                return f"{name}: {what} differs from that of the run; all workers must start from the same model and settings"
        others = {**self.guests, **{x.node: x for x in node.config.members}}
        others.pop(src, None)
        if len(others) >= MAX_MEMBERS:
            return f"members: there are {MAX_MEMBERS} already"
        if any(x.name == m.member.name and n not in self.gone for n, x in others.items()):
            return f"worker: the name {m.member.name!r} is taken by a living worker; choose another one"
        slots = m.member.slots + sum(x.slots for x in others.values())
        codec = get_codec(node.identity.codec)
        if slots > MAX_TOTAL or codec.size(slots) > MAX_CODES:
            return f"slots: {m.member.slots} more than fit into one step"
        return ""

    def _state(self, dst: int, first: int) -> None:
        """Send the commits from ``first`` on, in parts, and the configuration."""
        node, history = self.node, self.node.history
        if history is None:
            return
        size = history.codec.size(max(1, node.config.slots_total)) + 16
        part = max(1, min(MAX_PART, PART_BYTES // size))
        while True:
            commits = tuple(history.commits[first - history.first :][:part])
            chain = history.chain_at(first)
            assert chain is not None
            after = first + len(commits)
            more = after < history.step
            epoch = node.epoch
            node.send(dst, State(epoch, node.me.node, node.index, node.config, first, chain, commits, more))
            first = after
            if not more:
                return

    def ready(self, src: int, now: float) -> None:
        """A guest has caught up."""
        if src != self.node.me.node and now - self.node.heard > 4 * self.node.settings.election:
            self.node.send(
                src,
                Refuse(
                    "quorum: too few of the members live to decide anything, a new one included; the logs are whole: "
                    "start a new sequencer and join it with them"
                ),
            )
            return
        if src == self.node.me.node:
            self.guests.setdefault(src, self.node.me)
        if self.node.config.member(src) is None and src in self.guests and src not in self._ready:
            self._ready.append(src)
        self.advance(now)

    def leave(self, src: int, now: float) -> None:
        """A member goes of its own will, and votes for nobody any more: that is as good as a yes to whatever comes.

        A later leader's quorum is without it, so each of the two quorums still has a node that remembers in common.
        """
        self._remove.add(src)
        self._left.add(src)
        self.lost(src, now)

    def lost(self, src: int, now: float) -> None:
        """A connection broke: its slots are not waited for until it is heard of again."""
        self.guests.pop(src, None)
        if src in self._ready:
            self._ready.remove(src)
        if self.node.config.member(src) is not None:
            self.gone.setdefault(src, now)
        self.advance(now)

    # ------------------------------------------------------------------ steps

    def submit(self, src: int, m: Submit, now: float) -> None:
        """Codes came: a code is valid whoever evaluated it, the first one of a slot counts."""
        if self.node.config.member(src) is None:
            return
        opened = self._times.get(m.step)
        if opened is not None and src not in self._from:
            self._arrivals.append(now - opened)
        if m.step != self.node.step:
            self.late += m.step < self.node.step
            return
        self.gone.pop(src, None)
        self._from.add(src)
        for slot, code in m.codes:
            if slot < self.node.config.slots_total:
                self._codes.setdefault(slot, code)

    def _deadline(self) -> float:
        times, settings = sorted(self._arrivals), self.node.settings
        if len(times) < 4:
            return settings.first_deadline
        return max(settings.min_deadline, 1.5 * times[math.ceil(0.9 * len(times)) - 1])

    def _ripe(self, now: float) -> tuple[bool, bool]:
        """Whether the open step can be committed, and whether some did not answer in time."""
        config, settings = self.node.config, self.node.settings
        total = config.slots_total
        self._started = self._started or len(config.workers) >= settings.wait_for
        if not total or not self._from or not self._started:
            return False, False
        arrived = sum(s < total for s in self._codes)
        if arrived >= total:
            return True, False
        living = [m.node for m in config.workers if m.node not in self.gone]
        alive = {s for node in living for s in config.slots_of(node)}
        # Slots may have moved since they were evaluated: who has answered owes nothing more in this step.
        if all(s in self._codes for s in alive) or self._from.issuperset(living):
            return True, True
        late = now - self._opened > self._deadline()
        return late and arrived >= max(1, math.ceil(settings.quorum * len(alive))), True

    # ------------------------------------------------------------------ the open entry

    def advance(self, now: float) -> None:
        """Decide and propose what can be."""
        node = self.node
        while node.lead is self:
            if node.pending is not None:
                entry = node.pending.entry
                acks = self._acks | self._left
                joint = not isinstance(entry, Config) or entry.quorum(acks)
                if not (joint and node.config.quorum(acks)):
                    return
                self._decide(entry, now)
                continue
            change = self._change(now)
            if change is not None:
                self._propose(change)
                continue
            ripe, missing = self._ripe(now)
            if not ripe:
                return
            assert node.identity is not None
            total = node.config.slots_total
            if missing:
                for m in node.config.workers:
                    self._misses[m.node] = 0 if m.node in self._from else self._misses[m.node] + 1
            else:
                self._misses.clear()
            self._propose(commit_of(node.step, total, self._codes, node.identity.codec))

    def _change(self, now: float) -> Config | None:
        node, config = self.node, self.node.config
        patience = 2 * node.settings.election
        remove = {
            m.node
            for m in config.members
            if m.node in self._remove
            or self._misses[m.node] >= node.settings.misses
            or now - self.gone.get(m.node, now) > patience
        } - {node.me.node}
        if node.me.node in self._ready and node.is_member:
            self._ready.remove(node.me.node)
        add = [self.guests[n] for n in self._ready if n in self.guests]
        # Between two steps, so that slots do not move under workers; unless nobody would end the step.
        stuck = not self._started or now - self._opened > self._deadline()
        stuck = stuck or all(m.node in self.gone for m in config.workers)
        if (add or remove) and (not self._from or stuck):
            return config.changed(node.me.node, add, remove)
        return config.changed(node.me.node) if config.anchor != node.me.node else None

    def _propose(self, entry: Commit | Config) -> None:
        node = self.node
        node.pending = Propose(node.epoch, node.index, entry)
        self._acks = {node.me.node}
        for dst in node.audience(entry):
            node.send(dst, node.pending)

    def _decide(self, entry: Commit | Config, now: float) -> None:
        node = self.node
        audience, decided, before = node.audience(entry), Decided(node.epoch, node.index), node.step
        old = node.config
        node.apply(entry)
        for dst in audience:
            node.send(dst, decided)
        if isinstance(entry, Config):
            members = {m.node for m in entry.members}
            for m in old.members:  # whoever was removed and lives may come back
                if m.node not in members and m.node not in self.gone:
                    self.guests[m.node] = m
            self._ready = [n for n in self._ready if n not in members]
            self._remove &= members
            self.gone = {n: t for n, t in self.gone.items() if n in members}
            self._misses = Counter({n: c for n, c in self._misses.items() if n in members})
            self.guests = {n: g for n, g in self.guests.items() if n not in members}
        else:
            self._codes, self._from = {}, set()
            self._times[node.step] = now
            self._times.pop(node.step - 64, None)
        self._opened = now
        for dst in self.guests:
            if dst != node.me.node:
                self._state(dst, before)

    def ack(self, src: int, m: Ack) -> None:
        """A node holds the proposal."""
        pending = self.node.pending
        if pending and m.epoch == pending.epoch and m.index == pending.index:
            self._acks.add(src)

    # ------------------------------------------------------------------ beats and digests

    def tick(self, now: float) -> None:
        """Let time pass."""
        if now - self._beaten >= self.node.settings.beat:
            self._beaten = now
            self._beat_all()
            node = self.node
            near = {n for n, t in self._seen.items() if now - t < 2 * node.settings.election}
            for m in node.config.members:  # silent, though no connection is known to have broken
                if (
                    now - self._seen.setdefault(m.node, now) > 2 * node.settings.election
                    and m.node != node.me.node
                ):
                    self.gone.setdefault(m.node, now)
            if node.config.quorum(near | self._left | {node.me.node}):
                node.heard = now  # otherwise it can decide nothing, and whoever waits should know
        self.advance(now)

    def _beat_all(self) -> None:
        node = self.node
        message = Beat(node.epoch, node.me.node, node.index, node.step)
        for dst in {*node.audience(node.pending.entry if node.pending else None), *self.guests} - {
            node.me.node
        }:
            node.send(dst, message)

    def beat(self, src: int, m: Beat, now: float) -> None:
        """A follower answers: what it lost on the way is sent again."""
        node = self.node
        self._seen[src] = now
        self._known[src] = max(m.index, self._known.get(src, 0))
        if m.leader == node.me.node:
            self.gone.pop(src, None)
        if m.index < node.index and node.history is not None and node.history.first <= m.step <= node.step:
            self._state(src, m.step)
        elif node.pending and m.index == node.index and src not in self._acks:
            node.send(src, node.pending)

    @property
    def heeded(self) -> bool:
        """Whether all living members are known to have everything that was decided."""
        others = (m.node for m in self.node.config.members if m.node != self.node.me.node)
        return all(n in self.gone or self._known.get(n, -1) >= self.node.index for n in others)

    def digest(self, src: int, m: DigestReport, now: float) -> None:
        """Compare digests: what most workers have is right; without a majority nobody is."""
        node = self.node
        if m.step > node.step:
            return
        if node.config.member(src) is None:  # one that catches up: compared, not counted
            known = Counter(self._digests.get(m.step, {}).values()).most_common(1)
            if known and known[0][0] != m.digest:
                node.send(src, Diverged(m.step, 0))
            return
        votes = self._digests.setdefault(m.step, {})
        votes[src] = m.digest
        while len(self._digests) > _DIGESTS:
            del self._digests[min(self._digests)]
        workers = {w.node for w in node.config.workers if w.node not in self.gone} | set(votes)
        best, count = Counter(votes.values()).most_common(1)[0]
        if 2 * count <= len(workers) and len(votes) < len(workers):
            return
        agreed = best if 2 * count > len(workers) else None
        for who, digest in votes.items():
            if digest == agreed:
                self._agreed[who] = max(m.step, self._agreed.get(who, 0))
                continue
            message = Diverged(m.step, min(m.step, self._agreed.get(who, 0)))
            if who == node.me.node:
                node.diverged = message
            else:
                node.send(who, message)
