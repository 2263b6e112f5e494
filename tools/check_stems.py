# SPDX-License-Identifier: Apache-2.0
"""Every kernel has all of its files: one stem through every layer (HACKING.md, "Adding a kernel")."""

from __future__ import annotations

import re
import sys

from check_spdx import ROOT

#: Kernels whose CUDA source is still to be written. Empty is the goal; a stem that has one must leave.
NO_CUDA_YET: set[str] = set()


def files_of(family: str, stem: str) -> list[str]:
    base = f"csrc/{family}/{stem}"
    return [
        f"{base}.h",
        f"{base}.cc",
        f"{base}_ref.cc",
        f"{base}_simd.cc",
        f"{base}.cu",
        f"tests/cpp/{family}/{stem}_test.cc",
        f"bench/cpp/{stem}_bench.cc",
    ]


def main() -> int:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    registered = set(re.findall(r"^lowtide_kernel\((\w+) (\w+)\)", cmake, re.MULTILINE))
    present = {(p.parent.name, p.name[: -len("_simd.cc")]) for p in ROOT.glob("csrc/*/*_simd.cc")}
    faults = [
        f"csrc/{f}/{s}_simd.cc has no lowtide_kernel({f} {s}) line" for f, s in sorted(present - registered)
    ]
    for family, stem in sorted(registered | present):
        for name in files_of(family, stem):
            exists = (ROOT / name).exists()
            excused = name.endswith(".cu") and f"{family}/{stem}" in NO_CUDA_YET
            if not exists and not excused:
                faults.append(f"kernel {family}/{stem}: {name} is missing")
            if exists and excused:
                faults.append(
                    f"kernel {family}/{stem} has its .cu: take it out of NO_CUDA_YET in tools/check_stems.py"
                )
    for fault in faults:
        print(fault)
    pending = [f"{f}/{s}" for f, s in sorted(registered) if f"{f}/{s}" in NO_CUDA_YET]
    without = f" ({len(pending)} without CUDA so far: {', '.join(pending)})" if pending else ""
    print(f"kernel stems: {len(registered | present)} checked, {len(faults)} faults{without}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
