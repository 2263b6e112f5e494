# SPDX-License-Identifier: Apache-2.0
"""Why training stops generalizing once it has fitted its data, and what a perpendicular gradient does about it.

    python examples/grokking.py [--modulus P] [--steps N] [--seeds 0,1,2] [--out DIR]

A network with one-hot inputs learns a + b mod P from half of all pairs. AdamW fits them in a hundred steps, and then makes its
logits larger by scaling weights up: the loss falls, predictions stay as they are, and the other half stays wrong. Weight decay brings
generalization late ("grokking", Power et al. 2022). ``lt.optim.Perpendicular`` takes the scaling out of the gradient (Prieto et al.
2025, arXiv 2501.04697). Writes OUT/grokking.{json,md,png}. Three minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowtide as lt

LR, BETAS, WIDTH, SHARE = 1e-2, (0.9, 0.99), 128, 0.5
METHODS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "AdamW, StableMax": {"loss": lt.optim.StableMaxCrossEntropy()},
    "AdamW, weight decay 1": {"weight_decay": 1.0},
    "perpendicular gradient": {"constraint": lt.optim.Perpendicular()},
    "perpendicular, StableMax": {
        "constraint": lt.optim.Perpendicular(),
        "loss": lt.optim.StableMaxCrossEntropy(),
    },
}
COLOURS = ["#4c566a", "#a0a8b8", "#2e7fb8", "#d1643c", "#e0a080"]


def pairs(modulus: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One-hot inputs and sums, for training and for testing."""
    a, b = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    hot = nn.functional.one_hot(torch.stack([a, b], -1).reshape(-1, 2), modulus)
    x, y = hot.reshape(modulus**2, -1).float(), ((a + b) % modulus).reshape(-1)
    order = torch.randperm(modulus**2, generator=torch.Generator().manual_seed(seed))
    train, test = order.tensor_split([int(SHARE * modulus**2)])
    return x[train], y[train], x[test], y[test]


def run(modulus: int, steps: int, seed: int, method: dict[str, Any]) -> dict[str, Any]:
    x, y, x_test, y_test = pairs(modulus, seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2 * modulus, WIDTH, bias=False),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.ReLU(),
        nn.Linear(WIDTH, modulus, bias=False),
    )
    options = {"weight_decay": 0.0, **method}
    loss_of = options.pop("loss", nn.functional.cross_entropy)
    opt = lt.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, **options)
    curve: dict[str, list[float]] = {"step": [], "train": [], "test": [], "norm": []}
    every = max(1, steps // 50)
    for t in range(steps + 1):
        opt.zero_grad()
        logits = model(x)
        loss = loss_of(logits, y)
        if t % every == 0 or t == steps:
            with torch.no_grad():
                test = model(x_test).argmax(1) == y_test
                norm = sum(float(p.square().sum()) for p in model.parameters()) ** 0.5
            train = logits.detach().argmax(1) == y
            values = (t, float(train.float().mean()), float(test.float().mean()), norm)
            for key, value in zip(curve, values, strict=True):
                curve[key].append(value)
        loss.backward()
        opt.step()
    return curve


def first(curve: dict[str, Any], what: str, level: float) -> float | None:
    """The first step at which an accuracy is at least ``level``."""
    return next((t for t, v in zip(curve["step"], curve[what], strict=True) if v >= level), None)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| method | train 99 % at step | test 95 % at step | test at the end, % | norm of the weights, end / start |",
        "|---|---|---|---|---|",
    ]
    for name, curves in results.items():
        cells = [name]
        for what, level in (("train", 0.99), ("test", 0.95)):
            cells.append(
                ", ".join("never" if (t := first(c, what, level)) is None else f"{t:.0f}" for c in curves)
            )
        cells.append(", ".join(f"{100 * c['test'][-1]:.1f}" for c in curves))
        cells.append(f"{statistics.mean(c['norm'][-1] / c['norm'][0] for c in curves):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for (name, curves), colour in zip(results.items(), COLOURS, strict=True):
        for i, c in enumerate(curves):
            left.plot(
                c["step"], [100 * v for v in c["test"]], color=colour, alpha=0.8, label=None if i else name
            )
            left.plot(c["step"], [100 * v for v in c["train"]], ":", color=colour, alpha=0.4)
            right.plot(c["step"], [v / c["norm"][0] for v in c["norm"]], color=colour, alpha=0.8)
    left.set(xlabel="step", ylabel="accuracy, % (dotted: training pairs)", title="Pairs that were never seen")
    right.set(xlabel="step", ylabel="of the start", title="Norm of the weights", yscale="log")
    left.legend(fontsize=8)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modulus", type=int, default=59, metavar="P", help="a prime (default 59)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="updates (default 1000)")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--out", type=Path, default=Path("grokking-out"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small are slower on more
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in (int(s) for s in options.seeds.split(",")):
        for name, method in METHODS.items():
            start = time.perf_counter()
            results.setdefault(name, []).append(run(options.modulus, options.steps, seed, method))
            end = results[name][-1]["test"][-1]
            print(f"seed {seed} {name:25s} test {end:.3f} {time.perf_counter() - start:.0f} s", flush=True)
    about = {"modulus": options.modulus, "steps": options.steps, "torch": torch.__version__}
    (options.out / "grokking.json").write_text(json.dumps({**about, "results": results}) + "\n")
    (options.out / "grokking.md").write_text(table(results))
    figure(results, options.out / "grokking.png")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
