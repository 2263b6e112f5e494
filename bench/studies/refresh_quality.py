# SPDX-License-Identifier: Apache-2.0
"""How good are refreshed subspaces on real gradients? Captured energy against the exact SVD along a run of SmolLM2-135M.

    python bench/studies/refresh_quality.py [--steps N] [--gap T] [--rank R] [--no-save]

The model is fine-tuned on Shakespeare with AdamW. Every T steps the subspaces of seven of its matrices are refreshed from
that step's gradient: warm (from the basis of the refresh before, as an optimizer does), cold (from nothing), and exactly. A
basis is judged by the share of the exact basis's energy that it holds, in double precision; ``stale`` is what the basis of
the refresh before still holds. Writes bench/results/refresh_quality.json and docs/images/refresh_quality.png. Minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowtide as lt
from lowtide import assets

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from run_benches import environment, rounded, save  # noqa: E402

MATRICES = [
    (0, "self_attn.q_proj"),
    (0, "self_attn.k_proj"),
    (15, "self_attn.q_proj"),
    (15, "self_attn.o_proj"),
    (15, "mlp.gate_proj"),
    (15, "mlp.down_proj"),
    (29, "mlp.down_proj"),
]
WAYS = {"warm": ("#2e7fb8", "-"), "cold": ("#d1643c", "--"), "stale": ("#9aa0a8", ":")}
BATCH, LENGTH, LR = 4, 64, 1e-4
LEAST = 1e-5  # what five digits show


def batches(tokens: Tensor) -> Iterator[Tensor]:
    """Random windows of the text, the same in every run."""
    gen = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=gen)
        yield torch.stack([tokens[int(s) : int(s) + LENGTH] for s in starts])


def held(g: Tensor, basis: Tensor, side: str) -> float:
    """Energy of ``g`` in the rows of ``basis``, which must be orthonormal."""
    b = basis.double()
    off = float((b @ b.T - torch.eye(b.shape[0], dtype=torch.float64)).abs().max())
    if not off < 1e-5:
        raise SystemExit(f"wrong result: rows are {off:.1e} off orthonormal")
    return float((g.double() @ b.T if side == "right" else b @ g.double()).square().sum())


class Matrix:
    """One weight and its chain of warm-started bases."""

    def __init__(self, name: str, weight: Tensor, rank: int) -> None:
        self.name, self.weight = name, weight
        self.rank = min(rank, min(weight.shape) // 2)  # k_proj has 192 rows
        self.side = lt.lowrank.side_for(tuple(weight.shape))
        self.basis: Tensor | None = None
        self.rows: list[dict[str, float]] = []

    def refresh(self, step: int) -> None:
        g = self.weight.grad
        assert g is not None
        finder, seconds = lt.lowrank.RandomizedSVD(self.rank), {}

        def timed(name: str, **options: Any) -> Tensor:
            began = time.perf_counter()
            basis: Tensor = finder.basis(g, side=self.side, seed=1, step=step, **options)
            seconds[name] = time.perf_counter() - began
            return basis

        values = torch.linalg.svdvals(g.double())
        exact, everything = float(values[: self.rank].square().sum()), float(values.square().sum())
        stale = self.basis
        cold = timed("cold")
        self.basis = cold if stale is None else timed("warm", prev=stale)
        row = {
            "step": step,
            "share_of_exact_basis": exact / everything,
            "cold": held(g, cold, self.side) / exact,
        }
        if stale is not None:
            row |= {
                "warm": held(g, self.basis, self.side) / exact,
                "stale": held(g, stale, self.side) / exact,
                "warm_ms": seconds["warm"] * 1e3,
            }
        self.rows.append(rounded({**row, "cold_ms": seconds["cold"] * 1e3}))


def run(steps: int, gap: int, rank: int) -> tuple[list[Matrix], list[float]]:
    """The run: its matrices with their refreshes, and its losses."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = assets.fetch("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = assets.fetch("shakespeare").read_text()[:60_000]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    matrices = [
        Matrix(f"layer {i} {name.split('.')[1]}", model.model.layers[i].get_submodule(name).weight, rank)
        for i, name in MATRICES
    ]
    optimizer = lt.optim.AdamW(model.parameters(), lr=LR)
    losses = []
    for step, ids in zip(range(steps + 1), batches(tokens), strict=False):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(round(float(loss.detach()), 4))
        if step % gap == 0:
            for m in matrices:
                m.refresh(step)
            seen = [m.rows[-1].get("warm", m.rows[-1]["cold"]) for m in matrices]
            print(f"step {step:>3}  loss {losses[-1]:.3f}  least energy {min(seen):.4f}", flush=True)
        optimizer.step()
    return matrices, losses


def plot(matrices: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 4, figsize=(11, 4.8), sharex=True, sharey=True)
    for ax, m in zip(axes.flat, matrices, strict=False):
        for way, (colour, line) in WAYS.items():
            rows = [r for r in m["refreshes"] if way in r]
            missed = [max(1.0 - r[way], LEAST) for r in rows]
            ax.semilogy([r["step"] for r in rows], missed, line, color=colour, label=way)
        ax.set_title(f"{m['matrix']}, {m['shape'][0]} x {m['shape'][1]}, rank {m['rank']}", fontsize=8)
        ax.axhline(0.01, color="#c0392b", linewidth=0.6)
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=7)
    last = axes.flat[-1]
    last.axis("off")
    last.legend(*axes[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    fig.supxlabel("step", fontsize=9)
    fig.supylabel("share of the exact basis's energy missed", fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    p.add_argument("--steps", type=int, default=24)
    p.add_argument("--gap", type=int, default=4, help="steps between refreshes (default 4)")
    p.add_argument("--rank", type=int, default=128)
    p.add_argument("--no-save", action="store_true")
    args = p.parse_args()
    began = {**environment(), "torch": torch.__version__}
    matrices, losses = run(args.steps, args.gap, args.rank)
    found = []
    for m in matrices:
        summary = {
            f"{way}_{name}": round(f(r[way] for r in m.rows if way in r), 5)
            for way in WAYS
            for name, f in (("median", statistics.median), ("least", min))
        }
        found.append(
            {"matrix": m.name, "shape": list(m.weight.shape), "rank": m.rank, **summary, "refreshes": m.rows}
        )
        print(f"{m.name:<20} " + "  ".join(f"{k} {v:.4f}" for k, v in summary.items()))
    if not args.no_save:
        save(
            "refresh_quality",
            {
                "bench": "refresh_quality",
                "environment": began,
                **vars(args),
                "loss": losses,
                "matrices": found,
            },
        )
        plot(found, ROOT / "docs" / "images" / "refresh_quality.png")


if __name__ == "__main__":
    main()
