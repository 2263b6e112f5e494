# SPDX-License-Identifier: Apache-2.0
"""PTX types: widths and the C++ types that hold them."""

from __future__ import annotations

C_TYPE = {
    "b8": "uint8_t", "u8": "uint8_t", "s8": "int8_t",
    "b16": "uint16_t", "u16": "uint16_t", "s16": "int16_t", "f16": "uint16_t", "bf16": "uint16_t",
    "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t", "f32": "float", "f16x2": "uint32_t", "bf16x2": "uint32_t",
    "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t", "f64": "double",
    "pred": "bool",
}  # fmt: skip


def bits(ptx_type: str) -> int:
    """Width of a type in bits; 1 for a predicate."""
    if ptx_type == "pred":
        return 1
    return {"f16x2": 32, "bf16x2": 32}.get(ptx_type) or int(ptx_type.lstrip("busf"))


def unsigned(ptx_type: str) -> str:
    """The unsigned integer type of the same width."""
    return f"u{bits(ptx_type)}"


def storage(ptx_type: str) -> str:
    """C++ type that carries the bits unchanged (loads, stores and moves must not touch a NaN)."""
    return "bool" if ptx_type == "pred" else f"uint{bits(ptx_type)}_t"
