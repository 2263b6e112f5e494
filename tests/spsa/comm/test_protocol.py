# SPDX-License-Identifier: Apache-2.0
"""The protocol on a simulated network: agreement at every event, progress once the faults end."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
from pathlib import Path

import pytest

from lowtide.errors import LowtideError
from lowtide.spsa._commit import Commit
from lowtide.spsa.comm._config import Config
from lowtide.spsa.comm._history import History
from lowtide.spsa.comm._messages import (
    Ack,
    Beat,
    Decided,
    DigestReport,
    Diverged,
    Join,
    Leave,
    Propose,
    Ready,
    Redirect,
    Refuse,
    State,
    Submit,
    Vote,
    VoteReply,
    encode,
)  # fmt: skip
from lowtide.spsa.comm._node import Settings

sys.path.insert(0, str(Path(__file__).parent))
from simulator import FAST, LOG8, RUN, Simulator, code_of


def run_scenario(seed: int) -> Simulator:
    """A few faults drawn from a seed, then peace; the simulator asserts agreement after each event."""
    rng = random.Random(seed * 7919)
    sim = Simulator(seed, total=rng.choice([0, 4, 8]), copies=rng.choice([0, 0, 1]))
    for name in "abcd":
        sim.worker(name, slots=rng.choice([1, 1, 2]), speed=rng.choice([0.02, 0.05, 0.2]))
    sim.run(rng.uniform(0, 3))
    for _ in range(rng.randrange(1, 6)):
        sim.drop, sim.duplicate = rng.choice([0, 0.05, 0.3]), rng.choice([0, 0.2])
        sim.delay = rng.choice([0.005, 0.05, 0.3])
        alive = [n for n, h in sim.hosts.items() if h.alive]
        config = max((sim.hosts[n].node for n in alive), key=lambda n: n.index).config
        fault = rng.choice(["kill", "kill leader", "kill sequencer", "join", "return", "partition", "none"])
        if fault.startswith("kill"):
            leaders = [n for n in alive if sim.hosts[n].node.lead]
            victims = {"kill leader": leaders, "kill sequencer": [n for n in alive if n == sim.sequencer]}
            victim = rng.choice(victims.get(fault) or alive)
            rest = [n for n in alive if n != victim]
            # A run outlives its failures as long as a quorum of the members lives, of those that are proposed too.
            open_entries = [p.entry for n in alive if (p := sim.hosts[n].node.pending)]
            configs = [config, *(e for e in open_entries if isinstance(e, Config))]
            if all(c.quorum(rest) for c in configs) and sum(config.member(n) is not None for n in rest) >= 3:
                sim.kill(victim)
        elif fault == "join":
            sim.worker("x")
        elif fault == "return":
            sim.worker("y", log=sim.hosts[rng.choice(alive)].node.history)
        elif fault == "partition":
            sim.partition(set(rng.sample(alive, rng.randrange(1, len(alive)))))
        sim.run(rng.uniform(0.1, 4))
        if rng.random() < 0.5:
            sim.cut = set()
    sim.settle(20)
    return sim


@pytest.mark.parametrize("seed", [*range(30), 1520])
def test_agreement_and_progress(seed: int) -> None:
    run_scenario(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_agreement_and_progress_of_many(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        run_scenario(seed)


def started(seed: int = 0, workers: int = 4, **settings: float) -> Simulator:
    sim = Simulator(seed, settings=dataclasses.replace(FAST, wait_for=workers, **settings))
    for name in "abcdefgh"[:workers]:
        sim.worker(name)
    sim.run(2.0)
    assert sim.leader.step > 5
    return sim


def test_every_slot_of_every_step_is_in_the_commit() -> None:
    sim = started()
    for step, commit in sim.commits.items():
        expected = tuple((s, code_of(step, s)) for s in range(4) if code_of(step, s))
        assert commit == Commit(step, 4, expected)


def test_a_leader_of_before_cannot_decide() -> None:
    # The leader is cut off with one worker; the others elect another one while it still believes to lead.
    sim = started(1)
    old = sim.leader
    sim.partition({old.me.node, sim.node("a").me.node})
    before, epoch = old.step, old.epoch
    sim.run(4.0)
    assert old.lead is not None
    assert old.epoch == epoch
    new = sim.leader
    assert new.epoch > epoch
    assert new.step > before + 5
    assert old.step <= before + 1
    # It even holds everything that it could need, and is refused by its epoch.
    late = Propose(old.epoch, new.index, Commit(new.step, 4, ()))
    target = sim.node("b")
    target.receive(old.me.node, late, sim.now)
    assert target.pending is None or target.pending.epoch > old.epoch
    assert all(not isinstance(m, Ack) for _, m in target.outbox)
    target.outbox.clear()
    sim.settle(10)
    assert sim.leader is new


def test_a_leader_without_a_quorum_knows() -> None:
    sim = started(17)
    leader = sim.leader
    assert sim.now - leader.heard < 1.0
    sim.partition({leader.me.node})
    sim.run(10.0)
    assert leader.lead is not None
    assert sim.now - leader.heard > 5.0
    sim.settle(5)
    assert sim.now - leader.heard < 1.0


def test_a_vote_is_given_once_an_epoch_and_not_to_nodes_that_know_less() -> None:
    sim = started(2)
    b, c, d = (sim.node(x) for x in "bcd")
    later = sim.now + 100.0
    d.outbox.clear()
    d.receive(b.me.node, Vote(d.epoch + 1, d.index, d.pending.epoch + 1 if d.pending else 0), later)
    d.receive(c.me.node, Vote(d.epoch, d.index, d.epoch), later)
    replies = [(dst, m.granted) for dst, m in d.outbox if isinstance(m, VoteReply)]
    assert replies == [(b.me.node, True), (c.me.node, False)]
    d.outbox.clear()
    d.receive(c.me.node, Vote(d.epoch + 1, d.index - 1, 99), later + 100.0)
    assert [m.granted for _, m in d.outbox if isinstance(m, VoteReply)] == [False]


def test_a_proposal_that_a_quorum_holds_survives_its_leader() -> None:
    sim = started(3)
    while not (sim.leader.pending and isinstance(sim.leader.pending.entry, Commit)):
        sim.run(0.005)
    pending = sim.leader.pending
    entry = pending.entry
    assert isinstance(entry, Commit)
    for name in "abc":
        sim.node(name).receive(sim.sequencer, pending, sim.now)
    sim.kill(sim.sequencer)
    sim.settle(5)
    assert sim.commits[entry.step] == entry


def test_the_last_of_four_goes_on_while_the_sequencer_lives() -> None:
    sim = started(4)
    for name in "abc":
        sim.kill(sim.node(name).me.node)
        sim.run(4.0)
    sim.settle(10)
    assert [m.name.split("-")[0] for m in sim.leader.config.members] == ["seq", "d"]


def test_a_silent_worker_has_to_go_and_its_slots_move() -> None:
    sim = Simulator(5, total=4)
    for name in "abcd":
        sim.worker(name)
    sim.run(2.0)
    lazy = sim.hosts[sim.node("c").me.node]
    lazy.speed = 1e9
    sim.run(15.0)
    config = sim.leader.config
    assert config.member(lazy.node.me.node) is None
    assert sorted(s for m in config.members for s in config.slots_of(m.node)) == [0, 1, 2, 3]
    last = sim.commits[max(sim.commits)]
    assert [s for s, _ in last.codes] == [s for s in range(4) if code_of(last.step, s)]


def test_copies_cover_a_slow_worker() -> None:
    sim = Simulator(6, total=4, copies=1, settings=dataclasses.replace(FAST, wait_for=4))
    for name in "abcd":
        sim.worker(name, speed=5.0 if name == "b" else 0.05)
    sim.run(20.0)
    assert sim.leader.step > 50
    for step, commit in sim.commits.items():
        assert [s for s, _ in commit.codes] == [s for s in range(4) if code_of(step, s)]
    assert len(sim.leader.config.workers) == 4
    assert sim.leader.lead is not None
    assert sim.leader.lead.late > 0


def test_a_slow_worker_is_waited_for_no_longer_than_the_deadline() -> None:
    sim = started(7, misses=10**9)
    slow = sim.hosts[sim.node("d").me.node]
    slow.speed = 1.0
    start, when = sim.leader.step, sim.now
    sim.run(10.0)
    # 0.2 s is the least deadline; late answers are counted, so it may grow to a few tenths.
    assert sim.leader.step - start > (sim.now - when) / 2.0
    assert any(len(c.codes) < 4 and c.total == 4 for c in sim.commits.values())


def test_nothing_is_decided_without_enough_codes() -> None:
    sim = started(8, quorum=0.75, misses=10**9)
    for name in "cd":
        sim.hosts[sim.node(name).me.node].speed = 1e9
    sim.run(1.0)
    step = sim.leader.step
    sim.run(20.0)
    assert sim.leader.step == step


def test_a_late_joiner_gets_the_tail() -> None:
    sim = started(9)
    donor = History(RUN.run_id, LOG8)
    donor.extend(sim.leader.history.commits[:4])  # type: ignore[union-attr]
    node = sim.hosts[sim.worker("late", log=donor)].node
    sim.settle(5)
    assert node.start == 4


@pytest.mark.parametrize("known", [0, 3, 7])
def test_a_foreign_tail_is_cut(known: int) -> None:
    # A log that went on alone: the same steps up to `known`, then others, and more of them than the run has.
    sim = started(10)
    history = sim.leader.history
    assert history is not None
    other = History(RUN.run_id, LOG8)
    other.extend(history.commits[:known])
    other.extend(Commit(step, 4, ((0, 7),)) for step in range(known, history.step + 50))
    node = sim.hosts[sim.worker("alone", log=other)].node
    sim.settle(5)
    assert node.start == known


def test_a_run_continues_from_logs() -> None:
    # All processes ended; a sequencer that knows nothing takes the history of the first worker.
    before = started(11).leader.history
    assert before is not None
    sim = Simulator(12)
    for step, commit in enumerate(before.commits):
        sim.commits[step] = commit
    sim.worker("a", log=before)
    sim.run(1.0)
    sim.worker("b", log=before)
    sim.settle(5)
    assert sim.leader.history is not None
    assert sim.leader.history.first == before.step
    fresh = sim.hosts[sim.worker("c")].node
    sim.run(1.0)
    assert "start from a snapshot" in fresh.refused


def test_digests_are_compared() -> None:
    sim = started(13)
    nodes = [sim.node(x) for x in "abcd"]
    for step, bad in ((2, None), (4, "c")):
        for node in nodes:
            name = node.me.name.split("-")[0]
            node.report(step, b"x" if name == bad else b"d%d" % step, sim.now)
            sim._flush(node.me.node)
        sim.run(0.5)
    assert [n.diverged for n in nodes] == [None, None, Diverged(4, 2), None]


def test_without_a_majority_all_digests_are_in_doubt() -> None:
    sim = started(14, workers=2)
    for node in (sim.node("a"), sim.node("b")):
        node.report(3, node.me.name.encode(), sim.now)
        sim._flush(node.me.node)
    sim.run(0.5)
    assert [sim.node(x).diverged for x in "ab"] == [Diverged(3, 0)] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("run_id", b"q" * 16), ("codec", "sign1"), ("rng", b"x"), ("manifest", b""), ("base", b"other")],
)
def test_another_run_is_refused_and_says_why(field: str, value: object) -> None:
    sim = started(15, workers=1)
    leader = sim.leader
    identity = dataclasses.replace(RUN, **{field: value})
    me = dataclasses.replace(leader.me, node=5, name="foreign", slots=1)
    leader.outbox.clear()
    leader.receive(5, Join(1, me, identity, History(identity.run_id, LOG8).ladder()), sim.now)
    [(dst, answer)] = [x for x in leader.outbox if isinstance(x[1], Refuse | State)]
    assert dst == 5
    assert isinstance(answer, Refuse)
    assert answer.reason.startswith(field)


def test_names_and_versions_are_checked() -> None:
    sim = started(16, workers=2)
    leader = sim.leader
    for protocol, name, word in ((2, "z", "protocol"), (1, sim.node("a").me.name, "worker")):
        me = dataclasses.replace(leader.me, node=5, name=name, slots=1)
        leader.outbox.clear()
        leader.receive(5, Join(protocol, me, RUN, History(RUN.run_id, LOG8).ladder()), sim.now)
        [answer] = [m for _, m in leader.outbox if isinstance(m, Refuse)]
        assert answer.reason.startswith(word)


def test_settings_have_the_documented_defaults() -> None:
    assert Settings().misses == 3
    assert Settings().quorum == 0.5


def test_any_messages_from_a_holder_of_the_key_are_survived() -> None:
    # Well-formed, of any contents, in anybody's name: refused with an error of ours, or taken.
    rng = random.Random(9)
    small = [0, 1, 2, 3, 5, 12, 60]
    commits = [Commit(s, t, ((0, 9),) * (t > 0)) for s in small for t in (1, 4)]
    for case in range(60):
        sim = started(100 + case % 5, workers=2)
        nodes = [n for n in sim.alive() if n.history is not None]
        for _ in range(150):
            node = rng.choice(nodes)
            src = rng.choice([x.me.node for x in nodes] + [77])
            e, i, step = (
                node.epoch + rng.choice([-1, 0, 0, 0, 1]),
                node.index + rng.choice([-1, 0, 0, 1]),
                rng.choice(small),
            )
            config = dataclasses.replace(
                node.config, members=tuple(m for m in node.config.members if rng.random() < 0.8)
            )
            part = tuple(rng.sample(commits, rng.randrange(3)))
            message = rng.choice([
                Join(1, dataclasses.replace(node.me, node=src, name="x"), RUN, node.history.ladder()[:3]),
                Refuse("no"), Redirect(rng.choice([0, src, 5]), ""), Ready(step), Submit(e, step, ((rng.choice(small), 7),)),
                Propose(e, i, rng.choice([rng.choice(commits), config])), Ack(e, i), Decided(e, i),
                Beat(e, rng.choice([src, 0]), i, step), Vote(e, i, rng.choice(small)), VoteReply(e, True), Leave(),
                DigestReport(step, b"d"), Diverged(step, 0),
                State(e, src, i, config, step, node.history.chain_at(step) or b"c" * 16, part, rng.random() < 0.3),
            ])  # fmt: skip
            with contextlib.suppress(LowtideError):
                node.receive(src, message, sim.now + rng.random())
            with contextlib.suppress(LowtideError):
                node.tick(sim.now + 3 * rng.random())
            for _, out in node.outbox:
                encode(out, LOG8)
            node.outbox.clear()


def test_all_may_leave_at_once_and_others_come() -> None:
    sim = started(18)
    for name in "abcd":
        node = sim.node(name)
        node.leave()
        sim._flush(node.me.node)
        sim.hosts[node.me.node].alive = False
    sim.run(1.0)
    assert len(sim.leader.config.members) == 1
    sim.worker("e", log=sim.leader.history)
    sim.settle(5)


def test_a_newcomer_hears_of_a_lost_quorum() -> None:
    sim = started(19)
    for name in "abcd":
        sim.kill(sim.node(name).me.node)
    sim.run(6.0)
    node = sim.hosts[sim.worker("e")].node
    sim.run(2.0)
    assert node.refused.startswith("quorum")
