# SPDX-License-Identifier: Apache-2.0
"""Subspace refresh against torch: seconds and captured energy, synthetic spectra and a real model's gradients.

    python bench/python/refresh.py [--threads 1,2] [--rounds N] [--large] [--no-model] [--no-save]

``energy`` is the share of the exact top-r energy; ``speedup`` the ratio of best times to torch.linalg.svd in the same
run, ``cpu_speedup`` that of processor time (on a busy machine the truer one, with one thread). Gradients of SmolLM2-135M are used if ``lowtide`` has it in its cache (python -m lowtide.assets), for two
consecutive batches: the warm start comes from the first, energy is that on the second.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from _timing import environment, race, save
from torch import Tensor

from lowtide import lowrank


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


def model_gradients() -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of one deep layer for two batches of real text; empty if the assets are not there."""
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
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    layer = model.model.layers[15]
    weights = {
        "q_proj": layer.self_attn.q_proj.weight,
        "gate_proj": layer.mlp.gate_proj.weight,
        "down_proj": layer.mlp.down_proj.weight,
    }
    found: list[dict[str, Tensor]] = []
    for batch in range(2):
        ids = tokens[batch * 1024 : (batch + 1) * 1024].reshape(8, 128)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({k: w.grad.detach().clone() for k, w in weights.items()})
    return {f"smollm2 {k}": (found[0][k], found[1][k]) for k in weights}


def measure(
    name: str, before: Tensor, g: Tensor, side: str, rounds: int, exact: bool = True
) -> list[dict[str, Any]]:
    rank = 128
    ours, tuned = lowrank.RandomizedSVD(rank), lowrank.RandomizedSVD(rank, power_iters=2)
    prev = ours.basis(before, side=side)
    found: dict[str, Tensor] = {}

    def keep(key: str, basis: Tensor) -> None:
        found[key] = basis

    def svd_lowrank() -> None:
        u, _, v = torch.svd_lowrank(g, q=rank + 8, niter=1)
        keep("torch.svd_lowrank niter=1", (v if side == "right" else u)[:, :rank].T)

    rivals: dict[str, Any] = {
        "torch.svd_lowrank niter=1": svd_lowrank,
        "lowtide cold": lambda: keep("lowtide cold", ours.basis(g, side=side)),
        "lowtide cold power_iters=2": lambda: keep("lowtide cold power_iters=2", tuned.basis(g, side=side)),
        "lowtide warm": lambda: keep("lowtide warm", ours.basis(g, side=side, prev=prev)),
    }
    reference = lowrank.SVD(rank)
    if exact:
        rivals["torch.linalg.svd"] = lambda: keep("torch.linalg.svd", reference.basis(g, side=side))
    else:  # minutes: the eigenvalues of the smaller Gram matrix say the same about energy
        small = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g
        values = torch.linalg.eigvalsh(small.double())
        best = float(values[-rank:].sum() / values.sum())
    times = race(rivals, rounds=rounds)
    energies = {k: lowrank.energy(g, b.contiguous(), side) for k, b in found.items()}
    best = energies["torch.linalg.svd"] if exact else best
    stale = lowrank.energy(g, prev, side) / best
    rows = []
    for key, t in times.items():
        row: dict[str, Any] = {
            "gradient": name,
            "shape": list(g.shape),
            "side": side,
            "rank": rank,
            "method": key,
            "ms": round(t["best"] * 1e3, 3),
            "median_ms": round(t["median"] * 1e3, 3),
            "cpu_ms": round(t["cpu"] * 1e3, 3),
            "energy": round(energies[key] / best, 5),
        }
        if exact:
            row["speedup"] = round(times["torch.linalg.svd"]["best"] / t["best"], 2)
            row["cpu_speedup"] = round(times["torch.linalg.svd"]["cpu"] / t["cpu"], 2)
        rows.append(row)
        print(
            f"  {key:<28} {row['ms']:>10.2f} ms  energy {row['energy']:.4f}"
            + (f"  {row['speedup']:>7.1f} x, {row['cpu_speedup']:.1f} x of processor time" if exact else "")
        )
    print(
        f"  (the basis before the refresh keeps {stale:.4f} of it; the best basis {best:.4f} of the gradient)",
        flush=True,
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--threads", default=",".join(str(n) for n in sorted({1, len(os.sched_getaffinity(0))}))
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--large", action="store_true", help="also 4096 x 4096, without torch.linalg.svd, which takes minutes"
    )
    parser.add_argument("--no-model", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    cases: dict[str, tuple[Tensor, Tensor]] = {
        f"k^-{decay}, drift 0.3": spectrum(768, 2048, decay, 0.3, 1) for decay in (0.5, 1.0, 2.0)
    }
    if not args.no_model:
        cases |= model_gradients()
    runs = []
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        rows = []
        started = environment()
        for name, (before, g) in cases.items():
            std = lowrank.side_for(g.shape)
            # Which side costs more differs; GaLore's choice everywhere, the other one once.
            for side in (
                (std, lowrank.side_for(g.shape, "reverse_std")) if name.startswith("k^-1.0") else (std,)
            ):
                print(
                    f"{name}, {g.shape[0]} x {g.shape[1]}, rank 128, side {side}, {threads} threads",
                    flush=True,
                )
                rows += measure(name, before, g, side, args.rounds)
        if args.large:
            before, g = torch.randn(2, 4096, 4096)
            decay = 1 / torch.arange(1, 4097)
            g = g * decay[:, None] + 0.1 * before * decay
            print(f"random rows over k, 4096 x 4096, rank 128, {threads} threads", flush=True)
            rows += measure(
                "random rows over k", g + 0.05 * before * decay[:, None], g, "right", 3, exact=False
            )
        runs.append({"threads": threads, "environment": started, "rows": rows})
    if not args.no_save:
        save("refresh", {"bench": "refresh", "runs": runs})


if __name__ == "__main__":
    main()
