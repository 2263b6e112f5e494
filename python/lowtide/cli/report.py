# SPDX-License-Identifier: Apache-2.0
"""`lowtide report RUN`: one HTML page from a run directory."""

from __future__ import annotations

import argparse
from typing import Any

_EXAMPLES = """\
examples:
  lowtide report run                                 # writes run/report.html
  lowtide report run-adamw run-qgalore -o both.html  # one page that compares them
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="one HTML page from a run directory",
        description=(
            "Writes one HTML page, without scripts or anything from elsewhere, from the metrics of RUN, as lowtide finetune\n"
            "and the callback for the Trainer write them: loss, memory by kind, subspace energy and refreshes,\n"
            "quantization and rounding, time, curvature (spectrum.json), zeroth-order logs, settings and versions."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directory; several are compared on one page"
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="where the page goes (default: RUN/report.html; of several: report.html)",
    )
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: the name of the directory)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide import report

    path = report.write(arguments.runs, arguments.out, title=arguments.title)
    print(path)
    return 0
