# SPDX-License-Identifier: Apache-2.0
"""ld, st, atom, red (PTX ISA 9.7.9, 9.7.13)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction, split_operands
from ..errors import PtxError
from ..ptx_types import C_TYPE, bits, storage, unsigned
from .registry import opcode

_SPACE = {
    "global": "kGlobal",
    "shared": "kShared",
    "local": "kLocal",
    "const": "kConst",
    "param": "kParam",
    None: "kGeneric",
}
# Cache hints change no result. `volatile` is an ordinary access to the race detector.
_HINT = r"(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt)|\.L1::\w+|\.L2::\w+)*"
_TYPE = r"[busf](?:8|16|32|64)"


def pointer(e: Emitter, i: Instruction, space: str | None, c_type: str, lanes: int, operand: str) -> str:
    where = e.address(operand)
    if space == "shared":
        where = f"static_cast<uint32_t>({where})"
    return f"Address<Space::{_SPACE[space]}, {c_type}, {lanes}>({where}, {i.site})"


@opcode(rf"ld(?:\.volatile|\.weak)?\.param(?:\.v([24]))?\.({_TYPE})", 2)
def _ld_param(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    lanes, t = int(m[1] or 1), m[2]
    registers = split_operands(i.operands[0][1:-1]) if m[1] else [i.operands[0]]
    inside = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", i.operands[1])
    if inside is None or inside[1] not in e.params:  # through a register that holds a parameter's address
        p = pointer(e, i, "param", storage(t), lanes, i.operands[1])
        _load(e, p, registers, t)
        return
    index, size = e.params[inside[1]]
    offset, width = int(inside[2] or 0), bits(t) // 8
    if offset + lanes * width > size:
        raise PtxError(f"reads past the end of parameter {inside[1]} ({size} bytes)")
    for k, r in enumerate(registers):
        e.assign(r, f"As<{_signed(t)}>(Param<{storage(t)}>(args, {index}, {offset + k * width}))")


def _signed(t: str) -> str:
    """Loads sign-extend s8 and s16 into wider registers; all else moves as bits."""
    return C_TYPE[t] if t[0] == "s" else storage(t)


def _load(e: Emitter, p: str, registers: list[str], t: str) -> None:
    e.emit(f"{{ const {storage(t)}* const p = {p};")
    values = [f"const {storage(t)} x{k} = p[{k}];" for k in range(len(registers))]
    e.emit(" ".join(values))
    for k, r in enumerate(registers):
        if r != "_":
            e.assign(r, f"As<{_signed(t)}>(x{k})")
    e.emit("}")


@opcode(
    rf"ld(?:\.volatile|\.weak)?(?:\.(global|shared|local|const))?(?:\.cta)?{_HINT}(?:\.v([248]))?\.({_TYPE})",
    2,
)
def _ld(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    space, lanes, t = m[1], int(m[2] or 1), m[3]
    registers = split_operands(i.operands[0][1:-1]) if m[2] else [i.operands[0]]
    if len(registers) != lanes:
        raise PtxError("vector width and number of registers differ")
    _load(e, pointer(e, i, space, storage(t), lanes, i.operands[1]), registers, t)


@opcode(
    rf"st(?:\.volatile|\.weak)?(?:\.(global|shared|local))?(?:\.cta)?{_HINT}(?:\.v([248]))?\.({_TYPE})", 2
)
def _st(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    space, lanes, t = m[1], int(m[2] or 1), m[3]
    registers = split_operands(i.operands[1][1:-1]) if m[2] else [i.operands[1]]
    if len(registers) != lanes:
        raise PtxError("vector width and number of registers differ")
    e.emit(f"{{ {storage(t)}* const p = {pointer(e, i, space, storage(t), lanes, i.operands[0])};")
    e.emit(" ".join(f"p[{k}] = {e.value(r, unsigned(t))};" for k, r in enumerate(registers)) + " }")


_SCOPE = r"(?:\.relaxed)?(?:\.(?:cta|gpu))?"


@opcode(
    rf"(atom|red){_SCOPE}(?:\.(global|shared))?(?:\.cta)?\.(add|min|max|and|or|xor|exch|inc|dec|cas)\.([bus](?:32|64))"
)
def _atomic(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    kind, space, op, t = m.groups()
    operands = list(i.operands)
    destination = operands.pop(0) if kind == "atom" else "_"
    expected = 3 if op == "cas" else 2
    if len(operands) != expected:
        raise PtxError("wrong number of operands")
    if op not in ("min", "max"):
        t = unsigned(t)
    p = pointer(e, i, space, C_TYPE[t], 1, operands[0])
    values = ", ".join(e.value(o, t) for o in operands[1:])
    e.assign(destination, f"Atomic{op.capitalize()}({p}, {values})")


@opcode(r"(?:membar|fence)(?:\.\w+)+|prefetchu?(?:\.\w+)*\.L[12](?:::\w+)?")
def _nothing(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.emit("(void)0;")
