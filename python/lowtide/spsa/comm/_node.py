# SPDX-License-Identifier: Apache-2.0
"""One node of a run as a state machine without sockets, clocks and threads.

Nodes agree on a sequence of entries: commits of steps and configurations of members. One entry is open at a time. The
leader of an epoch proposes it, members hold it and say so, and what a quorum holds is decided: this is Raft (Ongaro,
Ousterhout 2014) with a log of one open entry. A node promises in a vote not to accept from lower epochs
(fencing), and votes only for candidates that hold at least what it holds, so two leaders never decide differently.
A configuration needs a quorum of the members before it and of those after it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.spsa._commit import Commit
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
    Message,
    Propose,
    Ready,
    Redirect,
    Refuse,
    State,
    Submit,
    Vote,
    VoteReply,
)  # fmt: skip
from lowtide.spsa.comm._protocol import PROTOCOL, CommError

if TYPE_CHECKING:
    from lowtide.spsa.comm._leader import Leader


@dataclass(frozen=True)
class Settings:
    """Times in seconds, and what a step waits for.

    Attributes:
        beat: between signs of life.
        election: silence of the leader after which the first member stands for election; each further one waits
            ``stagger`` longer.
        first_deadline: for a step as long as no times are known; then 1.5 times the 90th percentile of recent ones.
        min_deadline: no step is given less.
        quorum: share of the living members' slots that a step needs at its deadline.
        misses: steps in a row without a code after which a member has to go.
        wait_for: workers before the first step begins.
    """

    beat: float = 1.0
    election: float = 5.0
    stagger: float = 1.0
    first_deadline: float = 600.0
    min_deadline: float = 0.5
    quorum: float = 0.5
    misses: int = 3
    wait_for: int = 1


class Node:
    """A node.

    Whoever drives it calls :meth:`receive`, :meth:`lost` and :meth:`tick`, then takes what is in ``outbox``.

    Args:
        me: this node. settings: times. now: the time.
        identity: the run; None for a sequencer that takes it from the first worker.
        history: what is decided already.
        config: for the node that starts a run: who takes part at first. None joins an existing run.
    """

    def __init__(
        self, me: Member, settings: Settings, now: float, *, identity: Identity | None = None,
        history: History | None = None, config: Config | None = None,
    ) -> None:  # fmt: skip
        self.me, self.settings = me, settings
        self.identity, self.history = identity, history
        self.config = config or Config()
        self.epoch = self.voted = self.leader = 0
        self.index = 0
        self.pending: Propose | None = None
        self.heard = now
        self.outbox: list[tuple[int, Message]] = []
        self.submission: Submit | None = None
        self.lead: Leader | None = None
        self.joined = config is not None
        self.start = history.step if history else 0
        self.refused = ""
        self.left = False
        self.diverged: Diverged | None = None
        self.addresses: dict[int, str] = {}
        self._votes: set[int] | None = None
        self._due = 0.0
        self._asked = self._sent = self._stood = float("-inf")
        self._target = self._contact = self._asks = 0
        self._wants = False
        #: Times between commits, from which a new leader knows how long a step may take.
        self.intervals: deque[float] = deque(maxlen=64)
        self._applied = now
        if config is not None:
            self._adopt(1, me.node, now)
            self._take_lead(now)

    # ------------------------------------------------------------------ what the worker does

    @property
    def step(self) -> int:
        """The step that is open."""
        return self.history.step if self.history else 0

    @property
    def is_member(self) -> bool:
        """Whether this node is in the configuration."""
        return self.config.member(self.me.node) is not None

    def join(self, target: int, now: float) -> None:
        """Ask a node for the state of the run; asked again until it comes."""
        if self.history is None or self.identity is None:
            raise ValueError("a node without identity cannot join")
        self._contact = self._contact or target
        self._target, self._asked, self._asks, self._wants = target, now, self._asks + 1, True
        self._send(target, Join(PROTOCOL, self.me, self.identity, self.history.ladder()))

    def ready(self, now: float) -> None:
        """Ask for slots: this node has caught up."""
        if self.lead:
            self.lead.ready(self.me.node, now)
        elif self.leader:
            self._send(self.leader, Ready(self.step))

    def submit(self, step: int, codes: tuple[tuple[int, int], ...], now: float) -> None:
        """Give codes; they are sent again to a new leader until the step is decided."""
        if step != self.step:
            late = Submit(self.epoch, step, codes)
            if codes and step < self.step and self.leader and not self.lead:
                self._send(self.leader, late)  # tells the leader how long this worker takes
            return
        self.submission = Submit(self.epoch, step, codes)
        self._submit(now)

    def report(self, step: int, digest: bytes, now: float) -> None:
        """Give the digest of the weights after ``step`` steps."""
        message = DigestReport(step, digest)
        if self.lead:
            self.lead.digest(self.me.node, message, now)
        elif self.leader:
            self._send(self.leader, message)

    def leave(self) -> None:
        """Say goodbye: from here on nothing is answered, see ``Leader.leave``."""
        self.left = True
        if self.leader and not self.lead:
            self._send(self.leader, Leave())

    def address(self, node: int) -> str:
        """Where a node is reached; empty if unknown."""
        known = self.config.member(node)
        if known is None and self.pending is not None and isinstance(self.pending.entry, Config):
            known = self.pending.entry.member(node)
        return known.address if known else self.addresses.get(node, "")

    # ------------------------------------------------------------------ events

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self.left:
            return
        if self.lead:
            self.lead.tick(now)
            return
        if self._wants and now - self._asked >= self.settings.beat:
            if self.joined and not self.is_member:
                self._ask_around(now)
            else:  # whom one was sent to may be gone: every third time the first contact is asked
                again = not self.joined and self._asks % 3 == 2
                self.join(self._contact if again else self._target, now)
        if not self.joined:
            return
        if self.submission and self.leader and now - self._sent >= self.settings.beat:
            self._submit(now)
        silence = self.settings.election + self.settings.stagger * self.config.rank(self.me.node)
        if self.is_member:
            if now - max(self.heard, self._stood) > silence:
                self._stand(now)
        elif now - max(self.heard, self._asked) > self.settings.election:
            self._ask_around(now)

    def lost(self, node: int, now: float) -> None:
        """The connection to a node is gone."""
        if self.lead:
            self.lead.lost(node, now)
        elif node == self.leader:
            self.heard = min(self.heard, now - self.settings.election)

    def receive(self, src: int, message: Message, now: float) -> None:
        """Take in a message of node ``src``."""
        if self.left:
            return
        epoch = getattr(message, "epoch", None)
        if epoch is not None and not isinstance(message, Vote):
            if epoch < self.epoch and self.joined and not isinstance(message, Beat | VoteReply):
                self._send(src, self._beat())  # fencing: a leader of before learns that it was replaced
                if not isinstance(message, State):  # what is decided is so in every epoch
                    return
            if epoch > self.epoch:
                leads = isinstance(message, Propose | Decided | State)
                self._adopt(epoch, src if leads else 0, now)
        if isinstance(message, Propose | Decided):
            self._follow(src, now)
        handler = getattr(self, f"_on_{type(message).__name__.lower()}")
        handler(src, message, now)
        if self.lead:
            self.lead.advance(now)

    def _on_join(self, src: int, m: Join, now: float) -> None:
        self.addresses[src] = m.member.address
        if self.lead:
            self.lead.join(src, m, now)
        else:
            self._send(src, Redirect(self.leader, self.address(self.leader)))

    def _on_refuse(self, src: int, m: Refuse, now: float) -> None:
        if self._wants or not self.is_member:
            self.refused = m.reason

    def _on_redirect(self, src: int, m: Redirect, now: float) -> None:
        if m.node and m.node != self.me.node and not self.lead:
            self.addresses[m.node] = m.address
            if self._wants and self._target == src:  # once an answer, so that two nodes cannot send it around
                self.join(m.node, now)

    def _on_state(self, src: int, m: State, now: float) -> None:
        if self.history is None or self.lead:
            return
        if m.epoch == self.epoch:
            self._follow(m.leader, now)
        if self.joined and m.index < self.index:
            return
        if m.first > self.history.step or self.history.chain_at(m.first) != m.chain:
            self._ask(now)
            return
        for commit in m.commits:
            if self.history.at(commit.step) == commit:
                continue
            if commit.step != self.history.step:
                self._cut(commit.step)
            self.history.append(commit)
        if m.more:
            self._asked = now
            return
        if not self.joined:
            self._cut(m.first + len(m.commits))
        self.joined, self._wants = True, False
        if m.index > self.index or not self.pending:
            self.pending = None
        self.index, self.config = m.index, m.config
        self._settled()

    def _cut(self, step: int) -> None:
        assert self.history is not None
        if self.joined:
            raise CommError(
                f"two different commits of step {step} were decided; a node with the key does not follow the protocol"
            )
        if step < self.history.step:
            self.history.cut(step)
            self.start = min(self.start, step)

    def _on_ready(self, src: int, m: Ready, now: float) -> None:
        if self.lead:
            self.lead.ready(src, now)

    def _on_submit(self, src: int, m: Submit, now: float) -> None:
        if self.lead:
            self.lead.submit(src, m, now)

    def _on_propose(self, src: int, m: Propose, now: float) -> None:
        if not self.joined:
            return
        if m.index == self.index and isinstance(m.entry, Commit) and m.entry.step != self.step:
            raise CommError(f"a commit of step {m.entry.step} was proposed where step {self.step} is open")
        if m.index == self.index:
            self.pending = m
        if m.index <= self.index:
            self._send(src, Ack(m.epoch, m.index))
        else:
            self._ask(now)

    def _on_ack(self, src: int, m: Ack, now: float) -> None:
        if self.lead:
            self.lead.ack(src, m)

    def _on_decided(self, src: int, m: Decided, now: float) -> None:
        if not self.joined or m.index < self.index:
            return
        if m.index == self.index and self.pending and self.pending.epoch == m.epoch:
            if isinstance(self.pending.entry, Commit):
                self.intervals.append(now - self._applied)
                self._applied = now
            self.apply(self.pending.entry)
        else:
            self._ask(now)

    def _on_beat(self, src: int, m: Beat, now: float) -> None:
        if m.epoch < self.epoch:
            if m.leader == src:
                self._send(src, self._beat())
            return
        if self.lead:
            self.lead.beat(src, m, now)
            return
        if m.leader == src:
            self._follow(src, now)
            self._send(src, self._beat())
            if m.index > self.index:
                self._ask(now)
            elif self.submission and now - self._sent >= self.settings.beat:
                self._submit(now)

    def _on_vote(self, src: int, m: Vote, now: float) -> None:
        fresh = self.leader and now - self.heard < self.settings.election
        if not self.joined or (m.epoch > self.epoch and (self.lead or fresh)):
            return
        mine = (self.index, self.pending.epoch + 1 if self.pending else 0)
        if m.epoch > self.epoch:
            self._adopt(m.epoch, 0, now)
        granted = m.epoch == self.epoch and self.voted in (0, src) and (m.index, m.pending) >= mine
        if granted:
            self.voted = src
            self._stood = now  # give the candidate the time of an election
        self._send(src, VoteReply(self.epoch, granted))

    def _on_votereply(self, src: int, m: VoteReply, now: float) -> None:
        if m.granted and m.epoch == self.epoch and self._votes is not None and not self.leader:
            self._votes.add(src)
            self._count(now)

    def _on_digestreport(self, src: int, m: DigestReport, now: float) -> None:
        if self.lead:
            self.lead.digest(src, m, now)

    def _on_diverged(self, src: int, m: Diverged, now: float) -> None:
        if src == self.leader and m.step <= self.step:
            self.diverged = m

    def _on_leave(self, src: int, m: Leave, now: float) -> None:
        if self.lead:
            self.lead.leave(src, now)

    # ------------------------------------------------------------------ entries and elections

    def apply(self, entry: Commit | Config) -> None:
        """Take in a decided entry."""
        if isinstance(entry, Commit):
            assert self.history is not None
            self.history.append(entry)
        else:
            self.config = entry
        self.index += 1
        self.pending = None
        self._settled()

    def _settled(self) -> None:
        if self.submission and self.submission.step < self.step:
            self.submission = None

    def _stand(self, now: float) -> None:
        self._adopt(self.epoch + 1, 0, now)
        self.voted, self._votes, self._stood = self.me.node, {self.me.node}, now
        vote = Vote(self.epoch, self.index, self.pending.epoch + 1 if self.pending else 0)
        for node in self.audience(self.pending.entry if self.pending else None):
            self._send(node, vote)
        self._ask_around(now)  # for the case that the run went on without this node
        self._count(now)

    def _ask_around(self, now: float) -> None:
        """Ask one member after the other for the state of the run: nobody owes it to a node that is no member."""
        others = [m.node for m in self.config.members if m.node != self.me.node]
        if others:
            at = (others.index(self._target) + 1) % len(others) if self._target in others else 0
            self.join(others[at], now)

    def _count(self, now: float) -> None:
        assert self._votes is not None
        entry = self.pending.entry if self.pending else None
        if self.config.quorum(self._votes) and (not isinstance(entry, Config) or entry.quorum(self._votes)):
            self.leader = self.me.node
            self._take_lead(now)

    def _take_lead(self, now: float) -> None:
        from lowtide.spsa.comm._leader import Leader

        self._votes = None
        self.lead = Leader(self, now)
        self.lead.begin(now)
        self._submit(now)

    def _adopt(self, epoch: int, leader: int, now: float) -> None:
        """Go to an epoch; what leads in a lower one ends."""
        self.epoch, self.leader, self.voted = epoch, leader, 0
        self.lead = self._votes = None
        if leader:
            self.heard = now
            self._submit(now)

    def _follow(self, leader: int, now: float) -> None:
        """Take a node for the leader of this epoch."""
        changed, self.leader, self.heard = self.leader != leader, leader, now
        if changed:
            self._submit(now)

    def audience(self, entry: Commit | Config | None = None) -> list[int]:
        """The other members, and those of a configuration that is proposed."""
        nodes = {m.node for m in self.config.members}
        if isinstance(entry, Config):
            nodes |= {m.node for m in entry.members}
        return sorted(nodes - {self.me.node})

    # ------------------------------------------------------------------ sending

    def _ask(self, now: float) -> None:
        """Ask the leader for what is missing, once a beat."""
        if self.leader and not (self._wants and now - self._asked < self.settings.beat):
            self.join(self.leader, now)

    def _submit(self, now: float) -> None:
        if self.submission is None:
            return
        self.submission = Submit(self.epoch, self.submission.step, self.submission.codes)
        self._sent = now
        if self.lead:
            self.lead.submit(self.me.node, self.submission, now)
            self.lead.advance(now)
        elif self.leader:
            self._send(self.leader, self.submission)

    def _beat(self) -> Beat:
        return Beat(self.epoch, self.leader, self.index, self.step)

    def _send(self, node: int, message: Message) -> None:
        self.outbox.append((node, message))

    send = _send
