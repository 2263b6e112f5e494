# SPDX-License-Identifier: Apache-2.0
"""Packed linear layers at batch 1, the shape of token by token inference, against torch's bf16 layer and other libraries.

    python bench/python/linear.py [--threads 1,2] [--sizes 4096x4096,...] [--only NAME,...] [--no-save] [--path PACKAGE=DIR]

Sizes are rows x columns of the weight. Each rival takes turns with ``nn.Linear`` in bfloat16: ``vs`` is the ratio to it.
"4096x4096 streamed" walks over copies of the layer that are 256 MB in bfloat16, as a token does over the layers of a model;
otherwise the same layer runs again and finds its weight in the caches that hold it. ``of_memory``: bytes of the weight over
time, as a share of what reading (``torch.sum``) of 256 MB reaches in the same run. lowtide's products are verified against
the decoded weight, element by element; those of peers against the dense weight, within the error of their format.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _timing import save
from _workers import Call, Rival, Worker, WrongResult, compare, parser, ratios_of, serve, started

STREAMED = " streamed"
STREAM_BYTES = 1 << 28
SIZES = "4096x4096,4096x4096 streamed,11008x4096,49152x576,1536x576,576x1536"
#: What a maker returns: the layer as a function, and the bytes of its weight.
Made = tuple[Callable[[Any], Any], int]


@dataclass(frozen=True, kw_only=True)
class Layer(Rival):
    make: Callable[[Any], Made]  # gets the dense float32 weight
    dtype: str = "bfloat16"  # of x
    error: float = 0.015  # relative, of y: that of the format
    streams: bool = True


def _dense(dtype: str) -> Callable[[Any], Made]:
    def make(w: Any) -> Made:
        import torch
        from torch import nn

        layer = nn.Linear(w.shape[1], w.shape[0], bias=False).requires_grad_(False)
        layer.weight.data = w.to(getattr(torch, dtype))
        return layer, layer.weight.nbytes

    return make


def _ours(weights: str) -> Callable[[Any], Made]:
    def make(w: Any) -> Made:
        from torch import nn

        import lowtide as lt

        model = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False))
        model[0].weight.data = w
        lt.quant.quantize_model_(model, weights=weights, group=128 if w.shape[1] % 128 == 0 else 64, skip=())
        layer: Any = model[0]
        return layer, layer.weight.quant.nbytes

    return make


def _int4pack(w: Any) -> Made:
    """What torchao's INT4 weights call on a CPU; groups of 64 where 128 does not divide the columns."""
    import torch

    rows, cols = w.shape
    group = 128 if cols % 128 == 0 else 64
    parts = w.reshape(rows, -1, group)
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((parts - low) / scale).round().clamp(0, 15).to(torch.int32).reshape(rows, cols)
    both = torch.stack([scale, low + 8 * scale], -1).squeeze(2).transpose(0, 1).contiguous().bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda x: product(x, packed, group, both), packed.nbytes + both.nbytes


def _bnb_nf4(w: Any) -> Made:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        w.shape[1],
        w.shape[0],
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        compress_statistics=False,
    ).eval()
    layer.weight = Params4bit(w.bfloat16(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    layer = layer.to("cpu")  # quantizes
    return layer, w.numel() // 2 + w.numel() // 16


def _fork_int8(w: Any) -> Made:
    """The fork's fused 8-bit product, for frozen layers."""
    import bitsandbytes.functional as F

    code = F.create_linear_map(signed=True, total_bits=8, add_zero=True)
    blocks = 256 if w.shape[1] % 256 == 0 else 64
    codes, state = F.quantize_blockwise(w, code=code, blocksize=blocks)
    codes, absmax = codes.reshape(w.shape), state.absmax.reshape(w.shape[0], -1)
    return lambda x: F.fused_dequant_linear_8bit(x, codes, absmax, blocks), codes.nbytes + absmax.nbytes


FULL = (("BNB_CPU_DISABLE_AVX512", "1"),)
FORK = "bitsandbytes-cpu-fork"
BASELINE = Layer(name="torch bfloat16", make=_dense("bfloat16"))
RIVALS = [
    Layer(name="torch float32", make=_dense("float32"), dtype="float32"),
    Layer(name="torch int4pack", make=_int4pack, error=0.15),
    Layer(name="lowtide int8", needs="lowtide", make=_ours("int8"), dtype="float32"),
    Layer(name="lowtide int4", needs="lowtide", make=_ours("int4"), dtype="float32", error=0.15),
    Layer(name="lowtide nf4", needs="lowtide", make=_ours("nf4"), dtype="float32", error=0.15),
    Layer(name="bitsandbytes nf4", needs="bitsandbytes", make=_bnb_nf4, error=0.15, streams=False),
    Layer(name=f"{FORK} nf4", needs=FORK, env=FULL, make=_bnb_nf4, error=0.15, streams=False),
    Layer(name=f"{FORK} int8", needs=FORK, env=FULL, make=_fork_int8, dtype="float32", streams=False),
]
RATIOS = [
    ("lowtide int8", "", 2.0),
    ("lowtide int4", "", 3.5),
    ("lowtide nf4", "", 3.5),
    ("lowtide int8", f"{FORK} int8", None),
    ("lowtide int4", "torch int4pack", None),
    ("lowtide nf4", "bitsandbytes nf4", None),
    ("lowtide nf4", f"{FORK} nf4", None),
]


# ---- the worker ---------------------------------------------------------------------------------------


def shape(size: str) -> tuple[int, int]:
    rows, _, cols = size.removesuffix(STREAMED).partition("x")
    return int(rows), int(cols)


def verify(rival: Layer, layer: Any, w: Any, x: Any) -> float:
    """Relative error of y against the dense weight."""
    import torch

    got, want = layer(x).double(), x.double() @ w.double().T
    if rival.needs == "lowtide":
        decoded = layer.dequantize().double()
        bound = x.double().abs() @ decoded.abs().T
        worst = float(((got - x.double() @ decoded.T).abs() / bound).max())
        if worst > 1e-5:
            raise WrongResult(f"off by {worst:.1e} of the magnitude of its terms")
    error = float(torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want))
    if not error <= rival.error:
        raise WrongResult(f"relative error {error:.3f}, at most {rival.error}")
    return error


def prepare(name: str, size: str) -> tuple[Call, dict[str, Any]]:
    import torch

    torch.set_grad_enabled(False)
    if name == "read":
        big = torch.ones(STREAM_BYTES // 4)
        return lambda: big.sum(), {}
    rival = next(r for r in [BASELINE, *RIVALS] if r.name == name)
    rows, cols = shape(size)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(rows, cols, generator=generator)
    x = torch.randn(1, cols, generator=generator).to(getattr(torch, rival.dtype))
    copies = math.ceil(STREAM_BYTES / (2 * w.numel())) if size.endswith(STREAMED) else 1
    if copies > 1 and not rival.streams:
        raise NotImplementedError("packing many copies takes too long")
    made = [rival.make(w.clone()) for _ in range(copies)]
    error = verify(rival, made[0][0], w, x)
    layers = itertools.cycle([layer for layer, _ in made])
    if copies == 1:
        only = made[0][0]
        return lambda: only(x), {"nbytes": made[0][1], "error": error}
    return lambda: next(layers)(x), {"nbytes": made[0][1], "error": error}


# ---- the race -----------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    args.count = lambda size: math.prod(shape(size))
    runs = []
    for threads in map(int, args.threads.split(",")):
        start = started()
        rate: list[float] = []

        def row_of(
            rival: Layer,
            size: str,
            facts: dict[str, Any],
            row: dict[str, Any],
            base: Worker,
            rate: list[float] = rate,
        ) -> dict[str, Any]:
            if not rate:
                base.prepare("read", "", "read")
                rate.append(STREAM_BYTES / min(t for _ in range(9) for t in base.turn(args.turn, "read")))
            speed = facts["nbytes"] / row["ms"] * 1e3
            return row | {"GB_per_s": speed / 1e9, "of_memory": speed / rate[0], "error": facts["error"]}

        print(f"{threads} thread{'s' * (threads > 1)}", flush=True)
        rows, left_out = compare(
            RIVALS,
            args.sizes.split(","),
            args,
            threads,
            base_of=lambda rival, size, facts: (BASELINE.name, size),
            row_of=row_of,
            show=show,
        )
        ratios = ratios_of(rows, RATIOS)
        runs.append(
            {
                "threads": threads,
                "environment": start,
                "read_GB_per_s": rate[0] / 1e9 if rate else None,
                "rows": rows,
                "ratios": ratios,
                "left_out": left_out,
            }
        )
    if not args.no_save:
        save("linear", {"bench": "linear", "runs": runs})


def show(row: dict[str, Any]) -> None:
    print(
        f"  {row['size']:<20} {row['name']:<28} {1e3 * row['ms']:9.1f} us ±{1e3 * row['mad_ms']:6.1f}  "
        f"{row['vs']:6.2f} ±{row['vs_mad']:.2f} x bf16  {row['of_memory']:.2f} of reading",
        flush=True,
    )


def main() -> None:
    p = parser(__doc__, SIZES)
    p.set_defaults(budget=0.6)
    args = p.parse_args()
    if args.worker:
        serve(prepare, int(args.threads))
    else:
        run(args)


if __name__ == "__main__":
    main()
