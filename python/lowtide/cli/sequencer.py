# SPDX-License-Identifier: Apache-2.0
"""`lowtide sequencer`: the process that orders the commits of a distributed zeroth-order run."""

from __future__ import annotations

import argparse
import time
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sequencer",
        help="order the commits of a distributed zeroth-order run",
        description="Workers join it with lt.spsa.comm.TCP(ADDRESS, worker=NAME). It holds the run's commits, no model, and needs no GPU; if it fails, the workers elect one of themselves.",
        epilog="Beyond this machine a key is needed: openssl rand -hex 32 > key, the same file everywhere.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--bind", default="127.0.0.1:0", metavar="HOST:PORT", help="where to listen (default: %(default)s)"
    )
    parser.add_argument("--advertise", metavar="HOST:PORT", help="how workers reach it, where that differs")
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="shared key, 16 bytes or more (default: LOWTIDE_KEY, LOWTIDE_KEY_FILE)",
    )
    parser.add_argument(
        "--slots", type=int, default=0, metavar="N", help="directions a step (default: what the workers want)"
    )
    parser.add_argument(
        "--copies", type=int, default=0, metavar="N", help="further workers for each slot, against slow ones"
    )
    parser.add_argument("--wait-for", type=int, default=1, metavar="N", help="workers before the first step")
    parser.add_argument(
        "--quorum",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the slots that a step needs at its deadline (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="end after this time (default: when interrupted)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.errors import LowtideValueError
    from lowtide.spsa.comm import Sequencer, Settings

    if not 0.0 < arguments.quorum <= 1.0:
        raise LowtideValueError(f"--quorum must be in (0, 1], got {arguments.quorum:g}")
    settings = Settings(wait_for=arguments.wait_for, quorum=arguments.quorum)
    with Sequencer(
        arguments.bind, key=arguments.key_file, slots=arguments.slots, copies=arguments.copies,
        advertise=arguments.advertise, settings=settings,
    ) as sequencer:  # fmt: skip
        print(f"listening on {sequencer.address}", flush=True)
        end = time.monotonic() + (arguments.seconds or float("inf"))
        before = ""
        while time.monotonic() < end:
            names = ", ".join(m for m in sequencer.members if m != "sequencer") or "none"
            leads = "" if sequencer.leader == "sequencer" else f", led by {sequencer.leader or 'nobody'}"
            if (line := f"workers: {names}{leads}") != before:
                print(f"step {sequencer.step}: {line}", flush=True)
                before = line
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))
        traffic = sequencer.traffic
        print(f"step {sequencer.step}: {traffic.sent} bytes sent, {traffic.received} received", flush=True)
    return 0
