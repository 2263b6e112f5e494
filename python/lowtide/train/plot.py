# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: its losses and where its memory went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowtide.train.errors import ConfigError, missing_package
from lowtide.train.files import atomic_path

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: str) -> None:
    """Refuse before the run what would fail after it."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"plot: got {path!r}, takes a file name ending in {', '.join(_SUFFIXES)}; e.g. loss.png"
        )
    if not Path(path).expanduser().resolve().parent.is_dir():
        raise ConfigError(f"plot: the directory of {path!r} does not exist; create it first")
    _import()


def _import() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise missing_package("matplotlib", "plot") from None
    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    return pyplot


def plot_run(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Write the loss curve (training, its running mean, validation) and the counted memory to an image file."""
    plt = _import()
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    val = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 4), width_ratios=(3, 1.25), layout="constrained", dpi=150
    )
    if train:
        steps, losses = zip(*train, strict=True)
        left.plot(steps, losses, color="#9db7d6", linewidth=0.8, label="training, each batch")
        left.plot(
            steps, _running_mean(losses), color="#1f5a99", linewidth=1.8, label="training, running mean"
        )
    if val:
        left.plot(
            *zip(*val, strict=True),
            color="#c8501e",
            marker="o",
            markersize=4,
            linewidth=1.4,
            label="validation",
        )
    left.set_xlabel("step")
    left.set_ylabel("loss (nats per token)")
    left.grid(alpha=0.25)
    left.legend(frameon=False)
    left.set_title(title, loc="left", fontsize=10)
    last: dict[str, float] = next((r["bytes"] for r in reversed(records) if "bytes" in r), {})
    base = 0.0
    counted = {kind: count for kind, count in last.items() if count}
    for (kind, count), colour in zip(
        counted.items(), ("#1f5a99", "#5b8fc7", "#c8501e", "#e4a07c"), strict=False
    ):
        right.bar(
            [0], [count / 1e6], bottom=[base], color=colour, width=0.5, label=f"{kind}: {count / 1e6:,.4g} MB"
        )
        base += count / 1e6
    right.set_xlim(-0.5, 0.5)
    right.set_ylim(0, base * 1.45 or 1)
    right.set_xticks([])
    right.set_ylabel("counted tensor memory (MB)")
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], frameon=False, loc="upper center", fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
    plt.close(figure)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over the last tenth of the values seen so far (one at least, fifty at most)."""
    means = []
    for end in range(1, len(values) + 1):
        count = min(50, max(1, len(values) // 10), end)
        means.append(sum(values[end - count : end]) / count)
    return means
