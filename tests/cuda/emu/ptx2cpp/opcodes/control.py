# SPDX-License-Identifier: Apache-2.0
"""Branches and the end of a kernel (PTX ISA 9.7.12)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction, label
from ..errors import PtxError
from .registry import opcode


@opcode(r"bra(?:\.uni)?", 1)
def _bra(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.emit(f"goto {label(i.operands[0])};")


@opcode(r"brx\.idx(?:\.uni)?", 2)
def _brx(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    index, name = i.operands
    if name not in e.entry.body.tables:
        raise PtxError(f"branch table {name} is not known")
    cases = " ".join(f"case {k}: goto {label(x)};" for k, x in enumerate(e.entry.body.tables[name]))
    e.emit(
        f'switch ({e.value(index, "u32")}) {{ {cases} default: Fail("branch index out of its table", &{i.site}); }}'
    )


@opcode(r"ret(?:\.uni)?|exit", 0)
def _ret(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.emit("return;")


@opcode(r"trap", 0)
def _trap(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.emit(f'Fail("trap", &{i.site});')
