# SPDX-License-Identifier: Apache-2.0
"""The float lint: instructions whose result IEEE 754 does not fix, or that ptxas may still change."""

from __future__ import annotations

import re

_REMEDY = {
    "approx": "an approximation; use the __f*_rn intrinsics, __fdiv_rn, __fsqrt_rn, and no -use_fast_math",
    "full": "an approximation (2 ulp division); use __fdiv_rn or -prec-div=true",
    "ftz": "flushes subnormals; compile with -ftz=false",
}


def finding(opcode: str) -> str | None:
    """Why the instruction is refused, or None."""
    parts = opcode.split(".")
    for word, why in _REMEDY.items():
        if word in parts:
            return f"{opcode}: {why}"
    if re.fullmatch(r"(add|sub|mul)(\.sat)?\.f(16|32|64)(x2)?|(add|sub|mul)(\.sat)?\.bf16(x2)?", opcode):
        return f"{opcode}: no rounding modifier, so ptxas may contract it into an fma; use __fadd_rn and the like"
    if parts[0] in ("atom", "red") and re.search(r"\.b?f(16|32|64)(x2)?$", opcode):
        return f"{opcode}: the order of floating-point atomics is not fixed; use a fixed tree"
    if parts[0] in ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt"):
        return f"{opcode}: has no correctly rounded form"
    return None
