# SPDX-License-Identifier: Apache-2.0
"""Workers over a TCPStore: one commit a step, whoever proposes it, whoever dies."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from lowtide.spsa import Commit
from lowtide.spsa.comm import CommError, DivergedError, Hello, Settings, Store

KEY = b"k" * 32
RUN = Hello(b"r" * 16, rng=b"rng", manifest=b"manifest", base=b"base")
FAST = Settings(first_deadline=2.0, min_deadline=0.3, stagger=0.1, wait_for=1)


def code_of(step: int, slot: int) -> int:
    return (7 * step + 31 * slot) % 256


def train(comm: Store, steps: int, start: int = 0, die_at: int = -1) -> list[Commit]:
    commits = []
    for step in range(start, steps):
        slots = comm.slots(step)
        if step == die_at:
            break
        commits.append(comm.exchange(step, {s: code_of(step, s) for s in slots if code_of(step, s)}))
    return commits


def expected(steps: int, total: int) -> list[Commit]:
    return [
        Commit(t, total, tuple((s, code_of(t, s)) for s in range(total) if code_of(t, s)))
        for t in range(steps)
    ]


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def worker(server: dist.TCPStore, name: str, **kwargs: object) -> Store:
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    kwargs = {"settings": FAST, "key": KEY, "total": 4, "patience": 10.0, **kwargs}
    return Store(client, worker=name, **kwargs)  # type: ignore[arg-type]


def test_workers_agree(server: dist.TCPStore) -> None:
    settings = dataclasses.replace(FAST, wait_for=3)
    comms = [worker(server, n, settings=settings) for n in "abc"]
    for c in comms:
        c.join(RUN)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda c: train(c, 40), comms))
    assert results[0] == results[1] == results[2] == expected(40, 4)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_dead_worker_is_left_out_then_removed(server: dist.TCPStore, victim: int) -> None:
    # The first member is the one that proposes; the others take over.
    settings = dataclasses.replace(FAST, wait_for=3)
    comms = [worker(server, n, settings=settings) for n in "abc"]
    for c in comms:
        c.join(RUN)
        c._change(add=c._me)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(train, c, 40, 0, 20 if i == victim else -1) for i, c in enumerate(comms)]
        results = [j.result(30) for j in jobs]
    done = [r for i, r in enumerate(results) if i != victim]
    assert done[0] == done[1]
    assert done[0][:20] == results[victim] == expected(20, 4)
    assert len(done[0][20].codes) < 4
    assert done[0][-1] == expected(40, 4)[-1]


def test_a_late_joiner_reads_what_was_decided(server: dist.TCPStore) -> None:
    a, b = worker(server, "a"), worker(server, "b")
    a.join(RUN)
    first = train(a, 15)
    joined = b.join(dataclasses.replace(RUN, commits=tuple(first[:6])))
    assert (joined.start, joined.commits) == (6, tuple(first[6:]))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda c: train(c, 30, 15), (a, b)))
    assert results[0] == results[1] == expected(30, 4)[15:]
    other = [*first[:6], *(Commit(t, 4, ((0, 1),)) for t in range(6, 12))]
    c = worker(server, "c")
    assert c.join(dataclasses.replace(RUN, commits=tuple(other))).start == 4  # a rung of its ladder
    b.close()
    assert [m.name for m in a._config.members] == ["a", "b"]
    a.slots(30)
    assert [m.name for m in a._config.members] == ["a"]


def test_refusals(server: dist.TCPStore) -> None:
    worker(server, "a").join(RUN)
    with pytest.raises(CommError, match="manifest differs"):
        worker(server, "b").join(dataclasses.replace(RUN, manifest=b"other"))
    with pytest.raises(CommError, match="same key"):
        worker(server, "b", key=b"q" * 32).join(RUN)
    with pytest.raises(CommError, match="join must be called first"):
        worker(server, "b").slots(0)


def test_a_commit_in_the_store_that_nobody_signed_is_refused(server: dist.TCPStore) -> None:
    a = worker(server, "a")
    a.join(RUN)
    train(a, 3)
    server.set(f"lowtide/{RUN.run_id.hex()}/commit/3", b"x" * 40)
    with pytest.raises(CommError, match="commit/3"):
        train(a, 5, 3)


def test_digests(server: dist.TCPStore) -> None:
    comms = [worker(server, n) for n in "abc"]
    for c in comms:
        c.join(RUN)
        c.slots(0)
    for c in comms:
        c._load()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda c: train(c, 3), comms))
    for step in (1, 2):
        for i, c in enumerate(comms):
            c.digest(step, b"wrong" if (i, step) == (1, 2) else b"same")
    comms[0].digest(3, b"same")
    with pytest.raises(DivergedError) as caught:
        comms[1].digest(3, b"same")
    assert (caught.value.step, caught.value.since) == (2, 1)


def test_it_fails_in_time_when_the_store_is_gone() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    a = worker(server, "a")
    a.join(RUN)
    train(a, 2)
    del server
    begin = time.monotonic()
    with pytest.raises(CommError, match="must live"):
        train(a, 5, 2)
    assert time.monotonic() - begin < 10
