# SPDX-License-Identifier: Apache-2.0
"""What the commands that report on the layers of a model have in common: the model they read, and how they show what they found."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--plot`` and ``--json``."""
    parser.add_argument("--plot", metavar="FILE", help="write a figure as well (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def load(arguments: argparse.Namespace) -> Any:
    """The model, after a look at whether ``--plot`` can be written."""
    from lowtide.train.loader import load_model
    from lowtide.train.plot import check_plot

    if arguments.plot:
        check_plot(arguments.plot)
    return load_model(Path(arguments.model).expanduser())


def show(report: Any, arguments: argparse.Namespace) -> int:
    """Write and print a report that has ``plot(path)`` and ``to_dict()``; returns the exit code."""
    if arguments.plot:
        report.plot(Path(arguments.plot).expanduser())
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    return 0
