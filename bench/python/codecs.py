# SPDX-License-Identifier: Apache-2.0
"""Codecs from Python, against a copy of as many bytes and against the codecs of other libraries.

    python bench/python/codecs.py [--threads 1,2] [--sizes 2^20,...,model] [--only NAME,...] [--no-save]
                                  [--path PACKAGE=DIR]

Float32 matrices with 1024 columns, or those of SmolLM2-135M (embedding and 12 layers). Each rival takes turns with
``copy_`` of a tensor that reads and writes as many bytes as the rival must: ``vs`` is the share of the speed of memory
that it reaches. Rows named "in place" write into storage that exists (one call for all tensors); the others allocate
their result, as all peers do, which for large tensors costs as much as the work. Every rival is verified: the relative
error of what it stores, or decodes, must lie between the bounds that its format and rounding have on Gaussian data, and
stochastic rounding must be unbiased.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from _timing import save
from _workers import (
    Call,
    Rival,
    Worker,
    WrongResult,
    compare,
    copy_call,
    parser,
    power,
    ratios_of,
    serve,
    started,
)

Tensors = list[Any]
#: What a maker returns: the timed call, and the decoded tensors of its last run.
Made = tuple[Call, Callable[[], Tensors]]
#: Bits of a code, and bounds of the relative error (rms) of Gaussian data.
FORMATS = {
    "int8 nearest": (8, 0.004, 0.0085),
    "int8 stochastic": (8, 0.0085, 0.0125),
    "int4 nearest": (4, 0.09, 0.14),
    "int4 stochastic": (4, 0.14, 0.2),
    "nf4": (4, 0.06, 0.12),
    "dynamic 8-bit": (8, 0.008, 0.03),
}
GROUPS = {"nf4": 64}  # others: 256
MAPS = {"nf4": "nf4", "dynamic 8-bit": "dynamic8"}


@dataclass(frozen=True, kw_only=True)
class Codec(Rival):
    format: str
    make: Callable[[Tensors], Made]
    verb: str = "quantize"  # "dequantize", "requantize"

    def nbytes(self, n: int) -> int:
        """Read and written: floats on one side, codes and float32 scales on the other."""
        packed = FORMATS[self.format][0] / 8 + 4 / GROUPS.get(self.format, 256)
        return int(n * (4 + packed * (2 if self.verb == "requantize" else 1)))


# ---- lowtide ------------------------------------------------------------------------------------------


def _scheme(name: str) -> dict[str, Any]:
    kind, _, rounding = name.partition(" ")
    if kind == "dynamic":
        return {"bits": 8, "group": 256, "scheme": "dynamic"}
    if kind == "nf4":
        return {"bits": 4, "group": GROUPS["nf4"], "scheme": "nf4"}
    return {"bits": int(kind[3:]), "group": 256, "scheme": "symmetric", "rounding": rounding}


def _ours(verb: str, name: str, *, in_place: bool) -> Codec:
    def make(xs: Tensors) -> Made:
        import torch

        from lowtide import ops, quant

        form = _scheme(name)
        packed = [quant.quantize(x, **form) for x in xs]
        if not in_place and verb == "quantize":

            def run() -> None:
                packed[:] = [quant.quantize(x, **form) for x in xs]

            return run, lambda: [q.dequantize() for q in packed]
        if not in_place:
            outs: Tensors = []

            def decode() -> None:
                outs[:] = [q.dequantize() for q in packed]

            return decode, lambda: outs
        codes, scales = [q.codes for q in packed], [q.scale for q in packed]
        how = {"bits": form["bits"], "group": form["group"]}
        if verb == "requantize":
            deltas = [x * 1e-3 for x in xs]
            step = iter(range(1, 1 << 30))

            def requantize() -> None:  # there and back again, so that the weights stay where they are
                at = next(step)
                alpha = 1.0 if at % 2 else -1.0
                ops.requant_add_sr_list_(
                    codes, scales, None, deltas, alpha=alpha, seed=1, step=at, nonfinite="skip", **how
                )

            return requantize, lambda: [q.dequantize() for q in packed]
        if verb == "quantize":
            if name in MAPS:
                level = {"map": MAPS[name], "group": form["group"]}
                return (
                    lambda: ops.quantize_map_list_(xs, codes, scales, nonfinite="skip", **level),
                    lambda: [q.dequantize() for q in packed],
                )
            how |= {"rounding": form["rounding"], "seed": 1, "nonfinite": "skip"}
            return (
                lambda: ops.quantize_group_list_(xs, codes, scales, None, **how),
                lambda: [q.dequantize() for q in packed],
            )
        into = [torch.empty_like(x) for x in xs]
        if name in MAPS:
            level = {"map": MAPS[name], "group": form["group"]}
            return lambda: ops.dequantize_map_list_(codes, scales, into, **level), lambda: into
        return lambda: ops.dequantize_group_list_(codes, scales, None, into, **how), lambda: into

    label = f"lowtide {verb} {name}" + (" in place" if in_place else "")
    return Codec(name=label, needs="lowtide", format=name, verb=verb, make=make)


# ---- peers --------------------------------------------------------------------------------------------


def _blockwise(label: str, package: str, verb: str, name: str, **options: Any) -> Codec:
    """bitsandbytes and its fork."""

    def make(xs: Tensors) -> Made:
        import bitsandbytes.functional as F

        def encode(x: Any) -> Any:
            if name == "nf4":
                return F.quantize_4bit(x, blocksize=64, quant_type="nf4")
            return F.quantize_blockwise(x, blocksize=256)

        restore = F.dequantize_4bit if name == "nf4" else F.dequantize_blockwise
        stored = [encode(x) for x in xs]

        def decoded() -> Tensors:
            return [restore(codes, state) for codes, state in stored]

        if verb == "quantize":

            def run() -> None:
                stored[:] = [encode(x) for x in xs]

            return run, decoded
        outs: Tensors = []

        def decode() -> None:
            outs[:] = decoded()

        return decode, lambda: outs

    return Codec(name=f"{label} {verb} {name}", needs=package, format=name, verb=verb, make=make, **options)


def _rowwise(verb: str, name: str, *, compiled: bool = False) -> Codec:
    """torchao's INT8 weights for training: one scale a row."""

    def make(xs: Tensors) -> Made:
        import torch
        from torchao.prototype.quantized_training.int8 import quantize_int8_rowwise

        def encode(x: Any) -> Any:
            return quantize_int8_rowwise(x, stochastic_rounding=name.endswith("stochastic"))

        def restore(codes: Any, scale: Any) -> Any:
            return codes * scale.view(-1, 1)

        if compiled:
            encode, restore = (torch.compile(f, fullgraph=True, dynamic=False) for f in (encode, restore))
        stored = [encode(x) for x in xs]
        if verb == "quantize":

            def run() -> None:
                stored[:] = [encode(x) for x in xs]

            return run, lambda: [c * s.view(-1, 1) for c, s in stored]
        outs: Tensors = []

        def decode() -> None:
            outs[:] = [restore(*pair) for pair in stored]

        return decode, lambda: outs

    label = f"torchao {verb} {name}" + (" compiled" if compiled else "")
    # The model has many shapes, each compiled anew: minutes.
    return Codec(
        name=label, needs="torchao", format=name, verb=verb, make=make, threads="max" if compiled else "any"
    )


FULL = (("BNB_CPU_DISABLE_AVX512", "1"),)
FORK = "bitsandbytes-cpu-fork"
PEERS = [("bitsandbytes", "bitsandbytes", ()), (FORK, FORK, FULL), (f"{FORK} (AVX-512)", FORK, ())]
VERBS = ("quantize", "dequantize")
RIVALS = [
    *(_ours("quantize", f, in_place=True) for f in FORMATS),
    *(_ours("dequantize", f, in_place=True) for f in FORMATS if not f.endswith("stochastic")),
    *(_ours("requantize", f, in_place=True) for f in ("int8 stochastic", "int4 stochastic")),
    *(_ours("quantize", f, in_place=False) for f in FORMATS),
    *(_ours("dequantize", f, in_place=False) for f in FORMATS if not f.endswith("stochastic")),
    *(
        _blockwise(label, package, verb, f, env=env)
        for label, package, env in PEERS
        for verb in VERBS
        for f in ("dynamic 8-bit", "nf4")
    ),
    *(_rowwise("quantize", f) for f in ("int8 nearest", "int8 stochastic")),
    _rowwise("dequantize", "int8 nearest"),
    _rowwise("quantize", "int8 stochastic", compiled=True),
]
TARGET = 0.8  # of memcpy: DESIGN's row
RATIOS: list[tuple[str, str, float | None]] = [
    *((r.name, "", TARGET) for r in RIVALS if r.name.endswith("in place")),
    *(
        (f"lowtide {verb} {f}", f"{label} {verb} {f}", None)
        for verb in VERBS
        for f in ("dynamic 8-bit", "nf4")
        for label, _, _ in PEERS
    ),
    ("lowtide quantize int8 nearest", "torchao quantize int8 nearest", None),
    ("lowtide quantize int8 stochastic", "torchao quantize int8 stochastic", None),
    ("lowtide quantize int8 stochastic", "torchao quantize int8 stochastic compiled", None),
    ("lowtide dequantize int8 nearest", "torchao dequantize int8 nearest", None),
]


# ---- the worker ---------------------------------------------------------------------------------------


def shapes(size: str) -> list[tuple[int, int]]:
    if size != "model":
        return [(power(size) // 1024, 1024)]
    layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    return [(49152, 576), *layer * 12]


def count(size: str) -> int:
    return sum(math.prod(s) for s in shapes(size))


def tensors(sizes: list[tuple[int, int]]) -> Iterator[Any]:
    import torch

    tile = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for rows, cols in sizes:
        n = rows * cols
        yield tile.repeat(-(-n // tile.numel()))[:n].reshape(rows, cols).clone()


def verify(rival: Codec) -> float:
    """Relative error on Gaussian data, within the bounds of the format."""
    import torch

    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(512, 1024, generator=generator), torch.randn(64, 2048, generator=generator)]
    call, decoded = rival.make(xs)
    call()
    factor = 1.001 if rival.verb == "requantize" else 1.0
    off = torch.cat(
        [
            (d.double().reshape(-1) - factor * x.double().reshape(-1))
            for d, x in zip(decoded(), xs, strict=True)
        ]
    )
    error = math.sqrt(float((off**2).mean()))
    _, low, high = FORMATS[rival.format]
    if rival.verb == "requantize":  # rounded twice: when it was made and now
        low, high = low * 0.9, high * 1.5
    if not low <= error <= high:
        raise WrongResult(f"relative error {error:.4f}, must lie in [{low:.4f}, {high:.4f}]")
    z = float(off.mean()) / error * math.sqrt(off.numel())
    if "stochastic" in rival.format and abs(z) > 5:
        raise WrongResult(f"biased: z = {z:.1f}")
    return error


def prepare(name: str, size: str) -> tuple[Call, dict[str, Any]]:
    import torch

    torch.set_grad_enabled(False)
    if name == "copy":
        return copy_call(int(size)), {}
    rival = next(r for r in RIVALS if r.name == name)
    if rival.needs == "lowtide":
        import lowtide

        lowtide.set_num_threads(torch.get_num_threads())
    error = verify(rival)
    call, _ = rival.make(list(tensors(shapes(size))))
    return call, {"error": error, "numel": count(size)}


# ---- the race -----------------------------------------------------------------------------------------


def row_of(
    rival: Codec, size: str, facts: dict[str, Any], row: dict[str, Any], base: Worker
) -> dict[str, Any]:
    nbytes = rival.nbytes(facts["numel"])
    return row | {
        "GB_per_s": nbytes / row["ms"] / 1e6,
        "copy_GB_per_s": nbytes / row["base_ms"] / 1e6,
        "error": facts["error"],
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"  {row['size']:<6} {row['name']:<56} {row['ms']:9.3f} ms ±{row['mad_ms']:7.3f}  {row['GB_per_s']:6.2f} GB/s  "
        f"{row['vs']:6.3f} ±{row['vs_mad']:.3f} of copy",
        flush=True,
    )


def run(args: argparse.Namespace) -> None:
    args.count = count
    runs = []
    for threads in map(int, args.threads.split(",")):
        start = started()
        print(f"{threads} thread{'s' * (threads > 1)}", flush=True)
        rows, left_out = compare(
            RIVALS,
            args.sizes.split(","),
            args,
            threads,
            base_of=lambda rival, size, facts: ("copy", str(rival.nbytes(facts["numel"]))),
            row_of=row_of,
            show=show,
        )
        ratios = ratios_of(rows, RATIOS)
        runs.append(
            {"threads": threads, "environment": start, "rows": rows, "ratios": ratios, "left_out": left_out}
        )
    if not args.no_save:
        save("codecs", {"bench": "codecs", "runs": runs})


def main() -> None:
    p = parser(__doc__, "2^20,2^22,2^24,2^26,model")
    p.set_defaults(budget=0.4, patience=0.7)
    args = p.parse_args()
    if args.worker:
        serve(prepare, int(args.threads))
    else:
        run(args)


if __name__ == "__main__":
    main()
