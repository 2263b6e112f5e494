# SPDX-License-Identifier: Apache-2.0
"""Run hand-written PTX through the translator and the emulator on NumPy arrays. Needs g++, not nvcc."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RUNTIME = HERE.parent / "emu" / "runtime"
sys.path.insert(0, str(HERE.parent / "emu"))

from ptx2cpp.translate import translate_text  # noqa: E402

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<8>;
  .reg .b16 %h<8>;
  .reg .b32 %r<16>;
  .reg .b64 %d<16>;
"""


class Lab:
    """A shared library with every kernel of one PTX text."""

    def __init__(self, ptx: str, folder: Path) -> None:
        source = folder / "kernels.cc"
        source.write_text(translate_text(ptx))
        library = folder / "kernels.so"
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
        files = [source, HERE / "harness.cc", *sorted(RUNTIME.glob("*.cc"))]
        subprocess.run(["g++", *flags, f"-I{RUNTIME}", *map(str, files), "-o", str(library)], check=True)
        self._launch = ctypes.CDLL(str(library)).emu_launch

    def run(
        self, name: str, *args: np.ndarray | np.generic, block: Sequence[int], grid: Sequence[int] = (1, 1, 1),
        shared: int = 0, order: str = "forward",
    ) -> None:  # fmt: skip
        """Launch; arrays go as pointers (and are written in place), NumPy scalars by value."""
        holders = []
        for a in args:
            if isinstance(a, np.ndarray):
                assert a.flags.c_contiguous
                holders.append(np.array(a.ctypes.data, np.uint64))
            else:
                holders.append(np.array(a))
        pointers = (ctypes.c_void_p * len(args))(*[h.ctypes.data for h in holders])
        three = ctypes.c_uint * 3
        pad = (1, 1)
        failed = self._launch(
            name.encode(),
            three(*(*grid, *pad)[:3]),
            three(*(*block, *pad)[:3]),
            shared,
            order.encode(),
            pointers,
        )
        assert failed == 0, f"no kernel {name} or no order {order}"


def map_kernel(name: str, body: str, types: Sequence[str], result: str) -> str:
    """PTX of: thread i loads one value of each array, runs `body`, stores one result.

    `body` writes $d from $a, $b, $c (registers of the width of their type).
    """
    width = {t: int(t[1:]) if t != "pred" else 32 for t in (*types, result)}
    bank = {8: "%h", 16: "%h", 32: "%r", 64: "%d"}
    used = {"$d": f"{bank[width[result]]}0"}
    text = [
        f".visible .entry {name}(",
        ",\n".join(f"  .param .u64 p{i}" for i in range(len(types) + 1)),
        ")\n{",
        REGISTERS,
    ]
    text.append("  mov.u32 %r15, %tid.x;")
    for i, t in enumerate(types):
        r = f"{bank[width[t]]}{i + 1}"
        used["$" + "abcef"[i]] = r
        text.append(f"  ld.param.u64 %d14, [p{i + 1}]; mul.wide.u32 %d15, %r15, {width[t] // 8};")
        text.append(f"  add.s64 %d14, %d14, %d15; ld.global.b{width[t]} {r}, [%d14];")
    for key, r in used.items():
        body = body.replace(key, r)
    text.append("  " + body)
    text.append(
        f"  ld.param.u64 %d14, [p0]; mul.wide.u32 %d15, %r15, {width[result] // 8}; add.s64 %d14, %d14, %d15;"
    )
    text.append(f"  st.global.b{width[result]} [%d14], {used['$d']};\n  ret;\n}}\n")
    return "\n".join(text)
