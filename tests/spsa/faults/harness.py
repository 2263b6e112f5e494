# SPDX-License-Identifier: Apache-2.0
"""Scenarios: four processes train together, something happens to them, and what the survivors hold is compared."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import processes
from proxy import Proxy

import lowtide as lt
from lowtide.spsa import LogReader
from lowtide.spsa.comm._endpoint import split_address

LIMIT = 45.0


@dataclass
class Child:
    name: str
    process: BaseProcess
    pipe: Connection
    step: int = 0
    alive: bool = True
    done: tuple[int, bytes] | None = None
    error: str = ""
    epoch: int = 0
    members: int = 0
    leader: str = ""
    address: str = ""
    proxies: list[Proxy] = field(default_factory=list, repr=False)


class Run:
    """One run with its processes; use as a context manager, so that no process is left."""

    def __init__(self, folder: Path, seed: int, *, steps: int = 120, proxies: bool = False) -> None:
        self.folder, self.steps, self.proxies = folder, steps, proxies
        self.random = random.Random(seed)
        self._seed = seed
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["torch._dynamo", "lowtide.ops", "lowtide.spsa.comm"])
        self.children: dict[str, Child] = {}
        self.begin = time.monotonic()

    def __enter__(self) -> Run:
        pipe, other = self._context.Pipe()
        process = self._context.Process(target=processes.sequencer, args=(other, "127.0.0.1:0"), daemon=True)
        process.start()
        other.close()
        self.children["sequencer"] = Child("sequencer", process, pipe)
        assert pipe.poll(LIMIT), "the sequencer did not start"
        self.address = pipe.recv()
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self.children.values():
            child.process.kill()
        for child in self.children.values():
            child.process.join(10.0)
            assert not child.process.is_alive()
            child.pipe.close()
            for proxy in child.proxies:
                proxy.close()

    # ------------------------------------------------------------------ what may happen

    def start(self, name: str, contact: str | None = None) -> None:
        """Start a worker, or start it again on the log that it left."""
        bind = advertise = None
        contact, proxies = contact or self.contact(), []
        if self.proxies:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            # One before the worker, one between it and whom it joins.
            seed = 100 * self._seed + 2 * len(self.children)
            proxies = [
                Proxy(split_address(a), seed + i) for i, a in enumerate((f"127.0.0.1:{port}", contact))
            ]
            bind, advertise, contact = f"127.0.0.1:{port}", proxies[0].address, proxies[1].address
        pipe, other = self._context.Pipe()
        arguments = (other, contact, name, str(self.folder), self.steps, advertise, bind)
        process = self._context.Process(target=processes.worker, args=arguments, daemon=True)
        process.start()
        other.close()
        self.children[name] = Child(name, process, pipe, proxies=proxies)

    def kill(self, name: str) -> None:
        """kill -9."""
        child = self.children[name]
        child.process.kill()
        child.process.join(10.0)
        child.alive = False

    def stop(self, name: str, seconds: float) -> None:
        """SIGSTOP, then SIGCONT."""
        pid = self.children[name].process.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        self.until(lambda: False, seconds)
        os.kill(pid, signal.SIGCONT)

    def spoil(self, share: float, count: int) -> None:
        """Let something happen to a share of the frames, until it happened to ``count`` of them."""
        proxies = [p for c in self.workers() for p in c.proxies]
        for p in proxies:
            p.faults = share
        ended = lambda: all(c.done or c.error for c in self.workers())  # noqa: E731
        self.until(lambda: sum(p.happened for p in proxies) >= count or ended())
        assert sum(p.happened for p in proxies) > count // 3, "the run ended before much could happen"
        for p in proxies:
            p.faults = 0.0

    def workers(self) -> list[Child]:
        return [c for c in self.children.values() if c.name != "sequencer" and c.alive]

    @property
    def alive(self) -> list[str]:
        return [c.name for c in self.children.values() if c.alive]

    def leader(self) -> str:
        """Who leads, as most of the workers see it."""
        seen = [c.leader.rsplit("-", 1)[0] for c in self.workers() if c.leader]
        names = [n for n in seen if n in self.alive]
        return max(names, key=names.count) if names else "sequencer"

    def contact(self) -> str:
        """An address that answers."""
        if self.children["sequencer"].alive:
            return self.address
        return self.random.choice([c.address for c in self.workers() if c.address])

    def shrunk(self) -> None:
        """Wait until the members are those who live, so that they can lose one more."""
        self.until(lambda: any(c.members == len(self.alive) for c in self.workers()), 8.0)

    def at(self, step: int) -> None:
        """Wait until some worker has made a step, and a random moment longer."""
        self.until(lambda: max((c.step for c in self.workers()), default=0) >= step)
        time.sleep(self.random.uniform(0.0, 0.02))

    def until(self, ready: Callable[[], bool], limit: float | None = None) -> None:
        """Take in what the workers tell until something holds (or for ``limit`` seconds)."""
        end = time.monotonic() + (limit or LIMIT)
        while not ready():
            if time.monotonic() > end:
                assert limit is not None, f"nothing moves: {self.children}"
                return
            pipes = {c.pipe: c for c in self.workers() if c.process.is_alive() and not c.error}
            for pipe in wait(list(pipes), 0.05) if pipes else []:
                child = pipes[pipe]  # type: ignore[index]
                try:
                    message = child.pipe.recv()
                except (EOFError, OSError):
                    child.error = child.error or "ended"
                    continue
                if message[0] == "step":
                    child.step, child.members, child.leader, child.address = message[1:]
                elif message[0] == "done":
                    child.done, child.epoch = message[1:3], message[3]
                elif message[0] == "error":
                    child.error = message[1]

    # ------------------------------------------------------------------ what must hold

    def finish(self) -> None:
        """All survivors get to the end, close, and hold what their own log says."""
        self.until(lambda: all(c.done or c.error for c in self.workers()))
        survivors = self.workers()
        assert [c.error for c in survivors] == [""] * len(survivors)
        for child in survivors:
            child.pipe.send("close")
        for child in survivors:
            child.process.join(15.0)
            assert not child.process.is_alive(), f"{child.name} does not end"
        assert len({c.done for c in survivors}) == 1, survivors
        commits = None
        for child in survivors:
            log = LogReader(self.folder / f"{child.name}.ltlog")
            mine = [s.commit for s in log.steps()]
            commits = commits or mine
            assert mine == commits, f"the log of {child.name} differs"
            model, _ = processes.model_and_closure()
            replayed = lt.spsa.replay(model, log)
            assert child.done == (replayed.step, replayed.masters.digest())
            assert replayed.step == self.steps
        assert commits is not None
        for path in self.folder.glob("*.ltlog"):  # what the dead have written is a part of it
            mine = [s.commit for s in LogReader(path, damage="cut").steps()]
            assert mine == commits[: len(mine)], f"{path.name} holds what was never decided"
