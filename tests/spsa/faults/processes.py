# SPDX-License-Identifier: Apache-2.0
"""The processes of the fault tests: a sequencer, and workers that train a small model with ``lt.spsa.SPSA``.

They are children of a fork server that has imported torch and nothing else, so that eight scenarios fit into a minute.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import lowtide as lt
from lowtide.errors import LowtideError
from lowtide.spsa.comm import TCP, Sequencer, Settings

KEY = b"the tests' own key, 32 bytes long"
SETTINGS = Settings(beat=0.1, election=0.8, stagger=0.2, first_deadline=3.0, min_deadline=0.3, wait_for=4)
SLOTS = 4
#: Digests are compared as often as this.
EVERY = 20


def model_and_closure():  # type: ignore[no-untyped-def]
    """The same in every process: a small network, and data that depends on nothing."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    x = torch.randn(32, 6, generator=generator)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    return model, lambda: (model(x) - y).square().mean()


def optimizer(model: torch.nn.Module, **kwargs: object) -> lt.spsa.SPSA:
    """The run that all scenarios share."""
    return lt.spsa.SPSA(
        model.named_parameters(),
        lr=2e-3,
        eps=1e-3,
        directions=SLOTS,
        seed=7,
        codec="log8",
        module=model,
        **kwargs,
    )  # type: ignore[arg-type]


def sequencer(pipe: Connection, address: str) -> None:
    """Serve until killed."""
    seq = Sequencer(address, key=KEY, slots=SLOTS, settings=SETTINGS)
    pipe.send(seq.address)
    with contextlib.suppress(EOFError):
        pipe.recv()
    seq.close()


def worker(
    pipe: Connection,
    address: str,
    name: str,
    folder: str,
    steps: int,
    advertise: str | None,
    bind: str | None,
) -> None:
    """Train, tell each step, stay as a member until told to stop, then tell the digest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    path = Path(folder) / f"{name}.ltlog"
    model, closure = model_and_closure()
    comm = TCP(
        address,
        worker=f"{name}-{os.getpid()}",
        key=KEY,
        settings=SETTINGS,
        patience=20.0,
        bind=bind,
        advertise=advertise,
    )
    try:
        opt = optimizer(model, comm=comm, log=path)
        opt.catch_up()
        while opt.t < steps:
            opt.step(closure)
            if opt.t % EVERY == 0:
                comm.digest(opt.t, opt.masters.digest())
            pipe.send(("step", opt.t, len(comm.members), comm.leader, comm.address))
        pipe.send(("done", opt.t, opt.masters.digest(), comm.epoch))
        pipe.recv()
        opt.close()
        pipe.send(("closed",))
    except (LowtideError, AssertionError) as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
    except (EOFError, BrokenPipeError):
        pass
    time.sleep(0.05)
