# SPDX-License-Identifier: Apache-2.0
"""Every tracked source file carries the SPDX line at its top."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = "SPDX-License-Identifier: Apache-2.0"
SUFFIXES = {".py", ".pyi", ".c", ".cc", ".h", ".cu", ".cuh", ".cmake", ".sh", ".S"}
NAMES = {"CMakeLists.txt", "Makefile", ".ci/run"}


def tracked() -> list[str]:
    """Files under version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in out.split("\0") if name and (ROOT / name).is_file()})


def main() -> int:
    sources = [n for n in tracked() if Path(n).suffix in SUFFIXES or Path(n).name in NAMES or n in NAMES]
    bad = []
    for name in sources:
        top = (ROOT / name).read_text(encoding="utf-8").split("\n", 2)[:2]  # the second line after a #! line
        first = top[1] if top[0].startswith("#!") and len(top) > 1 else top[0]
        if LINE not in first:
            bad.append(name)
    for name in bad:
        print(f"{name}: the first line must say '{LINE}'")
    print(f"SPDX lines: {len(sources)} files checked, {len(bad)} without")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
