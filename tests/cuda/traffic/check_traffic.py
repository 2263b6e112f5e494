# SPDX-License-Identifier: Apache-2.0
"""Global memory traffic of each kernel over the least it could be, counted while its PTX runs on the CPU.

usage: check_traffic.py PROGRAM [OUTPUT.json]

Traffic is 32-byte sectors times 32, as the hardware would coalesce them: request by request (no cache at all), and with
a cache that lasts for a block. The least is what csrc's headers say a kernel must move. A scale that is 4 bytes of a
sector of its own request costs 32 without a cache; that is the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from static_report import short_names

LIMIT = 1.05  # with a block's cache
LIMIT_UNCACHED = 1.10


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.jsonl"
        run = subprocess.run(
            [sys.argv[1]], env={**os.environ, "LT_EMU_PROFILE": str(profile)}, capture_output=True, text=True
        )
        if run.returncode != 0:
            print(run.stdout + run.stderr)
            return 1
        rows = [json.loads(line) for line in profile.read_text().splitlines()]
    least: Counter[str] = Counter()
    for line in run.stdout.splitlines():
        name, count = line.rsplit(" ", 1)
        least[name] += int(count)
    names = short_names(sorted({r["kernel"] for r in rows}))
    moved: Counter[str] = Counter()
    vectors: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    cached = {names[r["kernel"]]: 32 * r["block_sectors"] for r in rows if "block_sectors" in r}
    for r in rows:
        if "block_sectors" in r:
            continue
        name = names[r["kernel"]]
        moved[name] += 32 * r["sectors"]
        # bytes that move by requests of full 16-byte vectors
        vectors[name] += r["bytes"] if ".global" in r["opcode"] and r["bytes"] == 16 * r["lanes"] else 0
        passes[name] += r["bank_passes"]
    unmeasured = set(least) - set(moved)
    bad = [f"{n}: no traffic was seen" for n in unmeasured]
    table = []
    print(f"{'kernel':36} {'must move':>10} {'ratio':>7} {'uncached':>9} {'by 16 B':>8} {'bank passes':>12}")
    for name in sorted(set(least) - unmeasured):
        ratio, uncached = cached[name] / least[name], moved[name] / least[name]
        print(
            f"{name:36} {least[name]:10} {ratio:7.3f} {uncached:9.3f} {vectors[name] / moved[name]:8.0%} {passes[name]:12}"
        )
        table.append(
            {"kernel": name, "ratio": ratio, "uncached": uncached, "vectors": vectors[name] / moved[name]}
        )
        if not 0.999 <= ratio <= LIMIT or uncached > LIMIT_UNCACHED:
            bad.append(
                f"{name}: moves {ratio:.3f} ({uncached:.3f} uncached) times what it must; limits {LIMIT} ({LIMIT_UNCACHED})"
            )
    for b in bad:
        print(f"FAULT {b}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(table, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
