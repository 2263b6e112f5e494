# SPDX-License-Identifier: Apache-2.0
"""Integer and floating-point arithmetic (PTX ISA 9.7.1, 9.7.3)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction
from ..ptx_types import bits, unsigned
from .registry import opcode

INT = r"[us](?:16|32|64)"


def call(e: Emitter, i: Instruction, function: str, types: str | list[str], extra: str = "") -> None:
    """destination = function(operands as values of the given types)."""
    sources = i.operands[1:]
    kinds = [types] * len(sources) if isinstance(types, str) else types
    args = ", ".join(e.value(o, t) for o, t in zip(sources, kinds, strict=True))
    e.assign(i.operands[0], f"{function}({args}{extra})")


# ---- floating point; the lint has already refused what is not exactly rounded ----
@opcode(r"(add|sub|mul|div)\.rn\.(f32|f64)", 3)
@opcode(r"(min|max)\.(f32|f64)", 3)
def _float2(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), m[2])


@opcode(r"(min|max)\.NaN\.(f32)", 3)
def _float_nan(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize() + "NaN", m[2])


@opcode(r"(?:fma|mad)\.rn\.(f32|f64)", 4)
def _fma(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Fma", m[1])


@opcode(r"sqrt\.rn\.(f32|f64)", 2)
def _sqrt(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Sqrt", m[1])


@opcode(r"rcp\.rn\.(f32|f64)", 2)
def _rcp(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    one = "1.0f" if m[1] == "f32" else "1.0"
    e.assign(i.operands[0], f"Div({one}, {e.value(i.operands[1], m[1])})")


@opcode(r"(abs|neg)\.(f32|f64)", 2)
def _float1(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), m[2])


@opcode(r"copysign\.(f32|f64)", 3)
def _copysign(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "CopySign", m[1])


# ---- integers ----
@opcode(rf"(add|sub)\.({INT})", 3)
def _add(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), unsigned(m[2]))


@opcode(rf"mul\.lo\.({INT})", 3)
def _mul_lo(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "MulLo", unsigned(m[1]))


@opcode(rf"mul\.hi\.({INT})", 3)
def _mul_hi(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "MulHi", m[1])


@opcode(r"mul\.wide\.([us](?:16|32))", 3)
def _mul_wide(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "MulWide", m[1])


@opcode(rf"mad\.(lo|hi)\.({INT})", 4)
@opcode(r"mad\.(wide)\.([us](?:16|32))", 4)
def _mad(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    half, t = m[1], m[2]
    d, a, b, c = i.operands
    factor = unsigned(t) if half == "lo" else t
    product = {"lo": "MulLo", "hi": "MulHi", "wide": "MulWide"}[half]
    total = unsigned(t) if half != "wide" else f"u{2 * bits(t)}"
    p = f"{product}({e.value(a, factor)}, {e.value(b, factor)})"
    e.assign(d, f"Add(As<uint{bits(total)}_t>({p}), {e.value(c, total)})")


@opcode(rf"(div|rem)\.({INT})", 3)
def _div(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), m[2], f", {i.site}")


@opcode(rf"(min|max)\.({INT})", 3)
def _minmax(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), m[2])


@opcode(r"(abs|neg)\.(s(?:16|32|64))", 2)
def _abs(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, m[1].capitalize(), m[2])


@opcode(rf"sad\.({INT})", 4)
def _sad(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    call(e, i, "Sad", [m[1], m[1], unsigned(m[1])])


@opcode(r"dp4a\.([us])32\.([us])32", 4)
def _dp4a(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    kind = {"u": "uint8_t", "s": "int8_t"}
    call(e, i, f"Dp4a<{kind[m[1]]}, {kind[m[2]]}>", "u32")
