# SPDX-License-Identifier: Apache-2.0
"""No hand-written source file is longer than 500 lines: a file has one subject."""

from __future__ import annotations

import sys
from pathlib import Path

from check_spdx import ROOT, SUFFIXES, tracked

LIMIT = 500
GENERATED = {"python/lowtide/_core.pyi"}


def main() -> int:
    sources = [n for n in tracked() if Path(n).suffix in SUFFIXES and n not in GENERATED]
    bad = 0
    for name in sources:
        lines = (ROOT / name).read_bytes().count(b"\n")
        if lines > LIMIT:
            print(f"{name}: {lines} lines, at most {LIMIT}; split it by subject")
            bad += 1
    print(f"file lengths: {len(sources)} files checked, {bad} too long")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
