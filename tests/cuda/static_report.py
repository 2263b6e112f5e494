# SPDX-License-Identifier: Apache-2.0
"""What can be known of the CUDA kernels without a GPU: registers, spills, shared memory, occupancy, vector accesses.

usage: static_report.py --budgets tests/cuda/budgets.json --output static_report.json --ptx PTX... --ptxas LOG...

Prints a table, writes JSON and exits 1 if a kernel breaks its budget or has none. Registers and memory are ptxas's own
(`ptxas -v`) for the machine code that is shipped; accesses are counted in the PTX. Occupancy is what the limits of the
CUDA programming guide (compute capabilities, technical specifications) allow. None of it is a time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# per SM: threads, registers, shared memory in KiB, blocks
SM = {"sm_80": (2048, 65536, 164, 32), "sm_90": (2048, 65536, 228, 32), "sm_100": (2048, 65536, 228, 32)}

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass
class Row:
    kernel: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    occupancy: float
    loads_16: int
    loads_narrower: int
    stores_16: int
    stores_narrower: int


def short_names(mangled: list[str]) -> dict[str, str]:
    """lowtide::quant::cuda::kernels::f<lowtide::X>(...) becomes quant::f<X>."""
    out = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    names = {}
    for m, full in zip(mangled, out.splitlines(), strict=True):
        full = re.sub(r"^void ", "", full)
        depth, end = 0, len(full)
        for i, c in enumerate(full):  # the parameter list is the first parenthesis outside <...>
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                end = i
                break
        head, _, arguments = full[:end].replace("cuda::kernels::", "").replace("kernels::", "").partition("<")
        arguments = re.sub(r"\([\w:]+\)|(?:\w+::)+", "", arguments)  # (lowtide::Enum)1, namespaces
        names[m] = head.replace("lowtide::", "") + (f"<{arguments}" if arguments else "")
    return names


def read_ptxas(paths: list[Path]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """(kernel, arch): registers, spill bytes, stack bytes, static shared bytes."""
    found = {}
    for path in paths:
        key, stack = None, (0, 0, 0)
        for line in path.read_text().splitlines():
            if m := _ENTRY.search(line):
                key = (m[1], m[2])
            elif (m := _STACK.search(line)) and key:
                stack = (int(m[1]), int(m[2]), int(m[3]))
            elif (m := _USED.search(line)) and key:
                found[key] = (int(m[1]), stack[1] + stack[2], stack[0], int(m[2] or 0))
                key, stack = None, (0, 0, 0)
    return found


def read_ptx(paths: list[Path]) -> dict[str, tuple[int, list[int]]]:
    """kernel: threads a block, [16-byte loads, narrower, 16-byte stores, narrower] of global memory."""
    found = {}
    for path in paths:
        for m in re.finditer(r"\.entry (\w+)\((.*?)\)(.*?)\{(.*?)\n\}", path.read_text(), re.S):
            limit = re.search(r"\.maxntid (\d+)(?:, (\d+), (\d+))?", m[3])
            threads = 1024
            if limit:
                threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
            counts = [0, 0, 0, 0]
            for kind, lanes, width in re.findall(
                r"\b(ld|st)\.global[\w.:]*?(?:\.v([24]))?\.[busf](\d+)\b", m[4]
            ):
                wide = int(lanes or 1) * int(width) == 128
                counts[(0 if kind == "ld" else 2) + (0 if wide else 1)] += 1
            found[m[1]] = (threads, counts)
    return found


def occupancy(arch: str, registers: int, shared: int, threads: int) -> float:
    """Share of the threads of an SM that fit: registers come by 256 a warp, shared memory with 1 KiB a block."""
    most_threads, file, kib, blocks = SM[arch]
    warps = -(-threads // 32)
    by_registers = file // (-(-registers * 32 // 256) * 256 * warps) if registers else blocks
    by_shared = kib * 1024 // (-(-(shared + 1024) // 128) * 128)
    return min(blocks, most_threads // (32 * warps), by_registers, by_shared) * 32 * warps / most_threads


def judge(rows: list[Row], budgets: dict[str, dict[str, int]]) -> list[str]:
    faults = []
    for r in rows:
        where = f"{r.kernel} on {r.arch}"
        if r.spill_bytes or r.stack_bytes:
            faults.append(
                f"{where}: {r.spill_bytes} bytes spilled, {r.stack_bytes} bytes of stack; both must be 0"
            )
        budget = budgets.get(r.kernel)
        if budget is None:
            faults.append(f"{r.kernel} has no budget: add it to tests/cuda/budgets.json")
            continue
        if r.registers > budget["registers"]:
            faults.append(f"{where}: {r.registers} registers, the budget is {budget['registers']}")
        if r.loads_16 + r.stores_16 < budget.get("accesses_16", 0):
            faults.append(
                f"{where}: {r.loads_16 + r.stores_16} accesses of 16 bytes in the PTX, the budget asks for {budget['accesses_16']}"
            )
    stale = set(budgets) - {r.kernel for r in rows}
    faults += [f"tests/cuda/budgets.json names {name}, which does not exist" for name in sorted(stale)]
    return list(dict.fromkeys(faults))


def main() -> int:
    parser = argparse.ArgumentParser(description="Static report of the CUDA kernels.")
    parser.add_argument("--budgets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ptx", type=Path, nargs="+", required=True)
    parser.add_argument("--ptxas", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    used, accesses = read_ptxas(args.ptxas), read_ptx(args.ptx)
    names = short_names(sorted({k for k, _ in used}))
    rows = []
    for (kernel, arch), (registers, spills, stack, shared) in sorted(
        used.items(), key=lambda x: (names[x[0][0]], int(x[0][1][3:]))
    ):
        threads, counts = accesses[kernel]
        share = occupancy(arch, registers, shared, threads)
        rows.append(Row(names[kernel], arch, registers, spills, stack, shared, threads, share, *counts))
    width = max(len(r.kernel) for r in rows)
    print(
        f"{'kernel':{width}} {'arch':>6} {'regs':>4} {'spill':>5} {'stack':>5} {'smem':>6} {'thr':>4} {'occ':>4}  ld16 ld<16 st16 st<16"
    )
    for r in rows:
        print(
            f"{r.kernel:{width}} {r.arch:>6} {r.registers:4} {r.spill_bytes:5} {r.stack_bytes:5} {r.shared_bytes:6} {r.threads:4} "
            f"{r.occupancy:4.0%} {r.loads_16:5} {r.loads_narrower:5} {r.stores_16:4} {r.stores_narrower:5}"
        )
    args.output.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    faults = judge(rows, json.loads(args.budgets.read_text()))
    for f in faults:
        print(f"FAULT {f}")
    return 1 if faults or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
