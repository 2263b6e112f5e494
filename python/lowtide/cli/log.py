# SPDX-License-Identifier: Apache-2.0
"""`lowtide log LOG`: what is in the log of a zeroth-order run; repairs it where asked to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  lowtide log run.ltlog --plot run.png
  lowtide log run.ltlog --cut
  lowtide log run.ltlog --compact small.ltlog
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "log",
        help="show what is in a run log",
        description=(
            "Verifies LOG whole (checksums, chain of hashes, bounds) and prints its steps, slots, settings and sizes.\n"
            "A log that ends in the middle of a frame is shown up to there; damage elsewhere is an error."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("log", metavar="LOG", help="the .ltlog file")
    parser.add_argument("--plot", metavar="FILE", help="draw |g| and the learning rate (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--cut",
        nargs="?",
        const=-1,
        type=int,
        metavar="STEP",
        help="first cut the log at its last good frame, or before STEP; damaged bytes are kept in LOG.cut-OFFSET",
    )
    change.add_argument("--compact", metavar="OUT", help="write a copy with full batches")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.spsa import log

    path = Path(arguments.log).expanduser()
    if arguments.plot:
        from lowtide.train.plot import check_plot

        check_plot(arguments.plot)
    if arguments.cut is not None:
        log.truncate(path, None if arguments.cut == -1 else arguments.cut)
    if arguments.compact:
        path = Path(arguments.compact).expanduser()
        log.compact(Path(arguments.log).expanduser(), path)
    report = log.inspect(path)
    if arguments.plot:
        log.plot(path, Path(arguments.plot).expanduser())
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    return 0
