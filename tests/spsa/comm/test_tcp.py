# SPDX-License-Identifier: Apache-2.0
"""Workers over real sockets, as threads of one process; tests/spsa/faults has processes."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

import lowtide as lt
from lowtide.errors import LowtideValueError
from lowtide.spsa import Commit
from lowtide.spsa.comm import TCP, CommError, DivergedError, Hello, Limits, Sequencer, Settings

KEY = b"k" * 32
RUN = Hello(b"r" * 16, rng=b"rng", manifest=b"manifest", base=b"base")
FAST = Settings(beat=0.1, election=0.6, stagger=0.2, first_deadline=5.0, min_deadline=0.3)


def code_of(step: int, slot: int) -> int:
    return (7 * step + 31 * slot) % 256


def train(comm: TCP, steps: int, start: int = 0) -> list[Commit]:
    commits = []
    for step in range(start, steps):
        slots = comm.slots(step)
        commits.append(comm.exchange(step, {s: code_of(step, s) for s in slots if code_of(step, s)}))
    return commits


@contextlib.contextmanager
def sequencer(**kwargs: object) -> Iterator[Sequencer]:
    kwargs = {"settings": FAST, "key": KEY, **kwargs}
    with Sequencer(**kwargs) as seq:  # type: ignore[arg-type]
        yield seq


def worker(address: str, name: str, **kwargs: object) -> TCP:
    kwargs = {"settings": FAST, "key": KEY, "patience": 10.0, **kwargs}
    return TCP(address, worker=name, **kwargs)  # type: ignore[arg-type]


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    results: list[object] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
        assert not t.is_alive()
    return results


def expected(steps: int, total: int) -> list[Commit]:
    return [
        Commit(t, total, tuple((s, code_of(t, s)) for s in range(total) if code_of(t, s)))
        for t in range(steps)
    ]


def test_four_workers_agree_and_bytes_are_counted() -> None:
    steps = 100
    with sequencer(slots=4, settings=Settings(wait_for=4)) as seq, contextlib.ExitStack() as stack:
        comms = [stack.enter_context(worker(seq.address, n, settings=Settings())) for n in "abcd"]
        at_once([lambda c=c: c.join(RUN) for c in comms])  # type: ignore[misc]
        at_once([lambda c=c: train(c, 10) for c in comms])  # type: ignore[misc]
        before = [c.traffic for c in comms]
        results = at_once([lambda c=c: train(c, steps, 10) for c in comms])  # type: ignore[misc]
        assert all(r == expected(steps, 4)[10:] for r in results)
        assert sorted(seq.members) == ["a", "b", "c", "d", "sequencer"]
        for comm, b in zip(comms, before, strict=True):
            # A code up, a commit of four down, both of their confirmations, and now and then a beat.
            assert (comm.traffic.sent - b.sent) / (steps - 10) < 40
            assert (comm.traffic.received - b.received) / (steps - 10) < 48


def test_a_late_joiner_gets_the_tail_and_can_take_part() -> None:
    with sequencer(slots=2) as seq, worker(seq.address, "a") as a:
        a.join(RUN)
        first = train(a, 20)
        assert first == expected(20, 2)
        late = worker(seq.address, "b")
        with late:
            joined = late.join(Hello(**{**vars(RUN), "commits": tuple(first[:5])}))
            assert (joined.start, joined.commits, joined.slots_total) == (5, tuple(first[5:]), 2)
            pair = at_once([lambda: train(a, 40, 20), lambda: train(late, 40, 20)])
            assert pair[0] == pair[1] == expected(40, 2)[20:]
            # What is decided needs no slots any more.
            assert late.slots(3) == []
            assert late.exchange(3, {}) == first[3]


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    with sequencer(slots=4) as seq, worker(seq.address, "a") as a:
        b = worker(seq.address, "b")
        at_once([lambda: a.join(RUN), lambda: b.join(RUN)])
        at_once([lambda: train(a, 10), lambda: train(b, 10)])
        b.close()
        begin = time.monotonic()
        rest = train(a, 40, 10)
        assert time.monotonic() - begin < 5
        assert rest[-1] == expected(40, 4)[-1]
        assert seq.members == ["sequencer", "a"]
        with pytest.raises(CommError, match="closed"):
            b.slots(12)


def test_workers_go_on_when_the_sequencer_is_gone() -> None:
    with contextlib.ExitStack() as stack:
        seq = Sequencer(slots=3, settings=FAST, key=KEY)
        comms = [stack.enter_context(worker(seq.address, n)) for n in "abc"]
        at_once([lambda c=c: c.join(RUN) for c in comms])  # type: ignore[misc]
        at_once([lambda c=c: train(c, 20) for c in comms])  # type: ignore[misc]
        seq.close()
        results = at_once([lambda c=c: train(c, 60, 20) for c in comms])  # type: ignore[misc]
        assert results[0] == results[1] == results[2]
        assert [c.codes for c in results[0]][-5:] == [c.codes for c in expected(60, 3)][-5:]  # type: ignore[attr-defined]
        assert {c.leader for c in comms} <= set("abc")
        assert comms[0].epoch > 1
        # A newcomer may ask any of them.
        with worker(comms[0].address, "d") as d:
            assert len(d.join(RUN).commits) >= 60


def test_divergence_is_told_to_the_one_that_diverged() -> None:
    with sequencer(slots=3) as seq, contextlib.ExitStack() as stack:
        comms = [stack.enter_context(worker(seq.address, n)) for n in "abc"]
        at_once([lambda c=c: c.join(RUN) for c in comms])  # type: ignore[misc]
        at_once([lambda c=c: train(c, 10) for c in comms])  # type: ignore[misc]
        for c in comms:
            c.digest(5, b"same")
        for i, c in enumerate(comms):
            c.digest(10, b"wrong" if i == 1 else b"same")
        with pytest.raises(DivergedError, match="step 10 differs") as caught:
            train(comms[1], 30, 10)
        assert (caught.value.step, caught.value.since) == (10, 5)
        comms[1].close()
        results = at_once([lambda c=c: train(c, 30, 10) for c in (comms[0], comms[2])])  # type: ignore[misc]
        assert results[0] == results[1]


def test_workers_with_another_learning_rate_are_found_out() -> None:
    def run(address: str, name: str, lr: float) -> str:
        model = torch.nn.Linear(4, 1)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        comm = worker(address, name)
        opt = lt.spsa.SPSA(model.named_parameters(), lr=lr, seed=3, module=model, comm=comm)
        try:
            for _ in range(30):
                opt.step(lambda: (model(torch.ones(2, 4)) - 1.0).square().mean())
                time.sleep(0.01)
            return "trained"
        except DivergedError:
            return "diverged"
        finally:
            comm.close()

    with sequencer(slots=3) as seq:
        rates = {"a": 1e-2, "b": 1e-2, "c": 2e-2}
        results = at_once([lambda n=n, lr=lr: run(seq.address, n, lr) for n, lr in rates.items()])  # type: ignore[misc]
        assert results == ["trained", "trained", "diverged"]
        assert run(seq.address, "late", 1e-2) == "trained"
        assert run(seq.address, "later", 5e-2) == "diverged"


def test_refusals_say_why() -> None:
    with sequencer() as seq, worker(seq.address, "a") as a:
        a.join(RUN)
        with (
            worker(seq.address, "b") as b,
            pytest.raises(CommError, match=r"refuses this worker: manifest: .*same model"),
        ):
            b.join(Hello(b"r" * 16, rng=b"rng", manifest=b"other", base=b"base"))
        with worker(seq.address, "a") as b, pytest.raises(CommError, match="name 'a' is taken"):
            b.join(RUN)
        with worker(seq.address, "c", key=b"q" * 32) as c, pytest.raises(CommError, match="another key"):
            c.join(RUN)
        with pytest.raises(CommError, match="joins once"):
            a.join(RUN)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with worker(address, "a", patience=0.5) as a, pytest.raises(CommError, match="does not answer"):
            a.join(RUN)


def test_without_anybody_left_a_call_fails_in_time() -> None:
    seq = Sequencer(slots=1, settings=FAST, key=KEY)
    with worker(seq.address, "a", patience=1.5) as a:
        a.join(RUN)
        train(a, 3)
        seq.close()
        with pytest.raises(CommError, match="no sequencer with a quorum was heard of"):
            train(a, 10, 3)


def leading(comms: list[TCP], seconds: float = 20.0) -> TCP:
    """The worker that leads; on a busy machine an election may still be going on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for c in comms:
            if c.leader == c._worker:
                return c
        time.sleep(0.02)
    raise AssertionError(f"no worker led within {seconds:g} s")


def test_the_half_without_the_leader_fails_in_time() -> None:
    with contextlib.ExitStack() as stack:
        seq = Sequencer(slots=2, settings=FAST, key=KEY)
        comms = [stack.enter_context(worker(seq.address, n, patience=2.5)) for n in "ab"]
        at_once([lambda c=c: c.join(RUN) for c in comms])  # type: ignore[misc]
        at_once([lambda c=c: train(c, 5) for c in comms])  # type: ignore[misc]
        seq.close()
        at_once([lambda c=c: train(c, 10, 5) for c in comms])  # type: ignore[misc]
        leads = leading(comms)
        other = next(c for c in comms if c is not leads)
        # Half of the members with the leader among them is enough, so the other one is alone.
        leads.close()
        with pytest.raises(CommError, match="no sequencer with a quorum"):
            train(other, 20, 10)


def test_bad_arguments_are_named() -> None:
    for kwargs, word in (
        ({"worker": ""}, "worker"), ({"worker": "a", "slots": 0}, "slots"), ({"worker": "a", "patience": 0}, "patience"),
        ({"worker": "a", "bind": "x"}, "bind"), ({"worker": "a", "bind": "0.0.0.0:0"}, "key must be given"),
    ):  # fmt: skip
        with pytest.raises(LowtideValueError, match=word):
            TCP("127.0.0.1:1", **kwargs)  # type: ignore[arg-type]
    with pytest.raises(LowtideValueError, match="key must be given"):
        TCP("192.0.2.1:1", worker="a")
    with pytest.raises(LowtideValueError, match="key must be given"):
        Sequencer("0.0.0.0:0")
    with pytest.raises(LowtideValueError, match="slots"):
        Sequencer(slots=-1)
    with sequencer() as seq, pytest.raises(CommError, match="cannot be listened on"):
        Sequencer(seq.address)
    with worker("127.0.0.1:1", "a") as a, pytest.raises(CommError, match="join must be called first"):
        a.slots(0)


def test_garbage_and_silence_do_not_disturb_a_run() -> None:
    rng = random.Random(3)
    with sequencer(slots=1) as seq, worker(seq.address, "a") as a:
        a.join(RUN)
        host, port = seq.address.split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(20)]
        for _ in range(60):
            with socket.create_connection((host, int(port))) as s, contextlib.suppress(OSError):
                s.sendall(rng.choice([b"", b"LTZO\x01"]) + rng.randbytes(rng.randrange(200)))
        assert train(a, 50) == expected(50, 1)
        for s in idle:
            s.close()


def test_a_peer_that_floods_is_read_slowly() -> None:
    limits = Limits(frames=50.0, bytes=1 << 20)
    with sequencer(slots=1, limits=limits) as seq, worker(seq.address, "a") as a:
        a.join(RUN)
        train(a, 1)
        for _ in range(400):
            a.digest(0, b"d")
        # Two seconds' worth came through at once; 300 frames at 50 a second hold up what is behind them.
        begin = time.monotonic()
        train(a, 3, 1)
        assert time.monotonic() - begin > 1.0
