# SPDX-License-Identifier: Apache-2.0
"""`lowtide info`: versions, instruction sets, threads, build, CUDA."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="say what is installed and what runs",
        description="Versions, instruction sets in use and available, threads, build and CUDA: what a bug report needs.",
        epilog="LOWTIDE_ISA=scalar|baseline|avx2|avx512|neon forces an instruction set; results do not change by a bit.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from lowtide.info import report

    facts = report()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    native, ops, cuda = facts["native"], facts["torch_ops"], facts["cuda"]
    build = ", ".join(f"{key} {value}" for key, value in native["build"].items() if key != "version")
    forced = f" (forced by LOWTIDE_ISA={native['LOWTIDE_ISA']})" if native["LOWTIDE_ISA"] else ""
    rows = [
        ("lowtide", facts["lowtide"]),
        ("build", build),
        ("instruction set", native["isa"] + forced),
        ("available", ", ".join(native["available_isas"])),
        (
            "threads",
            f"{native['threads']} for NumPy" + (f", {ops['threads']} for torch" if ops["loaded"] else ""),
        ),
        ("torch ops", "loaded" if ops["loaded"] else f"not loaded: {ops['reason']}"),
        ("CUDA ops", f"not loaded: {cuda['ops_missing']}" if cuda["ops_missing"] else "loaded"),
        ("CUDA in torch", cuda["torch_cuda"] or "none"),
        ("CUDA devices", ", ".join(cuda["devices"]) or "none"),
        ("python", f"{facts['python']}, {facts['platform']}, {facts['processors']} processors"),
        ("numpy", facts["numpy"]),
        *((name, version or "not installed") for name, version in facts["packages"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0
