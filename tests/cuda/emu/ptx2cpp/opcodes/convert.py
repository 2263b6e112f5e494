# SPDX-License-Identifier: Apache-2.0
"""cvt and cvta (PTX ISA 9.7.9.20, 9.7.9.21)."""

from __future__ import annotations

import re

from ..emitter import Emitter, Instruction
from ..ptx_types import C_TYPE
from .registry import opcode

_ROUND = {"n": "kNearest", "z": "kZero", "m": "kDown", "p": "kUp"}
INT = r"[us](?:8|16|32|64)"


@opcode(rf"cvt\.(sat\.)?({INT})\.({INT})", 2)
def _int_to_int(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    d, s = C_TYPE[m[2]], e.value(i.operands[1], m[3])
    e.assign(i.operands[0], f"Saturate<{d}>({s})" if m[1] else f"static_cast<{d}>({s})")


@opcode(rf"cvt\.rn\.(f32|f64)\.({INT})", 2)
def _int_to_float(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"static_cast<{C_TYPE[m[1]]}>({e.value(i.operands[1], m[2])})")


@opcode(rf"cvt\.r([nzmp])i(?:\.sat)?\.({INT})\.(f32|f64)", 2)
def _float_to_int(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(
        i.operands[0], f"ToInteger<{C_TYPE[m[2]]}>({e.value(i.operands[1], m[3])}, Round::{_ROUND[m[1]]})"
    )


@opcode(r"cvt\.r([nzmp])i\.(f32|f64)\.(f32|f64)", 2)
def _round(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    from ..errors import PtxError

    if m[2] != m[3]:
        raise PtxError(f"{i.opcode} is not supported by the emulator")
    e.assign(i.operands[0], f"RoundToIntegral({e.value(i.operands[1], m[2])}, Round::{_ROUND[m[1]]})")


@opcode(r"cvt\.sat\.f32\.f32", 2)
def _saturate(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"Saturate01({e.value(i.operands[1], 'f32')})")


@opcode(r"cvt\.f64\.f32", 2)
def _widen(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"static_cast<double>({e.value(i.operands[1], 'f32')})")


@opcode(r"cvt\.rn\.f32\.f64", 2)
def _narrow(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"CanonicalNaN(static_cast<float>({e.value(i.operands[1], 'f64')}))")


@opcode(r"cvt\.f32\.(b?f16)", 2)
def _from_half(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"CanonicalNaN(From{m[1].upper()}({e.value(i.operands[1], 'b16')}))")


@opcode(r"cvt\.rn\.(b?f16)\.f32", 2)
def _to_half(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"To{m[1].upper()}({e.value(i.operands[1], 'f32')})")


@opcode(r"cvt\.rn\.(b?f16)x2\.f32", 3)
def _to_half2(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    high, low = (e.value(o, "f32") for o in i.operands[1:])
    e.assign(i.operands[0], f"Pack{m[1].upper()}({high}, {low})")


# Shared addresses are offsets into the block's window; all other spaces use plain host addresses.
@opcode(r"cvta\.shared\.u64", 2)
def _from_shared(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"reinterpret_cast<uint64_t>(machine.shared) + {e.value(i.operands[1], 'u64')}")


@opcode(r"cvta\.to\.shared\.u64", 2)
def _to_shared(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], f"{e.value(i.operands[1], 'u64')} - reinterpret_cast<uint64_t>(machine.shared)")


@opcode(r"cvta(?:\.to)?\.(?:global|local|const|param)\.u64", 2)
def _same(e: Emitter, i: Instruction, m: re.Match[str]) -> None:
    e.assign(i.operands[0], e.value(i.operands[1], "u64"))
