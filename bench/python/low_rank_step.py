# SPDX-License-Identifier: Apache-2.0
"""One step of each low-rank method, no refresh, against the official code of its paper, or galore-torch where there is none
that runs on a CPU.

    python bench/python/low_rank_step.py [--threads 1,2] [--sizes 768x2048,2048x768,model] [--rounds N] [--only NAME,...]
                                         [--no-save]

Ours and the peer take turns, see :mod:`_workers`; ``vs`` is the ratio. ``model``: the matrices of three layers of
SmolLM2-135M; else three matrices of one shape. Rank 128 (APOLLO-Mini: 1), fp32. Before it is timed, each rival shows on one
matrix that it is what its name says: an update of rank 128 (GaLore), the gradient times one factor a channel (APOLLO), the same
outside of the subspace (Fira), two values outside (FRUGAL). ``pip install --no-deps -r requirements/peers.txt`` installs the peers.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _timing import save
from _workers import Call, Worker, WrongResult, compare, parser, serve, started
from _workers import Rival as Named

RANK = 128
LR = 1e-3
LOW = {"rank": RANK, "update_proj_gap": 1_000_000, "scale": 0.25, "proj_type": "std"}


@dataclass(frozen=True, kw_only=True)
class Rival(Named):
    """``make`` gets the parameters and returns an optimizer; ``check`` names what is verified; ``peer`` is timed beside it."""

    make: Callable[[list[Any]], Any]
    check: str
    peer: str = ""
    target: float | None = None


def _module(package: str, module: str) -> Any:
    """``package.module`` without the package's __init__, which may import bitsandbytes."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"{package} is not installed")
        stub = types.ModuleType(package)
        stub.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = stub
    return importlib.import_module(f"{package}.{module}")


def _peer(package: str, module: str, drop: str = "", **keys: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        group = {k: v for k, v in {**LOW, **keys}.items() if k != drop}
        options = {"no_deprecation_warning": True} if package != "fira" else {}
        return _module(package, module).AdamW([{"params": params, **group}], lr=LR, **options)

    return make


def _ours(name: str, keys: dict[str, Any] | None = None, **options: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        from lowtide import optim

        group = {"params": params, **LOW, **(keys or {})}
        return getattr(optim, name)([group], lr=LR, weight_decay=0.0, **options)

    return make


MINI = {"rank": 1, "scale": 128.0}
RANDOM = {"proj": "random", "scale": 1.0}
GALORE = "galore-torch"
PEERS = [
    Rival(name=GALORE, make=_peer("galore_torch", "adamw"), check="rank"),
    Rival(name="fira", make=_peer("fira", "fira_adamw", drop="scale", alpha=0.25), check="outside"),
    Rival(name="apollo-torch", make=_peer("apollo_torch", "apollo", scale_type="channel", **RANDOM), check="scaled"),
    Rival(
        name="apollo-torch Mini",
        make=_peer("apollo_torch", "apollo", scale_type="tensor", **{**RANDOM, **MINI}),
        check="scaled",
    ),
]  # fmt: skip
RIVALS = [
    Rival(name=name, needs="lowtide", make=make, check=check, peer=peer, target=target)
    for name, make, check, peer, target in (
        ("GaLoreAdamW", _ours("GaLoreAdamW"), "rank", GALORE, 1.5),
        ("QGaLoreAdamW", _ours("QGaLoreAdamW"), "rank", GALORE, None),
        ("GaLore, DCT basis", _ours("DCTAdamW", error_feedback=None), "rank", GALORE, 4.0),
        ("DCTAdamW, INT8 feedback", _ours("DCTAdamW"), "rank", GALORE, None),
        ("FRUGAL, columns", _ours("FRUGAL", {"scale": 1.0}), "sign", GALORE, None),
        ("FiraAdamW", _ours("FiraAdamW"), "outside", "fira", 1.5),
        ("APOLLO", _ours("APOLLO", {"scale": 1.0}), "scaled", "apollo-torch", 1.5),
        ("APOLLOMini", _ours("APOLLOMini", MINI), "scaled", "apollo-torch Mini", 1.5),
    )
]


def shapes(size: str) -> list[tuple[int, int]]:
    if size == "model":
        return [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 3
    rows, cols = map(int, size.split("x"))
    return [(rows, cols)] * 3


def count(size: str) -> int:
    return sum(math.prod(s) for s in shapes(size))


def _missed(check: str, moved: Any, g: Any) -> float:
    """How far from what it should be a movement is, as a share of its norm."""
    import torch

    moved, g = moved.double(), g.double()
    if not bool(torch.isfinite(moved).all()) or not float(moved.norm()):
        return math.inf
    if check == "rank":
        return float(torch.linalg.svdvals(moved)[RANK:].norm() / moved.norm())
    if check == "sign":
        outside = moved[(moved.abs() - LR).abs() < 1e-3 * LR]
        # a quarter of the columns are inside, where a first step of Adam is of the same size
        return 1.0 - outside.numel() / moved.numel()
    if check == "outside":  # of the subspace, which the gradient of the check leaves no doubt about
        u = torch.linalg.svd(g, full_matrices=False)[0][:, :RANK]
        moved, g = moved - u @ (u.T @ moved), g - u @ (u.T @ g)
    k = (moved * g).sum(0) / (g * g).sum(0)
    return float((moved - g * k).norm() / moved.norm())


def _verify(rival: Rival) -> float:
    import torch

    gen = torch.Generator().manual_seed(1)
    w = torch.nn.Parameter(torch.zeros(256, 400))
    strong = torch.randn(256, RANK, generator=gen) @ torch.randn(RANK, 400, generator=gen)
    w.grad = (strong + 0.01 * torch.randn(256, 400, generator=gen)) * 1e-3
    g = w.grad.clone()
    rival.make([w]).step()
    error = _missed(rival.check, w.detach(), g)
    limit = {"rank": 1e-5, "scaled": 1e-5, "outside": 0.02, "sign": 0.02}[rival.check]
    if not error <= limit:
        raise WrongResult(f"error {error:.2e}, at most {limit:.0e}")
    return error


def prepare(name: str, size: str) -> tuple[Call, dict[str, Any]]:
    import torch

    rival = next(r for r in [*PEERS, *RIVALS] if r.name == name)
    if rival.needs == "lowtide":
        import lowtide

        lowtide.set_num_threads(torch.get_num_threads())
    error = _verify(rival)
    gen = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=gen) * 0.02) for s in shapes(size)]
    for p in params:
        p.grad = torch.randn(p.shape, generator=gen) * 1e-3
    optimizer = rival.make(params)
    optimizer.step()  # finds the subspaces
    return optimizer.step, {"error": error}


def run(args: argparse.Namespace) -> None:
    args.count = count
    peers = {r.name: r.peer for r in RIVALS}
    targets = {r.name: r.target for r in RIVALS}
    runs = []

    def row_of(
        rival: Rival, size: str, facts: dict[str, Any], row: dict[str, Any], base: Worker
    ) -> dict[str, Any]:
        row |= {
            "peer": peers[rival.name],
            "error": facts["error"],
            "ns_per_parameter": row["ms"] / count(size) * 1e6,
        }
        return row | ({"target": targets[rival.name]} if targets[rival.name] else {})  # fmt: skip

    for threads in map(int, args.threads.split(",")):
        start = started()
        print(f"{threads} thread{'s' * (threads > 1)}", flush=True)
        rows, left_out = compare(
            RIVALS,
            args.sizes.split(","),
            args,
            threads,
            base_of=lambda rival, size, facts: (peers[rival.name], size),
            row_of=row_of,
            show=show,
        )
        runs.append({"threads": threads, "environment": start, "rows": rows, "left_out": left_out})
    if not args.no_save:
        save("low_rank_step", {"bench": "low_rank_step", "runs": runs})


def show(row: dict[str, Any]) -> None:
    said = (
        f"  target {row['target']:g}" + (": missed" if row["vs"] < row["target"] else "")
        if "target" in row
        else ""
    )
    print(
        f"  {row['size']:<9} {row['name']:<24} {row['ms']:8.2f} ms ±{row['mad_ms']:5.2f}  {row['vs']:6.2f} ±{row['vs_mad']:.2f}"
        f" x {row['peer']:<18} best {row['vs_best']:.2f} x{said}",
        flush=True,
    )


def main() -> None:
    args = parser(__doc__, "768x2048,2048x768,model").parse_args()
    if args.worker:
        serve(prepare, int(args.threads))
    else:
        run(args)


if __name__ == "__main__":
    main()
