# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes that all tests of this folder share: starting them takes seconds, a case milliseconds."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: Seconds to start the processes, and for a case: beyond them something hangs.
START, CASE = 180.0, 120.0


class Gang:
    """Processes that run one case after the other together."""

    def __init__(self, processes: int, folder: Path) -> None:
        self._processes, self._folder, self._starts = processes, folder, 0
        self._workers: list[subprocess.Popen[str]] = []

    def run(self, module: str, case: str, *arguments: Any) -> None:
        """Run function ``case`` of a module of this folder in each process; fails as it does there."""
        fresh = not self._workers
        if fresh:
            self._start()
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps([module, case, arguments]) + "\n")
            worker.stdin.flush()
        errors = self._answers(START + CASE if fresh else CASE)
        if any(errors):
            self.stop()  # the others may be waiting for a process that failed
            pytest.fail(
                "\n".join(f"process {rank}: {e}" for rank, e in enumerate(errors) if e), pytrace=False
            )

    def _start(self) -> None:
        self._starts += 1
        rendezvous = str(self._folder / f"rendezvous{self._starts}")
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        for rank in range(self._processes):
            arguments = [str(rank), str(self._processes), rendezvous]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._workers.append(subprocess.Popen([*command, *arguments], **pipes))

    def _answers(self, seconds: float) -> list[str | None]:
        errors: list[str | None] = ["no answer"] * self._processes
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            for rank, worker in enumerate(self._workers):
                assert worker.stdout is not None
                waiting.register(worker.stdout, selectors.EVENT_READ, rank)
            while waiting.get_map():
                ready = waiting.select(max(0.0, end - time.monotonic()))
                if not ready:
                    return [f"hangs for {seconds:.0f} s" if e == "no answer" else e for e in errors]
                for key, _ in ready:
                    line = key.fileobj.readline()  # type: ignore[union-attr]
                    errors[key.data] = json.loads(line) if line else "the process died"
                    waiting.unregister(key.fileobj)
                    if errors[key.data]:  # the others get a moment to say theirs
                        end = min(end, time.monotonic() + 5.0)
        return errors

    def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
            worker.communicate()
        self._workers.clear()


@pytest.fixture(scope="session")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """``gang(module, case, *arguments)``: run a case in two processes."""
    two = Gang(2, tmp_path_factory.mktemp("gang"))
    yield two.run
    two.stop()
