# SPDX-License-Identifier: Apache-2.0
"""`lowtide memory MODEL`: bytes of training by kind, before anything is allocated."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lowtide.train.methods import METHODS
from lowtide.train.progress import human_bytes

_EXAMPLES = """\
examples:
  lowtide memory llama-7b
  lowtide memory ./SmolLM2-135M --method qgalore --rank 64
  lowtide memory llama-1b --rank 512 --convention paper
"""
_KINDS = ("weights", "gradients", "states", "basis", "total")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "memory",
        help="count the bytes of training by kind",
        description=(
            "Bytes of weights, gradients, optimizer states and bases that training MODEL takes, counted from\n"
            "its shapes alone; activations are not counted. Without --method: a line for each method."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="model directory, config.json, or llama-60m, -130m, -350m, -1b, -7b"
    )
    parser.add_argument(
        "--method",
        choices=sorted(METHODS),
        metavar="METHOD",
        help=f"count one method only: {', '.join(sorted(METHODS))}",
    )
    parser.add_argument(
        "--rank", type=int, default=128, metavar="R", help="rank of low-rank methods (default 128)"
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8"),
        help="how weights are held (default: int8 for qgalore, else fp32)",
    )
    parser.add_argument(
        "--in-backward",
        choices=("auto", "on", "off"),
        default="auto",
        help="free each gradient as it is used, so that only the largest counts (auto: as lowtide finetune does)",
    )
    parser.add_argument(
        "--convention",
        choices=("lowtide", "paper"),
        default="lowtide",
        help="lowtide: what this library allocates (default); paper: as the GaLore papers estimate, without gradients",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.optim import memory

    reports = []
    for method in [arguments.method] if arguments.method else METHODS:
        freed = (
            METHODS[method].in_backward if arguments.in_backward == "auto" else arguments.in_backward == "on"
        )
        report = memory(
            arguments.model,
            method,
            rank=arguments.rank,
            weights=arguments.weights,
            in_backward=freed,
            convention=arguments.convention,
        )
        reports.append(report.as_dict())
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return 0
    print(f"{arguments.model}: {reports[0]['parameters']:,} parameters, rank {arguments.rank}")
    print(f"{'method':<12}" + "".join(f"{kind:>12}" for kind in _KINDS))
    for row in reports:
        print(f"{row['method']:<12}" + "".join(f"{human_bytes(row[kind]):>12}" for kind in _KINDS))
    return 0
