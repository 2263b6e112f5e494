# SPDX-License-Identifier: Apache-2.0
"""The picture and the table of memory_budgets.py: the loss each method reaches in a budget, and how it gets there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

GIB = 1 << 30


def _panels(rows: list[dict[str, Any]]) -> list[tuple[float, list[dict[str, Any]], list[str]]]:
    """By budget, the largest first: rows that fit, best first, and the labels of those that do not."""
    panels = []
    for budget in sorted({r["budget"] for r in rows}, reverse=True):
        mine = [r for r in rows if r["budget"] == budget]
        fitted = sorted((r for r in mine if r["run"]), key=lambda r: r["run"]["val_loss_after"])
        panels.append((budget, fitted, [r["label"] for r in mine if not r["run"]]))
    return panels


def draw(rows: list[dict[str, Any]], minutes: float, path: Path) -> None:
    """A panel a budget: validation loss over minutes of training, methods named at the end of their line, best first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(r["label"] for r in rows))
    colours = dict(zip(labels, plt.get_cmap("tab10").colors, strict=False))
    panels = _panels(rows)
    fig, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (budget, fitted, left_out) in zip(axes[0], panels, strict=True):
        for rank, r in enumerate(fitted):
            x, y = zip(*r["run"]["course"], strict=True)
            line = f"{r['label']}  {r['run']['val_loss_after']:.3f}, {r['run']['memory'] / GIB:.2f} GiB"
            axis.plot(
                x,
                y,
                color=colours[r["label"]],
                linewidth=2.4 if rank == 0 else 1.3,
                marker="o",
                markersize=3,
                label=line,
            )
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
        axis.set(title=f"{budget:g} GiB", xlabel="minutes of training", xlim=(0, minutes * 1.08))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7.5, framealpha=1, edgecolor="1", loc="center right", bbox_to_anchor=(1.0, 0.45))
    axes[0][0].set_ylabel("validation loss (nats per token)")
    fig.suptitle("SmolLM2-135M on Shakespeare, every parameter trained: what a memory budget buys")
    fig.savefig(path, dpi=130)
    plt.close(fig)


def table(rows: list[dict[str, Any]]) -> str:
    """The same in Markdown, a table a budget, best first."""
    blocks = []
    for budget, fitted, left_out in _panels(rows):
        lines = [
            f"**{budget:g} GiB**",
            "",
            "| method | loss | memory | steps x batch | learning rate | how it fits |",
            "|---|---|---|---|---|---|",
        ]
        for r in fitted:
            run = r["run"]
            lines.append(
                f"| {r['label']} | {run['val_loss_after']:.4f} | {run['memory'] / GIB:.2f} GiB | {run['steps']} x {run['batch']} "
                f"| {run['lr']:g} | {_how(run['flags'])} |"
            )
        blocks.append("\n".join([*lines, *(["", f"Do not fit: {', '.join(left_out)}."] if left_out else [])]))
    return "\n\n".join(blocks)


def _how(flags: list[str]) -> str:
    said = []
    if ("--in-backward", "on") in pairwise(flags):
        said.append("updates in the backward pass")
    if "--gradient-checkpointing" in flags:
        said.append("activations again")
    return ", ".join(said)
