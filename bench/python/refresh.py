# SPDX-License-Identifier: Apache-2.0
"""Subspace refresh against torch: seconds and captured energy, synthetic spectra and a real model's gradients.

    python bench/python/refresh.py [--threads 1,2] [--rounds N] [--large | --only-large] [--no-model] [--no-save]

Methods take turns; ``vs_torch`` is the ratio of the medians of torch.linalg.svd and the method, ``vs_torch_best`` that of
the best times. ``energy`` is the share of the exact top-r energy, measured in double precision; every basis is verified
to be orthonormal first. ``stale``: what the basis before the refresh still holds. Gradients of SmolLM2-135M are used if
``lowtide`` has it in its cache (python -m lowtide.assets), for two consecutive batches: the warm start comes from the
first, energy is that on the second. ``--large`` adds 4096 x 4096, where torch.linalg.svd runs once (minutes).
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import torch
from _timing import environment, race, rounded, save
from torch import Tensor

from lowtide import lowrank

RANK = 128
EXACT = "torch.linalg.svd"


def spectrum(m: int, n: int, decay: float, drift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two gradients with singular values k^-decay whose singular vectors differ by about ``drift`` (radians)."""
    gen = torch.Generator().manual_seed(seed)
    k = min(m, n)

    def frame(rows: int) -> tuple[Tensor, Tensor]:
        a = torch.linalg.qr(torch.randn(rows, k, generator=gen)).Q
        return a, torch.linalg.qr(a + drift * torch.randn(rows, k, generator=gen) / rows**0.5).Q

    s = torch.arange(1, k + 1).float() ** -decay
    (u0, u1), (v0, v1) = frame(m), frame(n)
    return (u0 * s) @ v0.T, (u1 * s) @ v1.T


def large(n: int, drift: float) -> tuple[Tensor, Tensor]:
    """Two n x n gradients with falling singular values (about 1/k), without a QR of that size."""
    gen = torch.Generator().manual_seed(1)
    decay = torch.arange(1, n + 1).float() ** -0.5
    a, b = (torch.randn(n, n, generator=gen) for _ in range(2))
    return decay[:, None] * a * decay, decay[:, None] * ((1 - drift**2) ** 0.5 * a + drift * b) * decay


def model_gradients() -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of three layers for two batches of real text; empty if the assets are not there."""
    try:
        import transformers

        from lowtide import assets

        for name in ("smollm2-135m", "shakespeare"):
            if not (assets.cache_root() / name).exists():
                print(f"no model gradients: python -m lowtide.assets {name} has not run")
                return {}
        folder, text = assets.fetch("smollm2-135m"), assets.fetch("shakespeare").read_text()[:20000]
    except ImportError as error:
        print(f"no model gradients: {error}")
        return {}
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    weights = {
        f"layer {i} {name}": dict(model.model.layers[i].named_parameters())[f"{name}.weight"]
        for i in (0, 15, 29)
        for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
    }
    found: list[dict[str, Tensor]] = []
    for batch in range(2):
        ids = tokens[batch * 1024 : (batch + 1) * 1024].reshape(8, 128)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({k: w.grad.detach().clone() for k, w in weights.items()})
    return {f"smollm2 {k}": (found[0][k], found[1][k]) for k in weights}


def held(g: Tensor, basis: Tensor, side: str) -> float:
    """Energy that the basis captures, in double precision; refuses a basis that is not orthonormal."""
    b = basis.double()
    off = float((b @ b.T - torch.eye(b.shape[0], dtype=torch.float64)).abs().max())
    if not off < 1e-5:
        raise SystemExit(f"wrong result: rows are {off:.1e} off orthonormal")
    return float((g.double() @ b.T if side == "right" else b @ g.double()).square().sum())


def measure(name: str, before: Tensor, g: Tensor, side: str, args: argparse.Namespace) -> dict[str, Any]:
    ours, tuned, exact = (
        lowrank.RandomizedSVD(RANK),
        lowrank.RandomizedSVD(RANK, power_iters=2),
        lowrank.SVD(RANK),
    )
    prev = ours.basis(before, side=side)
    found: dict[str, Tensor] = {}

    def keep(key: str, basis: Tensor) -> None:
        found[key] = basis

    def svd_lowrank() -> None:
        u, _, v = torch.svd_lowrank(g, q=RANK + 8, niter=1)
        keep("torch.svd_lowrank niter=1", (v if side == "right" else u)[:, :RANK].T)

    rivals: dict[str, Any] = {
        "torch.svd_lowrank niter=1": svd_lowrank,
        "lowtide cold": lambda: keep("lowtide cold", ours.basis(g, side=side)),
        "lowtide cold power_iters=2": lambda: keep("lowtide cold power_iters=2", tuned.basis(g, side=side)),
        "lowtide warm": lambda: keep("lowtide warm", ours.basis(g, side=side, prev=prev)),
    }
    once = g.numel() > 1 << 23
    if not once:
        rivals[EXACT] = lambda: keep(EXACT, exact.basis(g, side=side))
    times = race(rivals, rounds=args.rounds, turn=args.turn)
    if once:
        began = time.perf_counter()
        keep(EXACT, exact.basis(g, side=side))
        took = time.perf_counter() - began
        times[EXACT] = {"median": took, "mad": 0.0, "best": took, "cpu": took, "runs": 1}
    best = held(g, found[EXACT], side)
    rows = []
    for key, t in times.items():
        row: dict[str, Any] = {
            "name": key,
            "ms": t["median"] * 1e3,
            "mad_ms": t["mad"] * 1e3,
            "best_ms": t["best"] * 1e3,
            "cpu_ms": t["cpu"] * 1e3,
            "runs": t["runs"],
            "vs_torch": times[EXACT]["median"] / t["median"],
            "vs_torch_best": times[EXACT]["best"] / t["best"],
            "energy": held(g, found[key], side) / best,
        }
        rows.append(rounded(row))
        print(
            f"  {key:<28} {row['ms']:>10.2f} ms ±{row['mad_ms']:7.2f}  energy {row['energy']:.4f}"
            f"  {row['vs_torch']:>7.1f} x torch (best times: {row['vs_torch_best']:.1f} x)"
        )
    stale = held(g, prev, side) / best
    share = best / float(g.double().square().sum())
    print(
        f"  (the basis before the refresh holds {stale:.4f} of it; the best basis {share:.4f} of the gradient)",
        flush=True,
    )
    return {
        "gradient": name,
        "shape": list(g.shape),
        "side": side,
        "rank": RANK,
        "stale": round(stale, 5),
        "share_of_best_basis": round(share, 5),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each method (default 7)")
    parser.add_argument(
        "--turn", type=float, default=0.05, help="seconds of a turn (default 0.05, one run at least)"
    )
    parser.add_argument("--large", action="store_true", help="also 4096 x 4096: minutes of torch.linalg.svd")
    parser.add_argument("--only-large", action="store_true", help="4096 x 4096 alone")
    parser.add_argument("--no-model", action="store_true", help="without the gradients of a real model")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    cases: dict[str, tuple[Tensor, Tensor]] = {}
    if not args.only_large:
        cases |= {f"k^-{decay}, drift 0.3": spectrum(768, 2048, decay, 0.3, 1) for decay in (0.5, 1.0, 2.0)}
        cases["k^-1.0, drift 1.0"] = spectrum(768, 2048, 1.0, 1.0, 1)
        if not args.no_model:
            cases |= model_gradients()
    if args.large or args.only_large:
        cases["falling like 1/k, drift 0.3"] = large(4096, 0.3)
    runs = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        found = []
        started = {**environment(), "torch": torch.__version__}
        for name, (before, g) in cases.items():
            std = lowrank.side_for(g.shape)
            # GaLore's choice everywhere; the other side, which costs more, once.
            both = name == "k^-1.0, drift 0.3"
            for side in (std, lowrank.side_for(g.shape, "reverse_std")) if both else (std,):
                print(
                    f"{name}, {g.shape[0]} x {g.shape[1]}, rank {RANK}, side {side}, {threads} threads",
                    flush=True,
                )
                found.append(measure(name, before, g, side, args))
        runs.append({"threads": threads, "environment": started, "gradients": found})
    if not args.no_save:
        name = "refresh_large" if args.only_large else "refresh"
        save(name, {"bench": name, "runs": runs})


if __name__ == "__main__":
    main()
