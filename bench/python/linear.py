# SPDX-License-Identifier: Apache-2.0
"""Packed linear layers at batch 1, the shape of token by token inference, against torch's bf16 and fp32 layers.

    python bench/python/linear.py [--threads 1,2] [--rounds N] [--no-save]

``vs_bf16``: the median of ``nn.Linear`` in bfloat16 over that of the row, taken in turns. ``of_memory``: bytes of the
packed weight over time, as a share of what reading (``torch.sum``) of a large float32 tensor reaches in the same run. Every
packed product is verified against the decoded weight in double precision.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from _timing import environment, race, save
from torch import nn

import lowtide as lt

SHAPES = [(4096, 4096), (11008, 4096), (1536, 576), (49152, 576)]
FORMATS = ["int8", "int4", "nf4"]


def read_rate(rounds: int) -> float:
    """Bytes a second of reading 256 MB."""
    x = torch.ones(1 << 26)
    return x.nbytes / race({"sum": lambda: x.sum()}, rounds=rounds, budget=5)["sum"]["best"]


def packed(dense: nn.Linear, weights: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(dense.in_features, dense.out_features, bias=False))
    model[0].weight.data = dense.weight.data.clone()
    lt.quant.quantize_model_(model, weights=weights, group=128, skip=())
    return model[0]


def verify(layer: Any, x: torch.Tensor) -> None:
    got, w = layer(x).double(), layer.dequantize().double()
    bound = x.double().abs() @ w.abs().T
    worst = float(((got - x.double() @ w.T).abs() / bound).max())
    if worst > 1e-5:
        raise SystemExit(f"{layer} is off by {worst:.1e} of the magnitude of its terms")


def measure(rows: int, cols: int, rounds: int, rate: float) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    dense = nn.Linear(cols, rows, bias=False).requires_grad_(False)
    half = nn.Linear(cols, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, cols)
    xh = x.bfloat16()
    layers: dict[str, Any] = {weights: packed(dense, weights) for weights in FORMATS}
    for layer in layers.values():
        verify(layer, x)
    rivals: dict[str, Any] = {"torch float32": lambda: dense(x), "torch bfloat16": lambda: half(xh)}
    rivals |= {f"lowtide {k}": lambda layer=layer: layer(x) for k, layer in layers.items()}
    times = race(rivals, rounds=rounds, budget=12)
    nbytes = {"torch float32": dense.weight.nbytes, "torch bfloat16": half.weight.nbytes}
    nbytes |= {f"lowtide {k}": layer.weight.quant.nbytes for k, layer in layers.items()}
    out = []
    for name, t in times.items():
        row = {
            "rows": rows,
            "cols": cols,
            "name": name,
            **t,
            "vs_bf16": times["torch bfloat16"]["median"] / t["median"],
            "of_memory": nbytes[name] / t["median"] / rate,
        }
        out.append(row)
        print(
            f"  {rows}x{cols:<6} {name:<16} {1e6 * row['median']:9.1f} us  {row['vs_bf16']:6.2f} x bf16  "
            f"{row['of_memory']:.2f} of reading",
            flush=True,
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    parser.add_argument("--rounds", type=int, default=200, help="turns of each layer (default 200)")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    runs = []
    with torch.inference_mode():
        for threads in map(int, args.threads.split(",")):
            torch.set_num_threads(threads)
            rate = read_rate(15)
            print(f"{threads} thread{'s' * (threads > 1)}, reading at {rate / 1e9:.1f} GB/s", flush=True)
            started = {**environment(), "torch": torch.__version__}
            rows = [r for m, n in SHAPES for r in measure(m, n, args.rounds, rate)]
            runs.append(
                {"threads": threads, "environment": started, "read_GB_per_s": rate / 1e9, "rows": rows}
            )
    if not args.no_save:
        save("linear", {"bench": "linear", "runs": runs})


if __name__ == "__main__":
    main()
