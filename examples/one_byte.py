# SPDX-License-Identifier: Apache-2.0
"""Train one model on several processes that send each other one byte a step, and kill some of them on the way.

    python examples/one_byte.py --workers 4 --steps 300

Four workers evaluate one direction each and agree on four bytes a step. At a third of the run the sequencer is killed
(kill -9) and the workers elect one of themselves; at two thirds a worker is killed and its direction is dealt to the
others. At the end all weights are compared, and one log is replayed. ``--plot`` draws the run beside one machine with as many
directions. Needs torch.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import secrets
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

import lowtide as lt
from lowtide.spsa.comm import TCP, CommError, Sequencer, Settings

SETTINGS = {"beat": 0.2, "election": 1.0, "stagger": 0.2, "min_deadline": 0.3}


def make_model() -> tuple[torch.nn.Module, Any]:
    """The same model and data in every process."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 1),
    )
    x = torch.randn(256, 16)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    return model.eval(), lambda: (model(x) - y).square().mean()


def make_optimizer(model: torch.nn.Module, directions: int, **kwargs: Any) -> Any:
    """All processes must agree on these settings."""
    return lt.spsa.SPSA(
        model.named_parameters(), lr=2e-3, directions=directions, seed=1234, module=model, **kwargs
    )


def serve(pipe: Connection, key: bytes, slots: int) -> None:
    """The sequencer's process."""
    with Sequencer(key=key, slots=slots, settings=Settings(wait_for=slots, **SETTINGS)) as sequencer:
        pipe.send(sequencer.address)
        pipe.poll(None)


def work(pipe: Connection, address: str, name: str, key: bytes, slots: int, steps: int, folder: str) -> None:
    """A worker's process."""
    torch.set_num_threads(1)
    model, closure = make_model()
    comm = TCP(address, worker=name, key=key, settings=Settings(**SETTINGS), patience=20.0)
    optimizer = make_optimizer(model, slots, comm=comm, log=f"{folder}/{name}.ltlog")
    try:
        for step in range(steps):
            loss = optimizer.step(closure)
            traffic = comm.traffic
            pipe.send((name, step + 1, loss, comm.leader, comm.members, traffic.sent, traffic.received))
            time.sleep(0.005)  # a real model takes longer
        pipe.send((name, "done", optimizer.masters.digest()))
        pipe.poll(None)
        optimizer.close()
    except (CommError, BrokenPipeError) as error:
        print(f"{name}: {error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="processes, one direction each (default: 4)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--plot", metavar="PNG", help="draw the losses beside those of one machine with all directions"
    )
    parser.add_argument("--no-kill", action="store_true", help="let all processes live")
    arguments = parser.parse_args()
    n, steps = arguments.workers, arguments.steps
    if n < 2 or steps < 10:
        parser.error("at least 2 workers and 10 steps")
    context = mp.get_context("spawn")
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory() as folder:
        pipe, other = context.Pipe()
        sequencer = context.Process(target=serve, args=(other, key, n), daemon=True)
        sequencer.start()
        address = pipe.recv()
        processes: dict[str, Any] = {}
        pipes: dict[Any, str] = {}
        for i in range(n):
            near, far = context.Pipe()
            name = f"worker{i}"
            processes[name] = context.Process(
                target=work, args=(far, address, name, key, n, steps, folder), daemon=True
            )
            processes[name].start()
            far.close()
            pipes[near] = name
        try:
            digests = watch(processes, pipes, sequencer, steps, kill=not arguments.no_kill)
            for near in pipes:
                near.close()
            for process in processes.values():
                process.join(10.0)
            name = next(iter(digests))
            model, _ = make_model()
            replayed = lt.spsa.replay(model, f"{folder}/{name}.ltlog")
            size = Path(f"{folder}/{name}.ltlog").stat().st_size
            same = len({*digests.values(), replayed.masters.digest()}) == 1
            print(
                f"\n{len(digests)} workers and the replay of a log of {size} bytes: {'the same weights, bit for bit' if same else 'DIFFERENT WEIGHTS'}"
            )
            parameters = sum(p.numel() for p in model.parameters())
            reduced = 2 * 4 * parameters * (n - 1) / n
            print(
                f"an all-reduce of the {parameters} gradients would have sent {reduced:,.0f} bytes a step and worker"
            )
            if arguments.plot:
                print(draw(f"{folder}/{name}.ltlog", n, steps, Path(arguments.plot)))
            return 0 if same else 1
        finally:
            for process in (sequencer, *processes.values()):
                process.kill()


def draw(log: str, directions: int, steps: int, path: Path) -> str:
    """Draw the loss along a log and along a run of one process with all directions; says where they part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    alone, closure = make_model()
    optimizer = make_optimizer(alone, directions, codec="log8")
    shared, shared_loss = make_model()
    marks = range(0, steps + 1, max(1, steps // 60))
    ours, theirs, parted = [], [], None
    for step in range(steps + 1):
        if step in marks:
            model, _ = make_model()
            lt.spsa.replay(model, log, upto=step)
            shared.load_state_dict(model.state_dict())
            equal = all(
                torch.equal(p, q) for p, q in zip(alone.parameters(), shared.parameters(), strict=True)
            )
            parted = step if parted is None and not equal else parted
            ours.append(float(shared_loss().detach()))
            theirs.append(float(closure().detach()))
        if step < steps:
            optimizer.step(closure)
    fig, ax = plt.subplots(figsize=(7, 4))
    ax.plot(marks, theirs, color="#c8501e", label=f"one machine, {directions} directions")
    ax.plot(marks, ours, "o", color="#1f5a99", markersize=4, label=f"{directions} workers, a byte each")
    ax.set(xlabel="step", ylabel="loss", title="One byte a step and worker")
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    same = (
        "the same weights as one machine all along, bit for bit"
        if parted is None
        else f"one machine's weights until a code was lost before step {parted}"
    )
    return f"{same}; figure: {path}"


def watch(
    processes: dict[str, Any], pipes: dict[Any, str], sequencer: Any, steps: int, kill: bool
) -> dict[str, bytes]:
    """Print a table as the run goes on; kill the sequencer, then a worker. The survivors' digests."""
    print(f"{'step':>5} {'loss':>8} {'workers':>7} {'sequencer':>10} {'sent/step':>9} {'received/step':>13}")
    digests: dict[str, bytes] = {}
    alive = {name: pipe for pipe, name in pipes.items()}
    shown, last = 0, (0, 0, 0)
    plan = [(steps // 3, "sequencer"), (2 * steps // 3, "worker1")] if kill else []
    while len(digests) < len(alive):
        for pipe in wait(list(alive.values())):
            try:
                name, step, *rest = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                alive.pop(pipes[pipe], None)
                continue
            if step == "done":
                digests[name] = rest[0]
                continue
            if plan and step >= plan[0][0]:
                victim = plan.pop(0)[1]
                (sequencer if victim == "sequencer" else processes[victim]).kill()
                alive.pop(victim, None)
                print(f"{'':>5} kill -9 {victim}", flush=True)
            if name == "worker0" and step >= shown + max(1, steps // 12):
                loss, leader, members, sent, received = rest
                before, was_sent, was_received = last
                up, down = (sent - was_sent) / (step - before), (received - was_received) / (step - before)
                workers = sum(m.startswith("worker") for m in members)
                print(
                    f"{step:>5} {loss:>8.4f} {workers:>7} {leader:>10} {up:>9.1f} {down:>13.1f}", flush=True
                )
                shown, last = step, (step, sent, received)
    return digests


if __name__ == "__main__":
    sys.exit(main())
