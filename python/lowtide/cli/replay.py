# SPDX-License-Identifier: Apache-2.0
"""`lowtide replay MODEL LOG`: the model that a logged run made, from its base and a few kilobytes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  lowtide replay ./SmolLM2-135M run.ltlog --out ./trained
  lowtide replay ./SmolLM2-135M run.ltlog --upto 5000 --out ./halfway
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "replay",
        help="make the model of a logged zeroth-order run again",
        description=(
            "Loads MODEL, from which the run of LOG started, applies the log's steps bit for bit as the run did, and compares\n"
            "every digest of the weights in the log. Without --out it only verifies."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="model directory with config.json and safetensors")
    parser.add_argument("log", metavar="LOG", help="the .ltlog file")
    parser.add_argument("--out", metavar="DIR", help="write the model to this new directory")
    parser.add_argument("--upto", type=int, metavar="N", help="stop before step N (default: all steps)")
    parser.add_argument(
        "--snapshot",
        metavar="FILE",
        help="begin at this snapshot, which the log names, in place of MODEL's weights",
    )
    parser.add_argument(
        "--progress",
        choices=("auto", "on", "off"),
        default="auto",
        help="progress bar (default: on a terminal)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from lowtide.spsa import LogReader, replay
    from lowtide.train.errors import ConfigError
    from lowtide.train.loader import export_model, load_model
    from lowtide.train.methods import prepare_logged, restore_model

    source = Path(arguments.model).expanduser()
    out = Path(arguments.out).expanduser() if arguments.out else None
    if out is not None and out.exists():
        raise ConfigError(f"out: {out} exists already; give the name of a new directory")
    reader = LogReader(Path(arguments.log).expanduser())  # before the model: it is quick to refuse
    model = load_model(source)
    prepare_logged(model, reader.header.manifest)
    named = dict(model.named_parameters())
    for e in reader.header.manifest:  # models are loaded in float32; what was saved narrower is exact in both
        if e.name in named:
            named[e.name].data = named[e.name].data.to(getattr(torch, e.dtype))
    done = replay(model, reader, upto=arguments.upto, base=arguments.snapshot, progress=arguments.progress)
    print(
        f"{reader.path.name}: {done.step - reader.header.first_step:,} steps applied, {done.verified} digests equal, "
        f"weights {done.masters.digest().hex()}"
    )
    if out is not None:
        restore_model(model)
        export_model(model, source, out)
        print(f"lowtide: wrote {out}", file=sys.stderr)
    return 0
