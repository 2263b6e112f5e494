# SPDX-License-Identifier: Apache-2.0
"""Barriers, warp operations, memory spaces and control flow, in every order of threads and blocks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ptx_lab import HEADER, REGISTERS, Lab

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the PTX emulator is built with g++, which is missing"
)

ORDERS = ["forward", "reverse", "random", "random:7"]
FULL = 0xFFFFFFFF


def entry(name: str, body: str, extra: str = "", before: str = "") -> str:
    """p0: output u32, one a thread of the whole grid; p1, p2: inputs. %r14 thread in block, %d12 address of the output."""
    return f"""{before}.visible .entry {name}(.param .u64 p0, .param .u64 p1, .param .u32 p2{extra})
{{{REGISTERS}
  mov.u32 %r14, %tid.x; mov.u32 %r13, %ntid.x; mov.u32 %r12, %ctaid.x; mad.lo.u32 %r11, %r12, %r13, %r14;
  ld.param.u64 %d12, [p0]; mul.wide.u32 %d13, %r11, 4; add.u64 %d12, %d12, %d13;
  ld.param.u64 %d11, [p1]; add.u64 %d13, %d11, %d13; ld.param.u32 %r10, [p2];
{body}
  ret;
}}
"""


KERNELS = [
    # shuffles: operand b and c come from p2 as b | c << 8
    *(
        entry(
            f"shfl_{m}",
            f"ld.global.u32 %r1, [%d13]; and.b32 %r2, %r10, 255; shr.u32 %r3, %r10, 8;"
            f"shfl.sync.{m}.b32 %r4|%p1, %r1, %r2, %r3, -1; selp.b32 %r5, 0x10000, 0, %p1; add.u32 %r4, %r4, %r5; st.global.u32 [%d12], %r4;",
        )
        for m in ("up", "down", "bfly", "idx")
    ),
    entry(
        "votes",
        """ld.global.u32 %r1, [%d13]; setp.ne.u32 %p1, %r1, 0;
  vote.sync.ballot.b32 %r2, %p1, -1; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1; vote.sync.uni.pred %p4, %p1, -1;
  selp.b32 %r3, 1, 0, %p2; selp.b32 %r4, 2, 0, %p3; selp.b32 %r5, 4, 0, %p4; add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5;
  shl.b32 %r3, %r3, 24; xor.b32 %r2, %r2, %r3; st.global.u32 [%d12], %r2;""",
    ),
    # only the lanes of the mask take part
    entry(
        "half_vote",
        """setp.lt.u32 %p1, %r14, 16; mov.u32 %r2, 7; @!%p1 bra $END;
  ld.global.u32 %r1, [%d13]; setp.gt.u32 %p2, %r1, 3; vote.sync.ballot.b32 %r2, %p2, 0xffff;
$END:
  st.global.u32 [%d12], %r2;""",
    ),
    *(
        entry(
            f"redux_{op}_{t}",
            f"ld.global.u32 %r1, [%d13]; redux.sync.{op}.{t} %r2, %r1, -1; st.global.u32 [%d12], %r2;",
        )
        for op, t in (
            ("add", "u32"),
            ("min", "s32"),
            ("max", "s32"),
            ("min", "u32"),
            ("max", "u32"),
            ("and", "b32"),
            ("or", "b32"),
            ("xor", "b32"),
        )
    ),
    entry(
        "block_votes",
        """ld.global.u32 %r1, [%d13]; setp.ne.u32 %p1, %r1, 0;
  bar.red.popc.u32 %r2, 0, %p1; bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, %p1;
  selp.b32 %r3, 1000, 0, %p2; selp.b32 %r4, 2000, 0, %p3; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4; st.global.u32 [%d12], %r2;""",
    ),
    # static and dynamic shared memory: reverse the block through both
    entry(
        "reverse",
        """.shared .align 4 .b8 first[1024]; .shared .align 4 .b8 second[1024];
  ld.global.u32 %r1, [%d13]; shl.b32 %r2, %r14, 2; mov.u32 %r3, first; add.u32 %r3, %r3, %r2; st.shared.u32 [%r3], %r1;
  bar.sync 0;
  sub.u32 %r4, %r13, %r14; sub.u32 %r4, %r4, 1; shl.b32 %r4, %r4, 2; mov.u32 %r5, first; add.u32 %r5, %r5, %r4; ld.shared.u32 %r6, [%r5];
  mov.u32 %r7, second; add.u32 %r7, %r7, %r2; st.shared.u32 [%r7], 9; mov.u32 %r7, dynamic; add.u32 %r7, %r7, %r2; st.shared.u32 [%r7], %r6;
  bar.sync 0;
  mov.u32 %r8, dynamic; add.u32 %r8, %r8, %r2; ld.shared.u32 %r9, [%r8]; st.global.u32 [%d12], %r9;""",
        before=".extern .shared .align 16 .b8 dynamic[];\n",
    ),
    # a warp exchanges through shared memory with only a warp barrier
    entry(
        "warp_exchange",
        """.shared .align 4 .b8 s[1024]; ld.global.u32 %r1, [%d13]; shl.b32 %r2, %r14, 2; mov.u32 %r3, s; add.u32 %r3, %r3, %r2;
  st.shared.u32 [%r3], %r1; bar.warp.sync -1; xor.b32 %r4, %r14, 1; shl.b32 %r4, %r4, 2; mov.u32 %r5, s; add.u32 %r5, %r5, %r4;
  ld.shared.u32 %r6, [%r5]; st.global.u32 [%d12], %r6;""",
    ),
    # generic addresses of shared, local and global memory; local arrays
    entry(
        "spaces",
        """.shared .align 4 .b8 s[1024]; .local .align 8 .b8 depot[16]; .reg .b64 %SP; .reg .b64 %SPL;
  mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL; ld.global.u32 %r1, [%d13]; st.local.u32 [%SPL+4], %r1; ld.u32 %r2, [%SP+4];
  mov.u32 %r3, s; shl.b32 %r4, %r14, 2; add.u32 %r3, %r3, %r4; cvt.u64.u32 %d1, %r3; cvta.shared.u64 %d2, %d1; st.u32 [%d2], %r2;
  ld.shared.u32 %r5, [%r3]; cvta.to.shared.u64 %d3, %d2; cvt.u32.u64 %r6, %d3; sub.u32 %r6, %r6, %r3; add.u32 %r5, %r5, %r6; st.u32 [%d12], %r5;""",
    ),
    # module variables, byte loads with sign, vectors, struct parameters, an address of a parameter
    entry(
        "tables",
        """mov.u64 %d1, bytes; and.b32 %r1, %r14, 3; cvt.u64.u32 %d2, %r1; add.u64 %d1, %d1, %d2; ld.const.s8 %h1, [%d1]; cvt.s32.s16 %r2, %h1;
  mov.u64 %d3, words; ld.global.nc.v2.u32 {%r3, %r4}, [%d3+8]; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4;
  ld.param.v2.u32 {%r5, %r6}, [p3+8]; add.u32 %r2, %r2, %r6; mov.b64 %d4, p3; ld.param.u32 %r7, [%d4+4]; add.u32 %r2, %r2, %r7; st.global.u32 [%d12], %r2;""",
        extra=", .param .align 8 .b8 p3[16]",
        before=".const .align 1 .b8 bytes[4] = {1, 255, 128, 7};\n.global .align 8 .u32 words[4] = {1, 2, 0x30, 4000};\n",
    ),
    entry(
        "atomics",
        """ld.global.u32 %r1, [%d13]; atom.global.add.u32 %r2, [%d11+4096], %r1; red.global.max.s32 [%d11+4100], %r1; red.global.min.s32 [%d11+4104], %r1;
  red.global.or.b32 [%d11+4108], %r1; atom.global.inc.u32 %r3, [%d11+4112], 6; atom.global.cas.b32 %r4, [%d11+4116], 0, 5; atom.global.exch.b32 %r5, [%d11+4120], 3;
  red.global.add.u64 [%d11+4128], 1; st.global.u32 [%d12], %r5;""",
    ),
    # predication, a loop and a branch table
    entry(
        "control",
        """mov.u32 %r1, 0; mov.u32 %r2, 0;
$LOOP:
  setp.lt.u32 %p1, %r1, %r14; @!%p1 bra $DONE; add.u32 %r2, %r2, %r1; add.u32 %r1, %r1, 1; bra.uni $LOOP;
$DONE:
  @%p1 add.u32 %r2, %r2, 1000; @!%p1 add.u32 %r2, %r2, 1; and.b32 %r3, %r14, 3;
$TABLE: .branchtargets $A, $B, $A, $C;
  brx.idx %r3, $TABLE;
$A:
  add.u32 %r2, %r2, 10000; bra $OUT;
$B:
  add.u32 %r2, %r2, 20000; bra $OUT;
$C:
  add.u32 %r2, %r2, 30000;
$OUT:
  st.global.u32 [%d12], %r2;""",
    ),
    # registers of an inner scope hide those outside
    entry(
        "scopes",
        "mov.u32 %r1, 5; { .reg .b32 %r1, tmp; mov.u32 %r1, 7; mov.u32 tmp, %r1; add.u32 %r2, tmp, 1; } add.u32 %r2, %r2, %r1; st.global.u32 [%d12], %r2;",
    ),
    entry(
        "identity",
        "mov.u32 %r1, %tid.y; mov.u32 %r2, %ntid.y; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %nctaid.x; mov.u32 %r5, %laneid; mov.u32 %r6, %warpid; mov.u32 %r7, %tid.z; st.global.v2.u32 [%d11], {%r2, %r4};",
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(HEADER + "".join(KERNELS), Path(tmp_path_factory.mktemp("machine")))


@pytest.fixture(params=ORDERS)
def run(lab: Lab, request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    def launch(
        name: str,
        x: np.ndarray,
        p2: int = 0,
        *more: np.ndarray,
        threads: int = 64,
        blocks: int = 1,
        shared: int = 0,
    ) -> np.ndarray:
        out = np.zeros(threads * blocks, np.uint32)
        lab.run(
            name,
            out,
            x,
            np.uint32(p2),
            *more,
            block=(threads,),
            grid=(blocks,),
            shared=shared,
            order=request.param,
        )
        return out

    return launch


def words(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 16, n, dtype=np.uint32)


def shfl_model(mode: str, x: np.ndarray, b: int, c: int) -> np.ndarray:
    """PTX ISA 9.7.9.6, the pseudo-code."""
    out = np.zeros_like(x)
    for i in range(len(x)):
        lane, base = i % 32, i - i % 32
        bval, cval, seg = b & 31, c & 31, c >> 8 & 31
        max_lane, min_lane = (lane & seg) | (cval & ~seg), lane & seg
        j, p = {
            "up": (lane - bval, lane - bval >= max_lane),
            "down": (lane + bval, lane + bval <= max_lane),
            "bfly": (lane ^ bval, lane ^ bval <= max_lane),
            "idx": (min_lane | (bval & ~seg), min_lane | (bval & ~seg) <= max_lane),
        }[mode]
        if mode == "bfly":
            p = (lane ^ bval) <= max_lane
        if mode == "idx":
            p = (min_lane | (bval & ~seg)) <= max_lane
        out[i] = x[base + (j if p else lane)] + (0x10000 if p else 0)
    return out


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [32, 16, 8, 4])
@pytest.mark.parametrize("b", [0, 1, 3, 5, 16, 31])
def test_shuffles(run: Callable[..., np.ndarray], mode: str, segment: int, b: int) -> None:
    c = (32 - segment) << 8 | (0 if mode == "up" else 31)  # what __shfl_*_sync(..., width) passes
    x = words(64)
    np.testing.assert_array_equal(run(f"shfl_{mode}", x, b | c << 8), shfl_model(mode, x, b, c))


@pytest.mark.parametrize("fill", ["mixed", "ones", "zeros"])
def test_votes(run: Callable[..., np.ndarray], fill: str) -> None:
    x = {"mixed": words(64) % 2, "ones": np.ones(64, np.uint32), "zeros": np.zeros(64, np.uint32)}[
        fill
    ].astype(np.uint32)
    out = run("votes", x)
    for w in range(2):
        lanes = x[32 * w : 32 * w + 32] != 0
        ballot = sum(int(v) << i for i, v in enumerate(lanes))
        flags = int(lanes.any()) + 2 * int(lanes.all()) + 4 * int(lanes.all() or not lanes.any())
        assert set(out[32 * w : 32 * w + 32]) == {ballot ^ flags << 24}


def test_vote_of_half_a_warp(run: Callable[..., np.ndarray]) -> None:
    x = np.arange(32, dtype=np.uint32)
    np.testing.assert_array_equal(run("half_vote", x, threads=32), [0xFFF0] * 16 + [7] * 16)


def test_last_warp_may_be_partial(run: Callable[..., np.ndarray]) -> None:
    x = words(40)
    out = run("redux_add_u32", x, threads=40)
    np.testing.assert_array_equal(out, [x[:32].sum()] * 32 + [x[32:].sum()] * 8)


@pytest.mark.parametrize(
    ("name", "reduce", "kind"),
    [("add_u32", np.add, np.uint32), ("min_s32", np.minimum, np.int32), ("max_s32", np.maximum, np.int32), ("min_u32", np.minimum, np.uint32),
     ("max_u32", np.maximum, np.uint32), ("and_b32", np.bitwise_and, np.uint32), ("or_b32", np.bitwise_or, np.uint32), ("xor_b32", np.bitwise_xor, np.uint32)],
)  # fmt: skip
def test_warp_reductions(run: Callable[..., np.ndarray], name: str, reduce: np.ufunc, kind: type) -> None:
    x = np.random.default_rng(3).integers(0, 1 << 32, 64, dtype=np.uint32)
    want = np.concatenate([np.full(32, reduce.reduce(x[i : i + 32].view(kind)), kind) for i in (0, 32)])
    np.testing.assert_array_equal(run(f"redux_{name}", x), want.view(np.uint32))


def test_block_votes(run: Callable[..., np.ndarray]) -> None:
    for x in (words(96) % 3, np.ones(96, np.uint32), np.zeros(96, np.uint32)):
        x = x.astype(np.uint32)
        want = np.count_nonzero(x) + 1000 * int(x.all()) + 2000 * int(x.any())
        np.testing.assert_array_equal(run("block_votes", x, threads=96), np.full(96, want))


@pytest.mark.parametrize("blocks", [1, 2, 5, 12])
def test_shared_memory_static_and_dynamic(run: Callable[..., np.ndarray], blocks: int) -> None:
    x = words(64 * blocks)
    np.testing.assert_array_equal(
        run("reverse", x, blocks=blocks, shared=256), x.reshape(blocks, 64)[:, ::-1].ravel()
    )


def test_warp_exchange(run: Callable[..., np.ndarray]) -> None:
    x = words(64)
    np.testing.assert_array_equal(run("warp_exchange", x), x.reshape(-1, 2)[:, ::-1].ravel())


def test_generic_addresses(run: Callable[..., np.ndarray]) -> None:
    x = words(64)
    np.testing.assert_array_equal(run("spaces", x), x)


def test_module_variables_and_struct_parameters(run: Callable[..., np.ndarray]) -> None:
    p3 = np.array([1, 200, 3, 40], np.uint32)
    base = np.array([1, -1, -128, 7])[np.arange(64) % 4] + 0x30 + 4000 + 40 + 200
    np.testing.assert_array_equal(run("tables", words(64), 0, p3.view("V16")[0]), base.astype(np.uint32))


def test_atomics(run: Callable[..., np.ndarray]) -> None:
    x = np.zeros(1024 + 16, np.uint32)
    x[:64] = np.arange(1, 65)
    x[1026] = 1000  # the minimum starts above
    run("atomics", x)
    assert x[1024] == 64 * 65 // 2
    assert list(x[1025:1031]) == [64, 1, 127, 64 % 7, 5, 3]
    assert x[1032] == 64
    assert x[1033] == 0


def test_control_flow(run: Callable[..., np.ndarray]) -> None:
    t = np.arange(64)
    want = t * (t - 1) // 2 + 1 + np.array([10000, 20000, 10000, 30000])[t % 4]
    np.testing.assert_array_equal(run("control", words(64)), want)


def test_inner_scopes_hide_registers(run: Callable[..., np.ndarray]) -> None:
    np.testing.assert_array_equal(run("scopes", words(64)), np.full(64, 13))


def test_order_text_is_checked(lab: Lab) -> None:
    with pytest.raises(AssertionError):
        lab.run("scopes", np.zeros(1, np.uint32), words(1), np.uint32(0), block=(1,), order="sideways")
