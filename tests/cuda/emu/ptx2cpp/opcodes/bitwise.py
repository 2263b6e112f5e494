# SPDX-License-Identifier: Apache-2.0
"""Logic, shifts and bit fields (PTX ISA 9.7.1.15 onward, 9.7.8)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction
from ..ptx_types import C_TYPE, bits
from .arithmetic import call
from .registry import opcode

_OPERATOR = {"and": "&", "or": "|", "xor": "^"}


@opcode(r"(and|or|xor)\.(pred|b16|b32|b64)", 3)
def _logic(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, a, b = i.operands
    t = m[2]
    e.assign(d, f"As<{C_TYPE[t]}>({e.value(a, t)} {_OPERATOR[m[1]]} {e.value(b, t)})")


@opcode(r"not\.(pred|b16|b32|b64)", 2)
def _not(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    operator = "!" if m[1] == "pred" else "~"
    e.assign(i.operands[0], f"As<{C_TYPE[m[1]]}>({operator}{e.value(i.operands[1], m[1])})")


@opcode(r"shl\.(b16|b32|b64)", 3)
def _shl(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Shl", [m[1], "u32"])


@opcode(r"shr\.([ubs](?:16|32|64))", 3)
def _shr(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Shr", [m[1], "u32"])


@opcode(r"shf\.([lr])\.(wrap|clamp)\.b32", 4)
def _funnel(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, low, high, by = i.operands
    amount = f"{e.value(by, 'u32')} & 31u" if m[2] == "wrap" else f"std::min({e.value(by, 'u32')}, 32u)"
    side = "Left" if m[1] == "l" else "Right"
    e.assign(d, f"Funnel{side}({e.value(low, 'u32')}, {e.value(high, 'u32')}, {amount})")


@opcode(r"lop3\.b32", 5)
def _lop3(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Lop3", "u32")


@opcode(r"prmt\.b32", 4)
def _prmt(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Permute", "u32")


@opcode(r"bfe\.([us](?:32|64))", 4)
def _bfe(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "BitFieldExtract", [m[1], "u32", "u32"])


@opcode(r"bfi\.(b32|b64)", 5)
def _bfi(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "BitFieldInsert", [m[1], m[1], "u32", "u32"])


@opcode(r"brev\.(b32|b64)", 2)
def _brev(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "ReverseBits", m[1])


@opcode(r"popc\.(b32|b64)", 2)
def _popc(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "(uint32_t)std::popcount", m[1])


@opcode(r"clz\.(b32|b64)", 2)
def _clz(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "(uint32_t)std::countl_zero", m[1])


@opcode(r"bfind\.(shiftamt\.)?([us](?:32|64))", 2)
def _bfind(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "FindTopBit", m[2], ", true" if m[1] else ", false")


@opcode(r"mov\.(pred|[busf](?:16|32|64))", 2)
def _mov(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    from ..emitter import split_operands

    d, s = i.operands
    t = "pred" if m[1] == "pred" else f"u{bits(m[1])}"
    if s.startswith("{"):
        parts = split_operands(s[1:-1])
        width = bits(t) // len(parts)
        fields = (
            f"static_cast<uint64_t>({e.value(p, f'u{width}')}) << {k * width}" for k, p in enumerate(parts)
        )
        e.assign(d, f"As<{C_TYPE[t]}>({' | '.join(f'({f})' for f in fields)})")
    elif d.startswith("{"):
        parts = split_operands(d[1:-1])
        width = bits(t) // len(parts)
        e.emit(f"{{ const {C_TYPE[t]} whole = {e.value(s, t)};")
        for k, p in enumerate(parts):
            if p != "_":
                e.assign(p, f"As<uint{width}_t>(whole >> {k * width})")
        e.emit("}")
    else:
        e.assign(d, e.value(s, t))
