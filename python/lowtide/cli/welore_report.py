# SPDX-License-Identifier: Apache-2.0
"""`lowtide welore-report MODEL`: the rank that each linear layer needs, and what factoring would leave."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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
    parser.add_argument("--plot", metavar="FILE", help="write a figure as well (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.lowrank import welore_plan
    from lowtide.train.loader import load_model
    from lowtide.train.plot import check_plot

    if arguments.plot:
        check_plot(arguments.plot)
    model = load_model(Path(arguments.model).expanduser())
    plan = welore_plan(
        model,
        arguments.ratio,
        minimum=arguments.minimum,
        uniform=arguments.uniform,
        skip=arguments.skip or ("lm_head",),
    )
    if arguments.plot:
        plan.plot(Path(arguments.plot).expanduser())
    print(json.dumps(plan.to_dict(), indent=2) if arguments.json else plan)
    return 0
