# SPDX-License-Identifier: Apache-2.0
"""`lowtide memory MODEL`: bytes of training by kind, before anything is allocated; `--fit`: settings for a budget."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any

from lowtide.train.methods import METHODS
from lowtide.train.progress import human_bytes

_EXAMPLES = """\
examples:
  lowtide memory llama-7b
  lowtide memory ./SmolLM2-135M --method qgalore --rank 64
  lowtide memory llama-1b --batch 8 --seq 1024 --activations checkpointed
  lowtide memory llama-1b --rank 512 --convention paper
  lowtide memory llama-7b --fit 16GB --batch 1 --seq 1024
"""
# The planner counts gradients and states; zeroth-order methods have neither.
_GRADIENT_METHODS = tuple(name for name, method in METHODS.items() if not method.zeroth_order)
_KINDS = ("weights", "gradients", "states", "basis", "activations", "total")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
#: Exit code where no settings fit.
EXIT_NO_FIT = 1


def _bytes(text: str) -> int:
    """ "16GB" (powers of 1000) or "16GiB" (of 1024) as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    size = 0
    if match and not (match[3] and not match[2]):
        unit = 1024 ** " kmgt".index(match[2]) if match[3] else _UNITS[match[2]]
        size = math.floor(float(match[1]) * unit)
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a size as 16GB or 15.5GiB, got {text!r}")
    return size


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "memory",
        help="count the bytes of training by kind",
        description=(
            "Bytes of weights, gradients, optimizer states and bases that training MODEL takes, counted from\n"
            "its shapes alone; activations if asked for. Without --method: a line for each method.\n"
            "With --fit: settings that train it within so many bytes, best expected quality first (exit code 1: none)."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model directory, config.json, or llama-60m, -130m, -350m, -1b, -3b, -7b",
    )
    parser.add_argument(
        "--method",
        metavar="METHOD",
        help=f"count one method only: {', '.join(sorted(_GRADIENT_METHODS))}, or the name of any optimizer of lowtide.optim",
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
        "--batch", type=int, metavar="N", help="sequences at once, for activations (--fit: 1)"
    )
    parser.add_argument(
        "--seq", type=int, metavar="N", help="tokens of a sequence, for activations (--fit: 1024)"
    )
    parser.add_argument(
        "--activations",
        choices=("none", "full", "checkpointed"),
        default="none",
        help="count what is saved for the backward pass: not (default), all of it, or with checkpoints at layers",
    )
    parser.add_argument(
        "--convention",
        choices=("lowtide", "paper"),
        default="lowtide",
        help="lowtide: what this library allocates (default); paper: as the GaLore papers estimate, without gradients",
    )
    parser.add_argument(
        "--fit", type=_bytes, metavar="SIZE", help="propose settings for a memory of SIZE (16GB, 15.5GiB)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.optim import memory

    if arguments.fit is not None:
        return _fit(arguments)
    reports = []
    for method in [arguments.method] if arguments.method else _GRADIENT_METHODS:
        freed = arguments.in_backward == "on"
        if arguments.in_backward == "auto" and method in METHODS:
            freed = METHODS[method].in_backward
        report = memory(
            arguments.model,
            method,
            rank=arguments.rank,
            weights=arguments.weights,
            gradients="one" if freed else "all",
            batch=arguments.batch,
            seq=arguments.seq,
            activations=arguments.activations,
            convention=arguments.convention,
        )
        reports.append(report.as_dict())
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return 0
    print(f"{arguments.model}: {reports[0]['parameters']:,} parameters, rank {arguments.rank}")
    kinds = [kind for kind in _KINDS if kind != "activations" or arguments.activations != "none"]
    print(f"{'method':<12}" + "".join(f"{kind:>12}" for kind in kinds))
    for row in reports:
        print(f"{row['method']:<12}" + "".join(f"{human_bytes(row[kind]):>12}" for kind in kinds))
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    from lowtide.optim import fit
    from lowtide.optim.budget import USABLE

    batch, seq = arguments.batch or 1, arguments.seq or 1024
    proposals = fit(arguments.model, arguments.fit, batch=batch, seq=seq)
    if arguments.json:
        print(json.dumps([p.as_dict() for p in proposals], indent=2))
    else:
        print(
            f"{arguments.model} in {human_bytes(arguments.fit)} (a tenth of it left free), "
            f"a step of {batch} x {seq} tokens, best expected quality first"
        )
        print(
            f"{'method':<12}{'weights':>8}{'rank':>7}{'layerwise':>11}{'checkpoints':>13}{'passes':>8}"
            f"{'states':>11}{'activations':>13}{'total':>11}  why"
        )
        for p in proposals:
            r = p.report
            print(
                f"{p.method:<12}{p.weights:>8}{'-' if p.rank is None else f'{p.rank:g}':>7}"
                f"{'yes' if p.in_backward else 'no':>11}{'yes' if p.checkpointing else 'no':>13}{p.accumulate:>8}"
                f"{human_bytes(r.states + r.basis):>11}{human_bytes(r.activations):>13}{human_bytes(r.total):>11}  {p.why}"
            )
    if proposals[0].fits:
        return 0
    short = proposals[0].report.total - USABLE * arguments.fit
    print(
        f"lowtide: nothing fits: the nearest misses by {human_bytes(short)}; use a shorter --seq, a smaller model or more memory",
        file=sys.stderr,
    )
    return EXIT_NO_FIT
