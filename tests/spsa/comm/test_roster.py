# SPDX-License-Identifier: Apache-2.0
"""A shared run's log says who took part, and with which slots."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

import lowtide as lt
from lowtide.spsa.comm import TCP, Sequencer, Settings

SETTINGS: dict[str, Any] = {"beat": 0.1, "election": 1.0, "min_deadline": 0.5}


def work(address: str, name: str, steps: int, folder: Path, both: threading.Barrier) -> None:
    model = torch.nn.Linear(4, 1)
    torch.nn.init.ones_(model.weight)  # the threads share torch's generator
    torch.nn.init.zeros_(model.bias)
    comm = TCP(address, worker=name, slots=1, settings=Settings(**SETTINGS))
    opt = lt.spsa.SPSA(
        model.named_parameters(), lr=1e-2, seed=1, module=model, comm=comm, log=folder / f"{name}.ltlog"
    )
    for step in range(steps):
        opt.step(lambda: model(torch.ones(2, 4)).square().mean())
        if step == 0:
            both.wait(20.0)
    opt.close()


def test_members_are_logged(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    with Sequencer(slots=2, settings=Settings(wait_for=2, **SETTINGS)) as sequencer:
        threads = [
            threading.Thread(target=work, args=(sequencer.address, name, steps, tmp_path, both))
            for name, steps in (("ann", 12), ("bob", 4))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    members = lt.spsa.LogReader(tmp_path / "ann.ltlog").members()
    first = {m.worker: (m.first, m.count) for m in members if m.joins and m.step == 0}
    assert sorted(first) == ["ann", "bob"]
    assert sorted(first.values()) == [(0, 1), (1, 1)]
    left = [m for m in members if not m.joins]
    assert [m.worker for m in left] == ["bob"]
    assert 4 <= left[0].step < 12
    assert members[-1].worker == "ann"
    assert (members[-1].first, members[-1].count) == (0, 2), "the slots of who left are dealt to who stays"
