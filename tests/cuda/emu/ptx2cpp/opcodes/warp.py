# SPDX-License-Identifier: Apache-2.0
"""Barriers and warp operations (PTX ISA 9.7.9.6, 9.7.13)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction
from ..errors import PtxError
from .registry import opcode


def _barrier_zero(i: Instruction, operand: str) -> None:
    if operand != "0":
        raise PtxError(f"{i.opcode} {operand}: only barrier 0 of the whole block is supported")


@opcode(r"(?:bar(?:\.cta)?\.sync|barrier(?:\.cta)?\.sync(?:\.aligned)?)", 1)
def _sync(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    _barrier_zero(i, i.operands[0])
    e.emit(f"BlockBarrier({i.site});")


@opcode(r"(?:bar(?:\.cta)?|barrier(?:\.cta)?)\.red\.(popc)(?:\.aligned)?\.u32", 3)
@opcode(r"(?:bar(?:\.cta)?|barrier(?:\.cta)?)\.red\.(and|or)(?:\.aligned)?\.pred", 3)
def _reduce(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, barrier, p = i.operands
    _barrier_zero(i, barrier)
    votes = f"BlockBarrier({i.site}, {e.condition(p)})"
    e.assign(
        d,
        {
            "popc": f"static_cast<uint32_t>({votes})",
            "or": f"{votes} != 0",
            "and": f"{votes} == machine.block_threads",
        }[m[1]],
    )


@opcode(r"bar\.warp\.sync", 1)
def _warp_sync(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.emit(f"WarpBarrier({e.value(i.operands[0], 'u32')}, {i.site});")


@opcode(r"shfl\.sync\.(up|down|bfly|idx)\.b32", 5)
def _shfl(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, a, b, c, mask = i.operands
    value, _, in_range = d.partition("|")
    mode = {"up": "u", "down": "d", "bfly": "b", "idx": "i"}[m[1]]
    args = ", ".join(e.value(o, "u32") for o in (mask, a, b, c))
    e.emit(f"{{ const Shuffled s = Shuffle('{mode}', {args}, {i.site});")
    e.assign(value.strip(), "s.value")
    if in_range:
        e.assign(in_range.strip(), "s.in_range")
    e.emit("}")


@opcode(r"vote\.sync\.(all|any|uni|ballot)\.(pred|b32)", 3)
def _vote(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, p, mask = i.operands
    if (m[1] == "ballot") != (m[2] == "b32"):
        raise PtxError(f"{i.opcode} does not exist")
    ballot = f"Ballot({e.value(mask, 'u32')}, {e.condition(p)}, {i.site})"
    whole = "machine.current->mask"  # the lanes of the mask that exist
    expression = {
        "ballot": ballot,
        "any": f"{ballot} != 0",
        "all": f"{ballot} == {whole}",
        "uni": f"[&] {{ const uint32_t b = {ballot}; return b == 0 || b == {whole}; }}()",
    }[m[1]]
    e.assign(d, expression)


@opcode(r"redux\.sync\.(add|min|max)\.([us])32", 3)
@opcode(r"redux\.sync\.(and|or|xor)\.(b)32", 3)
def _redux(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, a, mask = i.operands
    op = {"add": "a", "min": "m", "max": "M", "and": "&", "or": "|", "xor": "^"}[m[1]]
    signed = "true" if m[2] == "s" else "false"
    e.assign(d, f"Reduce('{op}', {signed}, {e.value(mask, 'u32')}, {e.value(a, 'u32')}, {i.site})")
