# SPDX-License-Identifier: Apache-2.0
"""The picture of memory_budgets.py: the loss each method reaches in a budget, and how it gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], minutes: float, path: Path) -> None:
    """A panel a budget: validation loss over minutes of training, methods named at the end of their line, best first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(r["label"] for r in rows))
    colours = dict(zip(labels, plt.get_cmap("tab10").colors, strict=False))
    budgets = sorted({r["budget"] for r in rows}, reverse=True)
    fig, axes = plt.subplots(
        1, len(budgets), figsize=(4.6 * len(budgets), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, budget in zip(axes[0], budgets, strict=True):
        mine = [r for r in rows if r["budget"] == budget]
        fitted = sorted((r for r in mine if r["run"]), key=lambda r: r["run"]["val_loss_after"])
        for rank, r in enumerate(fitted):
            x, y = zip(*r["run"]["course"], strict=True)
            line = f"{r['label']}  {r['run']['val_loss_after']:.3f}, {r['run']['memory'] / 1e9:.2f} GB"
            axis.plot(
                x,
                y,
                color=colours[r["label"]],
                linewidth=2.4 if rank == 0 else 1.3,
                marker="o",
                markersize=3,
                label=line,
            )
        left_out = [r["label"] for r in mine if not r["run"]]
        if left_out:
            half = (len(left_out) + 1) // 2
            lines = [", ".join(part) for part in (left_out[:half], left_out[half:]) if part]
            axis.text(
                0.03,
                0.02,
                "do not fit:\n" + ",\n".join(lines),
                transform=axis.transAxes,
                fontsize=8,
                color="0.35",
                va="bottom",
            )
        axis.set(title=f"{budget:g} GB", xlabel="minutes of training", xlim=(0, minutes * 1.03))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7.5, frameon=False, loc="upper right")
    axes[0][0].set_ylabel("validation loss (nats per token)")
    fig.suptitle("SmolLM2-135M on Shakespeare, every parameter trained: what a memory budget buys")
    fig.savefig(path, dpi=130)
    plt.close(fig)
