# SPDX-License-Identifier: Apache-2.0
"""setp, set, selp, slct (PTX ISA 9.7.5 to 9.7.7)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction
from ..errors import PtxError
from ..ptx_types import C_TYPE, unsigned
from .registry import opcode

_OPERATOR = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def comparison(e: Emitter, word: str, t: str, a: str, b: str) -> str:
    """C++ condition. Float comparisons are false on NaN, except ne... with a trailing u, which are true."""
    if t in ("f32", "f64"):
        x, y = e.value(a, t), e.value(b, t)
        if word in ("num", "nan"):
            return f"{'!' if word == 'num' else ''}Unordered({x}, {y})"
        if word.endswith("u") and word[:-1] in _OPERATOR:
            return f"(Unordered({x}, {y}) || {x} {_OPERATOR[word[:-1]]} {y})"
        if word in _OPERATOR:
            return f"(!Unordered({x}, {y}) && {x} {_OPERATOR[word]} {y})"
    elif word in _UNSIGNED and t[0] == "u":
        return f"({e.value(a, t)} {_UNSIGNED[word]} {e.value(b, t)})"
    elif word in _OPERATOR and (t[0] != "b" or word in ("eq", "ne")):
        return f"({e.value(a, t)} {_OPERATOR[word]} {e.value(b, t)})"
    raise PtxError(f"comparison {word} is not defined for {t}")


@opcode(r"setp\.(\w+)\.(?:(and|or|xor)\.)?([busf](?:16|32|64))")
def _setp(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    word, combine, t = m.groups()
    if len(i.operands) != (4 if combine else 3):
        raise PtxError("wrong number of operands")
    condition = comparison(e, word, t, i.operands[1], i.operands[2])
    opposite = f"!{condition}"
    if combine:
        c = {"and": "&", "or": "|", "xor": "^"}[combine]
        other = f"{e.condition(i.operands[3])}"
        condition, opposite = f"As<bool>({condition} {c} {other})", f"As<bool>({opposite} {c} {other})"
    p, _, q = i.operands[0].partition("|")
    if not q:
        e.assign(p.strip(), condition)
        return
    e.emit(f"{{ const bool first = {condition}, second = {opposite};")
    e.assign(p.strip(), "first")
    e.assign(q.strip(), "second")
    e.emit("}")


@opcode(r"set\.(\w+)\.(u32|s32)\.([busf](?:16|32|64))", 3)
def _set(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    condition = comparison(e, m[1], m[3], i.operands[1], i.operands[2])
    e.assign(i.operands[0], f"{condition} ? 0xffffffffu : 0u")


@opcode(r"selp\.([busf](?:16|32|64))", 4)
def _selp(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, a, b, p = i.operands
    t = unsigned(m[1])
    e.assign(d, f"{e.condition(p)} ? {e.value(a, t)} : {e.value(b, t)}")


@opcode(r"slct\.([busf](?:16|32|64))\.s32", 4)
def _slct(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, a, b, c = i.operands
    t = unsigned(m[1])
    e.assign(d, f"{e.value(c, 's32')} >= 0 ? {C_TYPE[t]}({e.value(a, t)}) : {C_TYPE[t]}({e.value(b, t)})")
