# SPDX-License-Identifier: Apache-2.0
"""usage: python3 tests/cuda/emu/ptx2cpp IN.ptx -o OUT.cc

Every .entry becomes a function registered with the emulator under its PTX name and architecture. An unknown
instruction, directive or operand is an error, and so is every instruction whose bits IEEE 754 does not fix.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a directory
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = "ptx2cpp"

from ptx2cpp.errors import PtxError
from ptx2cpp.translate import translate_module


def main() -> int:
    parser = argparse.ArgumentParser(prog="ptx2cpp", description="Translate PTX to C++ for the CPU emulator.")
    parser.add_argument("ptx", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        text, errors = translate_module(args.ptx.read_text())
    except PtxError as e:
        text, errors = "", [str(e)]
    for e in errors:
        print(f"{args.ptx}: {e}", file=sys.stderr)
    if errors:
        print(f"ptx2cpp: {len(errors)} findings in {args.ptx}; nothing written", file=sys.stderr)
        return 1
    args.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
