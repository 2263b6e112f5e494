# SPDX-License-Identifier: Apache-2.0
"""Who takes part, who evaluates which slots, and which sets of nodes may decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lowtide.spsa._wire import Reader, put_text, varint

#: Bounds of what a peer may claim.
MAX_MEMBERS = 256
MAX_NAME = 64
MAX_ADDRESS = 128
MAX_TOTAL = 1 << 16
MAX_NODE = (1 << 63) - 1


@dataclass(frozen=True)
class Member:
    """A node of the run.

    Attributes:
        node: random 63-bit number of one process; a restarted worker is a new node.
        name: what its user calls it.
        slots: directions it wants to evaluate a step; 0 for a node that only orders commits.
        address: ``host:port`` where others reach it, empty where they cannot.
    """

    node: int
    name: str
    slots: int
    address: str


@dataclass(frozen=True)
class Config:
    """The members in the order in which they joined, and how slots are dealt to them.

    Attributes:
        members: at most 256.
        anchor: the member whose vote breaks ties: the leader that proposed this configuration.
        total: slots of a step; 0 is the sum of what the members want.
        copies: further members that evaluate each slot too, so that as many may be late without a loss.
    """

    members: tuple[Member, ...] = ()
    anchor: int = 0
    total: int = 0
    copies: int = 0

    @property
    def workers(self) -> tuple[Member, ...]:
        """Members that evaluate slots."""
        return tuple(m for m in self.members if m.slots)

    @property
    def slots_total(self) -> int:
        """Slots of a step; 0 while nobody works."""
        wanted = sum(m.slots for m in self.members)
        return self.total if self.total and wanted else wanted

    def own_slots(self, node: int) -> range:
        """The slots that are a member's own: shares of the total, in the order of members."""
        wanted, total, before = sum(m.slots for m in self.members), self.slots_total, 0
        for m in self.members:
            if m.node == node:
                return (
                    range(total * before // wanted, total * (before + m.slots) // wanted)
                    if wanted
                    else range(0)
                )
            before += m.slots
        return range(0)

    def slots_of(self, node: int) -> list[int]:
        """All slots that a member evaluates: its own, and those of the ``copies`` workers before it."""
        workers = [m.node for m in self.workers]
        if node not in workers:
            return []
        at = workers.index(node)
        reach = min(self.copies, len(workers) - 1)
        return sorted(s for back in range(reach + 1) for s in self.own_slots(workers[at - back]))

    def member(self, node: int) -> Member | None:
        """The member, or None."""
        return next((m for m in self.members if m.node == node), None)

    def rank(self, node: int) -> int:
        """Position among the members; behind all of them for others."""
        return next((i for i, m in enumerate(self.members) if m.node == node), len(self.members))

    def quorum(self, nodes: Iterable[int]) -> bool:
        """Whether these nodes may decide: more than half of the members, or half of them with the anchor."""
        present = set(nodes)
        count = sum(m.node in present for m in self.members)
        return 2 * count + (self.anchor in present and self.member(self.anchor) is not None) > len(
            self.members
        )

    def changed(self, anchor: int, add: Iterable[Member] = (), remove: Iterable[int] = ()) -> Config:
        """This configuration with a new anchor, without some members, with others."""
        gone = set(remove)
        kept = [m for m in self.members if m.node not in gone]
        known = {m.node for m in kept}
        return replace(self, members=(*kept, *(m for m in add if m.node not in known)), anchor=anchor)

    def to_bytes(self) -> bytes:
        """The record on the wire."""
        members = [put_member(m) for m in self.members]
        return b"".join(
            [varint(len(members)), *members, *map(varint, (self.anchor, self.total, self.copies))]
        )

    @staticmethod
    def read(reader: Reader) -> Config:
        """Read a record.

        Raises:
            FormatError: a value out of bounds, an end too early.
        """
        count = reader.varint("number of members", MAX_MEMBERS)
        members = tuple(read_member(reader) for _ in range(count))
        anchor = reader.varint("anchor", MAX_NODE)
        total = reader.varint("total", MAX_TOTAL)
        return Config(members, anchor, total, reader.varint("copies", MAX_MEMBERS))


def put_member(m: Member) -> bytes:
    """The bytes that :func:`read_member` reads."""
    return b"".join(
        [
            varint(m.node),
            put_text(m.name, "worker", MAX_NAME),
            varint(m.slots),
            put_text(m.address, "address", MAX_ADDRESS),
        ]
    )


def read_member(reader: Reader) -> Member:
    """Read one member."""
    node = reader.varint("node", MAX_NODE, 1)
    name = reader.text("worker", MAX_NAME)
    slots = reader.varint("slots", MAX_TOTAL)
    return Member(node, name, slots, reader.text("address", MAX_ADDRESS))
