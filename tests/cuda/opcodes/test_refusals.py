# SPDX-License-Identifier: Apache-2.0
"""What the translator must refuse: inexact floats, unknown instructions, anything it would have to guess."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ptx2cpp.errors import PtxError
from ptx2cpp.translate import translate_text
from ptx_lab import HEADER, REGISTERS

PTX2CPP = Path(__file__).resolve().parent.parent / "emu" / "ptx2cpp"


def kernel(body: str) -> str:
    return f"{HEADER}.visible .entry k(.param .u64 p0, .param .align 4 .b8 p1[12])\n{{{REGISTERS}{body}\nret;\n}}\n"


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("add.f32 %r1, %r2, %r3;", "contract"),
        ("mul.f32 %r1, %r2, %r3;", "contract"),
        ("sub.f64 %d1, %d2, %d3;", "contract"),
        ("add.ftz.f32 %r1, %r2, %r3;", "subnormals"),
        ("mul.rn.ftz.f32 %r1, %r2, %r3;", "subnormals"),
        ("fma.rn.ftz.f32 %r1, %r2, %r3, %r4;", "subnormals"),
        ("div.approx.f32 %r1, %r2, %r3;", "approximation"),
        ("div.full.f32 %r1, %r2, %r3;", "2 ulp"),
        ("sqrt.approx.f32 %r1, %r2;", "approximation"),
        ("rsqrt.approx.f32 %r1, %r2;", "approximation"),
        ("ex2.approx.f32 %r1, %r2;", "approximation"),
        ("lg2.approx.ftz.f32 %r1, %r2;", "approximation"),
        ("sin.approx.f32 %r1, %r2;", "approximation"),
        ("tanh.approx.f32 %r1, %r2;", "approximation"),
        ("atom.global.add.f32 %r1, [%d1], %r2;", "order of floating-point atomics"),
        ("red.global.add.f32 [%d1], %r2;", "order of floating-point atomics"),
        ("red.global.gpu.relaxed.add.noftz.f16x2 [%d1], %r2;", "order of floating-point atomics"),
        ("add.rz.f32 %r1, %r2, %r3;", "not supported"),
        ("add.rn.sat.f32 %r1, %r2, %r3;", "not supported"),
        ("add.sat.s32 %r1, %r2, %r3;", "not supported"),
        ("add.cc.u32 %r1, %r2, %r3;", "not supported"),
        ("cvt.rz.f32.s32 %r1, %r2;", "not supported"),
        ("cvt.rn.satfinite.e4m3x2.f32 %h1, %r1, %r2;", "not supported"),
        ("cvt.rzi.f32.f64 %r1, %d2;", "not supported"),
        ("fma.rn.f16x2 %r1, %r2, %r3, %r4;", "not supported"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r2}, {%r3}, {%r4};", "not supported"),
        ("cp.async.ca.shared.global [%r1], [%d1], 16;", "not supported"),
        ("activemask.b32 %r1;", "not supported"),
        ("mov.u64 %d1, %clock64;", "not known"),
        ("mov.u32 %r1, %r99;", "not known"),
        ("mov.u32 %r1, nowhere;", "not known"),
        ("bar.sync 1;", "barrier 0"),
        ("bar.sync 0, 64;", "takes 1 operands"),
        ("setp.lo.s32 %p1, %r1, %r2;", "not defined for s32"),
        ("setp.lt.b32 %p1, %r1, %r2;", "not defined for b32"),
        ("ld.param.u32 %r1, [p1+12];", "past the end of parameter"),
        ("ld.param.v2.u32 {%r1, %r2}, [p1+8];", "past the end of parameter"),
        ("ld.global.v4.u32 {%r1, %r2}, [%d1];", "number of registers"),
        ("ld.acquire.gpu.global.u32 %r1, [%d1];", "not supported"),
        ("add.u64 %d1, %d2, %r1;", "%r1 .*read as .u64"),
        ("selp.b32 %r1, %r2, %r3, %r4;", "%r4 .*read as .pred"),
        ("add.u32 %r1, %p1, %r2;", "%p1 .*read as .u32"),
        ("mov.u32 5, %r1;", "cannot be written"),
        ("brx.idx %r1, nowhere;", "not known"),
    ],
)
def test_instruction_is_refused_with_its_reason(instruction: str, why: str) -> None:
    with pytest.raises(PtxError, match=why) as e:
        translate_text(kernel(instruction))
    assert "PTX line" in str(e.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEADER, "no kernel"),
        (HEADER.replace("64\n", "32\n") + "x", "address size"),
        (HEADER + ".visible .func (.param .b32 r) helper(.param .b32 a)\n{\nret;\n}\n", "not inlined"),
        (HEADER + "nonsense\n", "not understood"),
        (kernel(".reg .b32 %q<; ret"), "register declaration"),
        (kernel(".callprototype;"), "directive not supported"),
        (kernel("mov.u32 %r1, %r2"), "operand|not understood|takes"),
        (HEADER + ".visible .entry k()\n{ mov.u32 %r1", "never closed"),
        (HEADER + ".visible .entry k()\n.explicitcluster\n{\nret;\n}\n", "explicitcluster"),
    ],
)
def test_file_is_refused(text: str, why: str) -> None:
    with pytest.raises(PtxError, match=why):
        translate_text(text)


def test_command_line_names_file_and_line_and_writes_nothing(tmp_path: Path) -> None:
    ptx, out = tmp_path / "bad.ptx", tmp_path / "bad.cc"
    ptx.write_text(kernel("add.f32 %r1, %r2, %r3;\nmul.f32 %r1, %r2, %r3;"))
    r = subprocess.run([sys.executable, PTX2CPP, ptx, "-o", out], capture_output=True, text=True)
    assert r.returncode == 1
    assert r.stderr.count("may contract") == 2
    assert "2 findings" in r.stderr
    assert not out.exists()


def test_source_lines_reach_the_generated_code() -> None:
    text = kernel(".loc 1 57 3\nmov.u32 %r1, 1;").replace(
        ".visible", '.file 1 "/somewhere/stream.cu"\n.visible'
    )
    assert '#line 57 "stream.cu"' in translate_text(text)
