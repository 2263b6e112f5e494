# SPDX-License-Identifier: Apache-2.0
"""Sizes and argument checks of the group format (csrc/quant/group_format.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowtide._arrays import check_uint
from lowtide.errors import LowtideValueError

SCHEMES = ("symmetric", "asymmetric")
#: Schemes of `Linear` weights.
LINEAR_SCHEMES = (*SCHEMES, "nf4")
#: Maps to fixed levels, as the kernels number them (csrc/quant/group_map_scalar.h).
LEVEL_MAPS = {
    "nf4": 0, "dynamic": 1, "dynamic_unsigned": 2, "linear_nozero": 3, "dynamic8": 4, "dynamic8_unsigned": 5
}  # fmt: skip
#: The map of a scheme with so many bits.
_MAPS = {
    ("nf4", 4): "nf4",
    ("dynamic", 4): "dynamic",
    ("dynamic", 8): "dynamic8",
    ("dynamic_unsigned", 4): "dynamic_unsigned",
    ("dynamic_unsigned", 8): "dynamic8_unsigned",
    ("linear_nozero", 4): "linear_nozero",
}
ALL_SCHEMES = (*SCHEMES, "nf4", "dynamic", "dynamic_unsigned", "linear_nozero")
FLOATS = ("float32", "bfloat16", "float16")
SCALE_DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("nearest", "stochastic")
#: What to do about non-finite elements: refuse the call, or count them as 0 (and report how many).
NONFINITE = ("raise", "skip")
#: Random roles, csrc/random/philox.h.
ROLE_WEIGHT_SR = 1
ROLE_QUANT_SR = 5


def choice(value: str, name: str, allowed: Sequence[str]) -> str:
    """``value``, which must be one of ``allowed``."""
    if value not in allowed:
        raise LowtideValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def check_format(bits: int, group: int) -> None:
    """Refuse impossible widths and group lengths."""
    if bits not in (8, 4):
        raise LowtideValueError(f"bits must be 8 or 4, got {bits!r}")
    if not isinstance(group, int) or not 32 <= group <= 1 << 30 or group % 32:
        raise LowtideValueError(f"group must be a multiple of 32 between 32 and 2**30, got {group!r}")


def map_bits(map: str) -> int:
    """Bits of a code of ``map``, which must be one of LEVEL_MAPS."""
    return 8 if choice(map, "map", tuple(LEVEL_MAPS)).startswith("dynamic8") else 4


def map_of(scheme: str, bits: int) -> str | None:
    """The map of ``scheme``; ``None`` for integers with a scale.

    Raises:
        LowtideValueError: the scheme has no map of so many bits.
    """
    if scheme in SCHEMES:
        return None
    found = _MAPS.get((scheme, bits))
    if found is None:
        raise LowtideValueError(f"scheme={scheme!r} has 4 bits, got bits={bits}; pass bits=4")
    return found


def check_linear(bits: int, group: int, scheme: str) -> None:
    """Refuse formats that no linear layer has."""
    check_format(bits, group)
    choice(scheme, "scheme", LINEAR_SCHEMES)
    if scheme == "nf4" and bits != 4:
        raise LowtideValueError(f"scheme='nf4' has 4 bits, got bits={bits}; pass bits=4")


def range_id(scheme: str, *, compat: bool, headroom: bool) -> int:
    """How extremes become a range, as the kernels number it (csrc/quant/group_format.h)."""
    if compat and headroom:
        raise LowtideValueError("compat and headroom exclude each other: choose one")
    if compat and scheme != "asymmetric":
        raise LowtideValueError(
            "compat=True reproduces Q-GaLore's asymmetric quantizer; pass scheme='asymmetric'"
        )
    return 2 if compat else 1 if headroom else 0


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of a row of codes: INT4 packs blocks of 32 columns into 16 bytes, short blocks into less."""
    return cols if bits == 8 else cols // 32 * 16 + min(cols % 32, 16)


def group_count(cols: int, group: int) -> int:
    """Groups in a row; the last may be short."""
    return -(-cols // group)


@dataclass(frozen=True)
class Address:
    """Where the noise of stochastic rounding comes from; checked, in the order the kernels take it."""

    seed: int
    step: int
    slot: int
    param: int
    offset: int

    @staticmethod
    def checked(seed: Any, step: Any, slot: Any, param: Any, offset: Any) -> Address:
        """Check each coordinate's range."""
        return Address(
            check_uint(seed, "seed", 63),
            check_uint(step, "step", 63),
            check_uint(slot, "slot", 32),
            check_uint(param, "param", 32),
            check_uint(offset, "offset", 62),
        )


def nonfinite_error(count: int, name: str) -> LowtideValueError:
    """The error of the policy ``nonfinite="raise"``."""
    return LowtideValueError(
        f"{name} has {count} non-finite element{'s' if count != 1 else ''} and nothing was changed; "
        "clean it, or pass nonfinite='skip' to count them as 0"
    )
