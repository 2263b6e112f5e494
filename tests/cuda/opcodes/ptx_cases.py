# SPDX-License-Identifier: Apache-2.0
"""What each instruction computes, written down a second time from the PTX ISA, in exact Python arithmetic."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

NAN32, NAN64 = 0x7FFFFFFF, 0x7FF8000000000000


def signed(v: int, n: int) -> int:
    return v - (1 << n) if v >> (n - 1) & 1 else v


def f32(u: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", u))[0])


def f64(u: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", u))[0])


def bits64(v: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", v))[0])


def round_to(q: Fraction, precision: int, least: int, greatest: int) -> Fraction | float:
    """Nearest-even to `precision` bits, with least exponent of an ulp and overflow at 2**greatest."""
    if q == 0:
        return q
    a = abs(q)
    e = a.numerator.bit_length() - a.denominator.bit_length()
    while Fraction(2) ** e > a:
        e -= 1
    while Fraction(2) ** (e + 1) <= a:
        e += 1
    ulp = Fraction(2) ** max(e - precision + 1, least)
    r = round(a / ulp) * ulp  # Fraction rounds halves to even
    if r >= Fraction(2) ** greatest:
        return math.copysign(math.inf, q)
    return r if q > 0 else -r


def to_f32(q: Fraction, zero_sign: float = 1.0) -> int:
    r = round_to(q, 24, -149, 128)
    v = float(r) if r != 0 else math.copysign(0.0, -1.0 if q < 0 else zero_sign)
    return int(struct.unpack("<I", struct.pack("<f", v))[0])


def to_half(u: int, precision: int, least: int, greatest: int, bias_bits: int) -> int:
    """f32 bits to a 16-bit format with 5 (f16) or 8 (bf16) exponent bits."""
    x = f32(u)
    if math.isnan(x):
        return 0x7FFF
    sign = (u >> 31) << 15
    mantissa = precision - 1
    exponent_all = (1 << bias_bits) - 1
    r = math.inf if math.isinf(x) else round_to(Fraction(abs(x)), precision, least, greatest)
    if r == math.inf:
        return sign | exponent_all << mantissa
    units = r / Fraction(2) ** least
    assert units.denominator == 1
    n = int(units)
    if n < 1 << precision:  # subnormal or the first normal binade: the encoding is the count of ulps
        return sign | n
    shift = n.bit_length() - precision
    return sign | ((shift + 1) << mantissa) + ((n >> shift) - (1 << mantissa))


def exact(
    op: Callable[[Fraction, Fraction, Fraction], Fraction], special: Callable[..., float]
) -> Callable[..., int]:
    """An f32 operation on bits: exact rational arithmetic for finite inputs, IEEE doubles for the special ones."""

    def run(*u: int) -> int:
        x = [f32(v) for v in u]
        if all(map(math.isfinite, x)):
            q = [Fraction(v) for v in x] + [Fraction(0)] * (3 - len(x))
            try:
                r = op(*q)
            except ZeroDivisionError:
                r = None
            if r is not None and r != 0:
                return to_f32(r)
        v = special(*x)
        return NAN32 if math.isnan(v) else int(struct.unpack("<I", struct.pack("<f", v))[0])

    return run


def divide(a: float, b: float) -> float:
    if b == 0:
        return (
            math.nan
            if a == 0 or math.isnan(a)
            else math.copysign(math.inf, math.copysign(1, a) * math.copysign(1, b))
        )
    return a / b


def minmax(u: int, v: int, largest: bool, nan_wins: bool = False) -> int:
    a, b = f32(u), f32(v)
    if math.isnan(a) or math.isnan(b):
        if nan_wins or (math.isnan(a) and math.isnan(b)):
            return NAN32
        return v if math.isnan(a) else u
    key = [(a, -(u >> 31)), (b, -(v >> 31))]  # -0 below +0
    first = key[0] >= key[1] if largest else key[0] <= key[1]
    return u if first else v


def to_int(x: float, mode: str, n: int, is_signed: bool, top_bit_nan: bool) -> int:
    if math.isnan(x):
        return 1 << (n - 1) if top_bit_nan else 0
    low, high = (-(1 << n - 1), (1 << n - 1) - 1) if is_signed else (0, (1 << n) - 1)
    if math.isinf(x):
        r = high if x > 0 else low
    else:
        r = {"n": round, "z": math.trunc, "m": math.floor, "p": math.ceil}[mode](Fraction(x))
    return min(max(r, low), high) % (1 << n)


def bfe(a: int, pos: int, length: int, n: int, is_signed: bool) -> int:
    pos, length = pos & 255, length & 255
    top = a >> min(pos + length - 1, n - 1) & 1 if is_signed and length else 0
    return sum((a >> pos + i & 1 if i < length and pos + i < n else top) << i for i in range(n))


def bfi(a: int, b: int, pos: int, length: int, n: int) -> int:
    pos, length = pos & 255, length & 255
    for i in range(length):
        if pos + i < n:
            b = b & ~(1 << pos + i) | (a >> i & 1) << pos + i
    return b


def prmt(a: int, b: int, s: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    out = 0
    for i in range(4):
        k = s >> 4 * i & 15
        x = source[k & 7]
        out |= (255 * (x >> 7) if k & 8 else x) << 8 * i
    return out


def dp4a(a: int, b: int, c: int, sa: bool, sb: bool) -> int:
    for i in range(4):
        x, y = a >> 8 * i & 255, b >> 8 * i & 255
        c += (signed(x, 8) if sa else x) * (signed(y, 8) if sb else y)
    return c % (1 << 32)


@dataclass(frozen=True)
class Case:
    """`body` over registers $d (result), $a, $b, $c, $e; `expect` takes and gives bits."""

    body: str
    types: tuple[str, ...]
    result: str
    expect: Callable[..., int]
