# SPDX-License-Identifier: Apache-2.0
"""`lowtide quant-report MODEL`: what packing its linear layers costs, layer by layer."""

from __future__ import annotations

import argparse
from typing import Any

from lowtide.cli import report_output

_EXAMPLES = """\
examples:
  lowtide quant-report ./SmolLM2-135M --weights int4 --group 128
  lowtide quant-report ./SmolLM2-135M --weights int8 --plot report.png
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "quant-report",
        help="error and bits of a model's layers in low bit",
        description=(
            "Packs the linear layers of MODEL in memory and prints each one's signal to quantization noise ratio\n"
            "(SQNR), bits per weight with scales, and worst group. The model is not changed."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="model directory with config.json and safetensors")
    parser.add_argument(
        "--weights",
        choices=("int8", "int4", "nf4"),
        default="int8",
        help="how weights are packed (default int8)",
    )
    parser.add_argument(
        "--group", type=int, default=128, metavar="G", help="columns that share a scale (default 128)"
    )
    parser.add_argument(
        "--scheme",
        choices=("symmetric", "asymmetric"),
        default="asymmetric",
        help="of int8 and int4 (default asymmetric)",
    )
    parser.add_argument(
        "--skip",
        action="append",
        metavar="NAME",
        help="layers that stay dense, may be given again (default lm_head)",
    )
    report_output.add_output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide import quant

    model = report_output.load(arguments)
    scheme = {} if arguments.weights == "nf4" else {"scheme": arguments.scheme}
    with quant.recording():
        quant.quantize_model_(
            model,
            arguments.weights,
            arguments.group,
            arguments.skip or ("lm_head",),
            headroom=False,
            **scheme,
        )
    report = quant.report(model)
    return report_output.show(report, arguments)
