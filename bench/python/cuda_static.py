# SPDX-License-Identifier: Apache-2.0
"""What is known of the CUDA kernels without a GPU: bytes moved over the least, registers, spills, 16-byte accesses.

    python bench/python/cuda_static.py [--no-save]

Builds the CUDA lane and runs its two reports: ptxas's figures for the machine code that ships, and the memory traffic of each
kernel while its PTX is executed on the CPU. No times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess

from _timing import ROOT, environment, rounded, save

BUILD = ROOT / "build" / "cuda"
TARGET = 1.05


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("    SKIPPED: nvcc was not found")
        return
    started = environment()
    run("cmake", "--preset", "cuda")
    run("cmake", "--build", "--preset", "cuda")
    run("ctest", "--preset", "cuda", "-R", "^cuda[.](traffic|static_report)$")
    kernels = json.loads((BUILD / "static_report.json").read_text())
    traffic = [rounded(r) | {"target": TARGET} for r in json.loads((BUILD / "traffic.json").read_text())]
    worst = max(traffic, key=lambda r: float(r["ratio"]))
    spilled = [k["kernel"] for k in kernels if k["spill_bytes"]]
    print(
        f"    traffic: at most {worst['ratio']:.3f} of the least ({worst['kernel']}), {len(traffic)} kernels"
    )
    print(f"    spills: {', '.join(spilled) or 'none'} in {len(kernels)} kernels and architectures")
    if not args.no_save:
        keep = (
            "kernel",
            "arch",
            "registers",
            "spill_bytes",
            "occupancy",
        )
        rows = [{k: row[k] for k in keep} for row in map(rounded, kernels)]
        save(
            "cuda_static",
            {"bench": "cuda_static", "environment": started, "kernels": rows, "traffic": traffic},
        )


if __name__ == "__main__":
    main()
