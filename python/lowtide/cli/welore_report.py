# SPDX-License-Identifier: Apache-2.0
"""`lowtide welore-report MODEL`: the rank that each linear layer needs, and what factoring would leave."""

from __future__ import annotations

import argparse
from typing import Any

from lowtide.cli import report_output

_EXAMPLES = """\
examples:
  lowtide welore-report ./SmolLM2-135M --ratio 0.3
  lowtide welore-report ./SmolLM2-135M --ratio 0.5 --plot ranks.png
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "welore-report",
        help="the rank that each of a model's layers needs",
        description=(
            "Prints the rank of each linear layer of MODEL by WeLore: one threshold on the normalised singular values of\n"
            "all weights, and the layers whose factors are smaller than the weight. The model is not changed."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="model directory with config.json and safetensors")
    parser.add_argument(
        "--ratio", type=float, default=0.3, metavar="R", help="share of all singular values to give up"
    )
    parser.add_argument(
        "--minimum",
        type=float,
        metavar="M",
        help="factor layers that give up more than this share of their rank (default: if the factors are smaller)",
    )
    parser.add_argument(
        "--uniform", action="store_true", help="the same share of every layer's rank, to compare with"
    )
    parser.add_argument(
        "--skip",
        action="append",
        metavar="NAME",
        help="layers left out, may be given again (default lm_head)",
    )
    report_output.add_output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.lowrank import welore_plan

    model = report_output.load(arguments)
    plan = welore_plan(
        model,
        arguments.ratio,
        minimum=arguments.minimum,
        uniform=arguments.uniform,
        skip=arguments.skip or ("lm_head",),
    )
    return report_output.show(plan, arguments)
