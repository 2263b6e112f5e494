# SPDX-License-Identifier: Apache-2.0
"""Every arithmetic, logic, comparison and conversion instruction on corner values and random bits, against exact Python."""

from __future__ import annotations

import itertools
import math
import operator
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from ptx_cases import (
    NAN32,
    Case,
    bfe,
    bfi,
    bits64,
    divide,
    dp4a,
    exact,
    f32,
    f64,
    minmax,
    prmt,
    signed,
    to_f32,
    to_half,
    to_int,
)  # fmt: skip
from ptx_lab import HEADER, Lab, map_kernel

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the PTX emulator is built with g++, which is missing"
)

CASES: dict[str, Case] = {}


def add(name: str, types: str, result: str, expect, body: str | None = None) -> None:  # type: ignore[no-untyped-def]
    kinds = tuple(types.split())
    operands = ", ".join(f"${'abcef'[i]}" for i in range(len(kinds)))
    key = name if body is None else f"{name}#{len(CASES)}"
    CASES[key] = Case(body or f"{name} $d, {operands};", kinds, result, expect)


for n, s in itertools.product((16, 32, 64), "us"):
    t, m = f"{s}{n}", (1 << n) - 1
    val = (lambda v, n=n: signed(v, n)) if s == "s" else (lambda v: v)
    add(f"add.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m: (a + b) & m)
    add(f"sub.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m: (a - b) & m)
    add(f"mul.lo.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m: a * b & m)
    add(f"mul.hi.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m, n=n, v=val: (v(a) * v(b) >> n) & m)
    add(f"mad.lo.{t}", f"b{n} b{n} b{n}", f"b{n}", lambda a, b, c, m=m: (a * b + c) & m)
    add(
        f"mad.hi.{t}",
        f"b{n} b{n} b{n}",
        f"b{n}",
        lambda a, b, c, m=m, n=n, v=val: ((v(a) * v(b) >> n) + c) & m,
    )
    add(f"min.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m, v=val: min(v(a), v(b)) & m)
    add(f"max.{t}", f"b{n} b{n}", f"b{n}", lambda a, b, m=m, v=val: max(v(a), v(b)) & m)
    add(f"sad.{t}", f"b{n} b{n} b{n}", f"b{n}", lambda a, b, c, m=m, v=val: (abs(v(a) - v(b)) + c) & m)
    add(
        f"div.{t}",
        f"b{n} b{n}",
        f"b{n}",
        lambda a, b, m=m, v=val: int(Fraction(v(a), v(b | 1))) & m,
        f"or.b{n} $b, $b, 1; div.{t} $d, $a, $b;",
    )
    add(
        f"rem.{t}",
        f"b{n} b{n}",
        f"b{n}",
        lambda a, b, m=m, v=val: (v(a) - int(Fraction(v(a), v(b | 1))) * v(b | 1)) & m,
        f"or.b{n} $b, $b, 1; rem.{t} $d, $a, $b;",
    )
    add(f"shr.{t}", f"b{n} b32", f"b{n}", lambda a, b, m=m, v=val: v(a) >> b & m)
    if n < 64:
        add(f"mul.wide.{t}", f"b{n} b{n}", f"b{2 * n}", lambda a, b, n=n, v=val: v(a) * v(b) % (1 << 2 * n))
        add(
            f"mad.wide.{t}",
            f"b{n} b{n} b{2 * n}",
            f"b{2 * n}",
            lambda a, b, c, n=n, v=val: (v(a) * v(b) + c) % (1 << 2 * n),
        )
    if n > 16:
        add(f"bfe.{t}", f"b{n} b32 b32", f"b{n}", lambda a, p, q, n=n, s=s: bfe(a, p, q, n, s == "s"))
        for word, shift in (("bfind", False), ("bfind.shiftamt", True)):
            add(f"{word}.{t}", f"b{n}", "b32", lambda a, n=n, v=val, shift=shift: (
                lambda x: 0xFFFFFFFF if x <= 0 else (n - x.bit_length() if shift else x.bit_length() - 1))(~v(a) if v(a) < 0 else v(a)))  # fmt: skip
    if s == "s":
        add(f"abs.{t}", f"b{n}", f"b{n}", lambda a, m=m, v=val: abs(v(a)) & m)
        add(f"neg.{t}", f"b{n}", f"b{n}", lambda a, m=m: -a & m)
    for word, op in {
        "eq": operator.eq,
        "ne": operator.ne,
        "lt": operator.lt,
        "le": operator.le,
        "gt": operator.gt,
        "ge": operator.ge,
    }.items():
        add(
            f"setp.{word}.{t}",
            f"b{n} b{n}",
            "b32",
            lambda a, b, op=op, v=val: op(v(a), v(b)),
            f"setp.{word}.{t} %p1, $a, $b; selp.b32 $d, 1, 0, %p1;",
        )
add("setp.lt.and", "b32 b32", "b32", lambda a, b: (a < b and a != 0) + 2 * (not a < b and a != 0),
    "setp.ne.u32 %p3, $a, 0; setp.lo.and.u32 %p1|%p2, $a, $b, %p3; selp.b32 %r5, 1, 0, %p1; selp.b32 %r6, 2, 0, %p2; add.u32 $d, %r5, %r6;")  # fmt: skip
add("set.lt.u32.u32", "b32 b32", "b32", lambda a, b: 0xFFFFFFFF if a < b else 0)
add("slct.b32.s32", "b32 b32 b32", "b32", lambda a, b, c: a if signed(c, 32) >= 0 else b)

for n in (16, 32, 64):
    m = (1 << n) - 1
    for word, op in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        add(f"{word}.b{n}", f"b{n} b{n}", f"b{n}", op)
    add(f"not.b{n}", f"b{n}", f"b{n}", lambda a, m=m: ~a & m)
    add(f"shl.b{n}", f"b{n} b32", f"b{n}", lambda a, b, m=m, n=n: 0 if b >= n else a << b & m)
    if n > 16:
        add(f"brev.b{n}", f"b{n}", f"b{n}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
        add(f"popc.b{n}", f"b{n}", "b32", int.bit_count)
        add(f"clz.b{n}", f"b{n}", "b32", lambda a, n=n: n - a.bit_length())
        add(f"bfi.b{n}", f"b{n} b{n} b32 b32", f"b{n}", lambda a, b, p, q, n=n: bfi(a, b, p, q, n))
add("prmt.b32", "b32 b32 b32", "b32", prmt)
for table in (0x96, 0xE8, 0x1D):
    add("lop3.b32", "b32 b32 b32", "b32", lambda a, b, c, t=table: sum(
        (t >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32)), f"lop3.b32 $d, $a, $b, $c, {table};")  # fmt: skip
for side, mode in itertools.product("lr", ("wrap", "clamp")):
    add(f"shf.{side}.{mode}.b32", "b32 b32 b32", "b32", lambda a, b, c, side=side, mode=mode: (
        lambda k: ((b << 32 | a) << k >> 32 if side == "l" else (b << 32 | a) >> k) & 0xFFFFFFFF)(c % 32 if mode == "wrap" else min(c, 32)))  # fmt: skip
for sa, sb in itertools.product("us", repeat=2):
    add(
        f"dp4a.{sa}32.{sb}32",
        "b32 b32 b32",
        "b32",
        lambda a, b, c, sa=sa, sb=sb: dp4a(a, b, c, sa == "s", sb == "s"),
    )
add("mov.b32 pack", "b16 b16", "b32", lambda a, b: b << 16 | a, "mov.b32 $d, {$a, $b};")
add("mov.b32 unpack", "b32", "b16", lambda a: a >> 16, "mov.b32 {_, $d}, $a;")
add("mov.b64 unpack", "b64", "b32", lambda a: a >> 32, "mov.b64 {%r7, $d}, $a;")

for d, s in itertools.product(("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"), repeat=2):
    dn, sn = int(d[1:]), int(s[1:])
    out = f"b{max(dn, 16)}"

    def value(a: int, s: str = s, sn: int = sn) -> int:
        a %= 1 << sn
        return signed(a, sn) if s[0] == "s" else a

    def wrap(v: int, d: str = d, dn: int = dn, full: int = max(dn, 16)) -> int:
        v %= 1 << dn
        return (signed(v, dn) if d[0] == "s" else v) % (1 << full)

    def clamp(v: int, d: str = d, dn: int = dn) -> int:
        low, high = (-(1 << dn - 1), (1 << dn - 1) - 1) if d[0] == "s" else (0, (1 << dn) - 1)
        return min(max(v, low), high)

    add(f"cvt.{d}.{s}", f"b{max(sn, 16)}", out, lambda a, v=value, w=wrap: w(v(a)))
    if d != s:
        add(f"cvt.sat.{d}.{s}", f"b{max(sn, 16)}", out, lambda a, v=value, w=wrap, c=clamp: w(c(v(a))))
for s in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
    sn = int(s[1:])
    add(
        f"cvt.rn.f32.{s}",
        f"b{max(sn, 16)}",
        "b32",
        lambda a, s=s, sn=sn: to_f32(Fraction(signed(a % (1 << sn), sn) if s[0] == "s" else a % (1 << sn))),
    )
    for mode in "nzmp":
        for src, get in (("f32", f32), ("f64", f64)):
            full = max(sn, 16)
            add(f"cvt.r{mode}i.{s}.{src}", f"b{src[1:]}", f"b{full}", lambda a, mode=mode, s=s, sn=sn, get=get, src=src, full=full: (
                lambda v: (signed(v, sn) if s[0] == "s" else v) % (1 << full))(to_int(get(a), mode, sn, s[0] == "s", src == "f64" or sn == 64)))  # fmt: skip
add("cvt.rn.f64.s32", "b32", "b64", lambda a: bits64(float(signed(a, 32))))

add("add.rn.f32", "b32 b32", "b32", exact(lambda a, b, c: a + b, lambda a, b: a + b))
add("sub.rn.f32", "b32 b32", "b32", exact(lambda a, b, c: a - b, lambda a, b: a - b))
add("mul.rn.f32", "b32 b32", "b32", exact(lambda a, b, c: a * b, lambda a, b: a * b))
add("div.rn.f32", "b32 b32", "b32", exact(lambda a, b, c: a / b, divide))
add("rcp.rn.f32", "b32", "b32", exact(lambda a, b, c: 1 / a, lambda a: divide(1.0, a)))
add("fma.rn.f32", "b32 b32 b32", "b32", exact(lambda a, b, c: a * b + c, lambda a, b, c: a * b + c))
add(
    "sqrt.rn.f32",
    "b32",
    "b32",
    lambda a: (
        a
        if f32(a) == 0
        else NAN32
        if not f32(a) > 0
        else int(np.sqrt(np.array(f32(a), np.float32)).view(np.uint32))
    ),
)
add("abs.f32", "b32", "b32", lambda a: a & 0x7FFFFFFF)
add("neg.f32", "b32", "b32", lambda a: a ^ 0x80000000)
add("copysign.f32", "b32 b32", "b32", lambda a, b: a & 0x80000000 | b & 0x7FFFFFFF)
add("min.f32", "b32 b32", "b32", lambda a, b: minmax(a, b, False))
add("max.f32", "b32 b32", "b32", lambda a, b: minmax(a, b, True))
add("min.NaN.f32", "b32 b32", "b32", lambda a, b: minmax(a, b, False, True))
add("max.NaN.f32", "b32 b32", "b32", lambda a, b: minmax(a, b, True, True))
for word, op in {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}.items():
    for suffix in ("", "u"):
        add(f"setp.{word}{suffix}.f32", "b32 b32", "b32", lambda a, b, op=op, u=suffix == "u": (
            u if math.isnan(f32(a)) or math.isnan(f32(b)) else op(f32(a), f32(b))), f"setp.{word}{suffix}.f32 %p1, $a, $b; selp.b32 $d, 1, 0, %p1;")  # fmt: skip
add(
    "setp.num.f32",
    "b32 b32",
    "b32",
    lambda a, b: not math.isnan(f32(a)) and not math.isnan(f32(b)),
    "setp.num.f32 %p1, $a, $b; selp.b32 $d, 1, 0, %p1;",
)
add(
    "setp.nan.f32",
    "b32 b32",
    "b32",
    lambda a, b: math.isnan(f32(a)) or math.isnan(f32(b)),
    "setp.nan.f32 %p1, $a, $b; selp.b32 $d, 1, 0, %p1;",
)
for mode, to in {"n": round, "z": math.trunc, "m": math.floor, "p": math.ceil}.items():
    add(
        f"cvt.r{mode}i.f32.f32",
        "b32",
        "b32",
        lambda a, to=to: (
            NAN32
            if math.isnan(f32(a))
            else a
            if math.isinf(f32(a))
            else to_f32(Fraction(to(Fraction(f32(a)))), math.copysign(1, f32(a)))
        ),
    )
add(
    "cvt.sat.f32.f32",
    "b32",
    "b32",
    lambda a: 0 if math.isnan(f32(a)) else to_f32(Fraction(min(max(f32(a), 0.0), 1.0))),
)
add("cvt.rn.f16.f32", "b32", "b16", lambda a: to_half(a, 11, -24, 16, 5))
add("cvt.rn.bf16.f32", "b32", "b16", lambda a: to_half(a, 8, -133, 128, 8))
add(
    "cvt.rn.f16x2.f32",
    "b32 b32",
    "b32",
    lambda a, b: to_half(a, 11, -24, 16, 5) << 16 | to_half(b, 11, -24, 16, 5),
)
add(
    "cvt.rn.bf16x2.f32",
    "b32 b32",
    "b32",
    lambda a, b: to_half(a, 8, -133, 128, 8) << 16 | to_half(b, 8, -133, 128, 8),
)
add(
    "cvt.f32.f16",
    "b16",
    "b32",
    lambda a: (lambda v: NAN32 if np.isnan(v) else int(v.view(np.uint32)))(
        np.array(a, np.uint16).view(np.float16).astype(np.float32)
    ),
)
add("cvt.f32.bf16", "b16", "b32", lambda a: NAN32 if math.isnan(f32(a << 16)) else a << 16)
add(
    "cvt.rn.f32.f64",
    "b64",
    "b32",
    lambda a: (
        NAN32
        if math.isnan(f64(a))
        else to_f32(Fraction(f64(a)), math.copysign(1, f64(a)))
        if math.isfinite(f64(a))
        else 0x7F800000 | a >> 63 << 31
    ),
)
add("cvt.f64.f32", "b32", "b64", lambda a: bits64(f32(a)))
add("add.rn.f64", "b64 b64", "b64", lambda a, b: bits64(f64(a) + f64(b)))


def _fma_f64(*bits: int) -> int:
    a, b, c = (Fraction(f64(x & 0xBFFFFFFFFFFFFFFF)) for x in bits)
    return bits64(float(a * b + c))


# Operands are masked to |x| < 2, so that no sum overflows and none is NaN.
add("fma.rn.f64", "b64 b64 b64", "b64", _fma_f64,
    "".join(f"and.b64 {r}, {r}, 0xbfffffffffffffff; " for r in ("$a", "$b", "$c")) + "fma.rn.f64 $d, $a, $b, $c;")  # fmt: skip

CORNERS = {
    16: [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x3C00, 0x7BFF, 0x7C00, 0x7FFF, 0x8000, 0x8001, 0xFC00, 0xFE01, 0xFFFF],
    32: [0, 1, 31, 32, 33, 64, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000,
         0x7FC00000, 0x7F800001, 0x00800000, 0x007FFFFF, 0x7F7FFFFF, 0x3F000000, 0x3FC00000, 0x40200000, 0x4B000001, 0x4F000000,
         0x5F000000, 0x477FEFFF, 0x477FF000, 0x387FC000, 0x33000000, 0x33000001, 0x33800000],
    64: [0, 1, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x3FF0000000000000, 0xBFE0000000000000,
         0x41E0000000000000, 0x43E0000000000000, 0x43F0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x36A0000000000000,
         0x3690000000000000, 0x3690000000000001, 0x47EFFFFFF0000000, 0x4000000000000000, 0x3FF8000000000000],
}  # fmt: skip
ROWS = 512


def inputs(types: tuple[str, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = []
    for k, t in enumerate(types):
        n = int(t[1:])
        corners = np.array(CORNERS[n], np.uint64)
        column = (
            rng.integers(0, 1 << n, ROWS, dtype=np.uint64, endpoint=False)
            if n < 64
            else rng.integers(0, 1 << 63, ROWS, dtype=np.uint64) << np.uint64(1)
        )
        small = rng.random(ROWS) < 0.2
        column[small] = rng.integers(0, 70, int(small.sum()))
        pick = rng.random(ROWS) < 0.4
        column[pick] = rng.choice(corners, int(pick.sum()))
        for i, c in enumerate(corners):  # each corner against each other one, as far as the rows reach
            column[(i if k == 0 else i * 7 + k) % ROWS] = c
        columns.append(column.astype(f"u{n // 8}"))
    return columns


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    text = HEADER + "".join(
        map_kernel(f"k{i}", c.body, c.types, c.result) for i, c in enumerate(CASES.values())
    )
    return Lab(text, Path(tmp_path_factory.mktemp("opcodes")))


@pytest.mark.parametrize("name", CASES)
def test_instruction(lab: Lab, name: str) -> None:
    case = CASES[name]
    index = list(CASES).index(name)
    columns = inputs(case.types, index)
    out = np.zeros(ROWS, f"u{int(case.result[1:]) // 8}")
    lab.run(f"k{index}", out, *columns, block=(ROWS,))
    for row in range(ROWS):
        args = [int(c[row]) for c in columns]
        expected = int(case.expect(*args))
        assert int(out[row]) == expected, (
            f"{case.body} on {[hex(a) for a in args]}: got {int(out[row]):#x}, PTX ISA says {expected:#x}"
        )
