# SPDX-License-Identifier: Apache-2.0
"""The pictures of one run, or of several in one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowtide.report._read import Points, Run, finite
from lowtide.report._svg import INK, MUTED, SERIES, Drawing
from lowtide.train.progress import human_bytes

MAX_POINTS = 1500
_KINDS = ("weights", "gradients", "states", "basis", "probe", "masters", "constraint")
Figure = tuple[str, str]  # caption, SVG


def thin(points: Points) -> Points:
    """At most MAX_POINTS of a curve, the last one among them."""
    steps, values = points
    if len(steps) <= MAX_POINTS:
        return points
    at = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    return steps[at], values[at]


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a twentieth of the run, of what is there at its ends."""
    window = max(1, len(values) // 20)
    total = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    low, high = np.maximum(0, at - window // 2), np.minimum(len(values), at + window // 2 + 1)
    mean: NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return mean


def _having(runs: Sequence[Run], name: str) -> list[tuple[int, Run, Points]]:
    return [(i, run, run.series[name]) for i, run in enumerate(runs) if name in run.series]


def _label(runs: Sequence[Run], run: Run, what: str) -> str:
    return what if len(runs) == 1 else f"{run.name[:28]}: {what}" if what else run.name[:28]


def _plot(axis: Any, points: Points, **style: Any) -> None:
    steps, values = thin(points)
    if len(steps) <= 40:
        style.setdefault("marker", "o")
        style.setdefault("markersize", 3)
    axis.plot(steps, values, **style)


def _finish(axis: Any, ylabel: str, *, count: int, legend: bool = True, xlabel: str = "step") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if legend and count:
        labels = axis.get_legend_handles_labels()[1]
        # About 13 letters an inch fit beside one another, and a handle takes the room of 5.
        room = 13.0 * float(axis.figure.get_figwidth())
        columns = max(1, min(3, int(room / (5 + max(map(len, labels), default=1)))))
        # Above the axes: no curve can lie under it.
        axis.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2, handlelength=1.4
        )  # fmt: skip


def losses(runs: Sequence[Run]) -> Figure | None:
    """Training, smoothed, and validation."""
    train, val = _having(runs, "loss"), _having(runs, "val_loss")
    if not train and not val:
        return None
    d = Drawing("loss", 10.0, 3.5)
    axis, many = d.axes[0], len(runs) > 1
    for i, run, (steps, values) in train:
        busy = len(values) >= 20
        if busy:
            label = None if many else "training, each batch"
            _plot(axis, (steps, values), color=SERIES[i], alpha=0.35, linewidth=0.8, marker="", label=label)
        what = "training, running mean" if busy else "training"
        _plot(axis, (steps, smooth(values)), color=SERIES[i], label=_label(runs, run, "" if many else what))
    trained = {i for i, _, _ in train}
    for i, run, points in val:
        style = {"color": SERIES[i], "linestyle": "--"} if many else {"color": SERIES[1]}
        label = (None if i in trained else _label(runs, run, "")) if many else "validation"
        axis.plot(*thin(points), marker="o", markersize=4, label=label, **style)
    ylabel = "loss (dashed: validation)" if many and val else "loss"
    _finish(axis, ylabel, count=len(axis.get_legend_handles_labels()[0]))
    return "Loss", d.svg("Training and validation loss by step")


def memory(runs: Sequence[Run]) -> Figure | None:
    """Counted bytes by kind, stacked, and the resident set."""
    return _memory_of_one(runs[0]) if len(runs) == 1 else _memory_of_many(runs)


def _kinds(runs: Sequence[Run]) -> list[str]:
    seen = {
        n.removeprefix("bytes/")
        for run in runs
        for n in run.series
        if n.startswith("bytes/") and (run.series[n][1] > 0).any()
    }
    return ([k for k in _KINDS if k in seen] + sorted(seen - set(_KINDS)))[:8]


def _bytes_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: human_bytes(v)))
    axis.set_ylim(bottom=0)


def _memory_of_one(run: Run) -> Figure | None:
    kinds = _kinds([run])
    rss = run.series.get("peak_rss", run.series.get("rss"))
    if not kinds and rss is None:
        return None
    d = Drawing("memory", 5.4, 3.3)
    axis = d.axes[0]
    if kinds:
        steps = np.unique(np.concatenate([run.series[f"bytes/{k}"][0] for k in kinds]))
        steps = thin((steps, steps))[0]
        rows = [_held(run.series[f"bytes/{k}"], steps) for k in kinds]
        if len(steps) == 1:
            steps, rows = np.array([steps[0] - 0.5, steps[0] + 0.5]), [np.repeat(r, 2) for r in rows]
        axis.stackplot(steps, rows, colors=SERIES[: len(kinds)], labels=kinds, alpha=0.85, linewidth=0)
    if rss is not None:
        name = "peak RSS" if "peak_rss" in run.series else "RSS"
        _plot(axis, rss, color=INK, linewidth=1.2, linestyle="--", marker="", label=name)
    _bytes_axis(axis)
    _finish(axis, "", count=len(kinds) + (rss is not None))
    return "Memory by kind", d.svg("Counted bytes by kind, stacked, and resident memory by step")


def _held(points: Points, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that was logged last at each step; 0 before the first."""
    at = np.searchsorted(points[0], steps, side="right") - 1
    held: NDArray[np.float64] = np.where(at >= 0, points[1][np.maximum(at, 0)], 0.0)
    return held


def _memory_of_many(runs: Sequence[Run]) -> Figure | None:
    kinds = _kinds(runs)
    peaks = [float(run.series["peak_rss"][1].max()) if "peak_rss" in run.series else None for run in runs]
    if not kinds and not any(peaks):
        return None
    d = Drawing("memory", 5.4, 3.3)
    axis = d.axes[0]
    base = np.zeros(len(runs))
    for kind, colour in zip(kinds, SERIES, strict=False):
        sizes = np.array(
            [run.series[f"bytes/{kind}"][1].max() if f"bytes/{kind}" in run.series else 0.0 for run in runs]
        )
        axis.bar(range(len(runs)), sizes, bottom=base, color=colour, alpha=0.85, width=0.55, label=kind)
        base += sizes
    known = [(i, p) for i, p in enumerate(peaks) if p is not None]
    if known:
        axis.scatter(
            *zip(*known, strict=True), marker="_", s=500, color=INK, linewidths=1.6, label="peak RSS"
        )
    _bytes_axis(axis)
    _finish(axis, "", count=len(kinds) + bool(known), xlabel="")
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xticks(range(len(runs)), [_short(run.name, 60 // len(runs)) for run in runs])
    axis.grid(False, axis="x")
    return "Memory by kind, the most of each", d.svg("Largest counted bytes by kind of each run")


def kinds(runs: Sequence[Run]) -> Figure | None:
    """The largest size of each kind, as numbers; of several runs, their resident sets."""
    if len(runs) > 1:
        return _curves("rss", "Peak RSS", "", runs, "peak_rss", what="", change=_bytes_axis)
    run = runs[0]
    sizes = {k: float(run.series[f"bytes/{k}"][1].max()) for k in _kinds(runs)}
    if not sizes:
        return None
    d = Drawing("kinds", 5.4, 3.3)
    axis = d.axes[0]
    axis.barh(range(len(sizes)), list(sizes.values()), color=SERIES[: len(sizes)], alpha=0.85, height=0.6)
    for i, size in enumerate(sizes.values()):
        axis.annotate(human_bytes(size), (size, i), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(sizes)), list(sizes))
    axis.invert_yaxis()
    axis.set_xlim(0, max(sizes.values()) * 1.22)
    axis.set_xticks([])
    axis.grid(False)
    for side in ("bottom", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=0)
    return "The most of each kind", d.svg("Largest counted bytes of each kind")


def _short(name: str, limit: int) -> str:
    limit = max(6, limit)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _curves(
    name: str, caption: str, ylabel: str, runs: Sequence[Run], main: str, least: str | None = None,
    *, what: str = "mean", low: str = "least", change: Callable[[Any], Any] | None = None,
) -> Figure | None:  # fmt: skip
    """One curve a run, and a thinner one below it."""
    if not _having(runs, main):
        return None
    d = Drawing(name)
    axis, count = d.axes[0], 0
    for i, run, points in _having(runs, main):
        _plot(axis, points, color=SERIES[i], label=_label(runs, run, what if len(runs) == 1 else ""))
        count += 1
        if least is not None and least in run.series:
            _plot(
                axis,
                run.series[least],
                color=SERIES[i],
                linewidth=1.1,
                linestyle=(0, (2, 1.5)),
                label=low if len(runs) == 1 else None,
            )
            count += len(runs) == 1
    if change is not None:
        change(axis)
    _finish(axis, ylabel, count=count, legend=count > 1)
    return caption, d.svg(f"{caption} by step")


def energy(runs: Sequence[Run]) -> Figure | None:
    """Captured share of the gradient."""

    def percent(axis: Any) -> None:
        from matplotlib.ticker import PercentFormatter

        axis.set_ylim(0, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))

    return _curves("energy", "Subspace energy", "share of the gradient's energy", runs, "subspace/energy",
                   "subspace/energy_min", what="mean of matrices", low="least of matrices", change=percent)  # fmt: skip


def refreshes(runs: Sequence[Run]) -> Figure | None:
    """Refreshes a matrix."""
    found = [r for r in runs if "subspace/refreshes" in r.series]
    if not found:
        return None
    d = Drawing("refreshes")
    for i, run in enumerate(runs):
        if run in found:
            steps, values = run.series["subspace/refreshes"]
            matrices = run.series.get("subspace/matrices", (steps, np.ones(1)))[1].max()
            points = (steps, values / max(1.0, matrices))
            _plot(d.axes[0], points, color=SERIES[i], drawstyle="steps-post", label=_label(runs, run, ""))
    d.axes[0].set_ylim(bottom=0)
    _finish(d.axes[0], "so far, mean of matrices", count=len(found), legend=len(runs) > 1)
    return "Subspace refreshes", d.svg("Subspace refreshes by step")


def sqnr(runs: Sequence[Run]) -> Figure | None:
    """Signal to quantization noise of low-bit weights."""

    def capped(axis: Any) -> None:
        # A step of learning rate nearly 0 rounds nearly nothing: its ratio would squeeze all others.
        axis.set_ylim(top=min(100.0, axis.get_ylim()[1]) if axis.get_ylim()[0] < 90.0 else None)

    return _curves(
        "sqnr", "Quantization SQNR of weights", "dB", runs, "quantization/sqnr_db", "quantization/sqnr_db_min",
        what="median of weights", low="least of weights", change=capped,
    )  # fmt: skip


def stalls(runs: Sequence[Run]) -> Figure | None:
    """Elements that a step left as they were."""

    def percent(axis: Any) -> None:
        from matplotlib.ticker import PercentFormatter

        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        low, high = axis.get_ylim()
        axis.set_ylim(max(0.0, low), min(1.0, high) if high <= 1.0 else 1.0 + 0.03 * (1.0 - max(0.0, low)))

    return _curves(
        "stalls",
        "Rounding stalls",
        "elements whose code stayed",
        runs,
        "quantization/stalled",
        change=percent,
        what="",
    )


def seconds(runs: Sequence[Run]) -> Figure | None:
    """Time of a step."""

    def from_zero(axis: Any) -> None:
        axis.set_ylim(bottom=0)

    return _curves("seconds", "Time of a step", "seconds", runs, "seconds", what="", change=from_zero)


def tokens(runs: Sequence[Run]) -> Figure | None:
    """Throughput."""

    def from_zero(axis: Any) -> None:
        axis.set_ylim(bottom=0)

    return _curves(
        "tokens", "Throughput", "tokens a second", runs, "tokens_per_second", what="", change=from_zero
    )


def rate(runs: Sequence[Run]) -> Figure | None:
    """Learning rate."""
    return _curves("rate", "Learning rate", "", runs, "lr", what="")


def norm(runs: Sequence[Run]) -> Figure | None:
    """Norm of all gradients together."""
    return _curves("norm", "Norm of the gradients", "", runs, "grad_norm", what="")


def slopes(runs: Sequence[Run]) -> Figure | None:
    """Projected gradients of zeroth-order runs."""
    if not any(run.slopes is not None for run in runs):
        return None
    d = Drawing("slopes")
    for i, run in enumerate(runs):
        if run.slopes is not None:
            d.axes[0].plot(
                *thin(run.slopes),
                color=SERIES[i],
                linestyle="",
                marker=".",
                markersize=3,
                label=_label(runs, run, ""),
            )
    d.axes[0].axhline(0, color=MUTED, linewidth=0.7)
    _finish(d.axes[0], "slope along a direction", count=len(runs), legend=len(runs) > 1)
    return "Projected gradients", d.svg("Projected gradients by step")


def spectrum(run: Run) -> Figure | None:
    """Eigenvalues of spectrum.json: the share above each, from Lanczos nodes and weights."""
    nodes, weights = _nodes(run.curvature.get("spectrum"))
    if not len(nodes):
        return None
    low, high = float(nodes.min()), float(nodes.max())
    width = max(high - low, 1e-12)
    x = np.linspace(low - 0.02 * width, high + 0.02 * width, 600)
    sigma = width / 150
    density = np.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        density += weight * np.exp(-0.5 * ((x - node) / sigma) ** 2)
    density /= sigma * np.sqrt(2 * np.pi)
    d = Drawing("spectrum")
    axis = d.axes[0]
    axis.fill_between(x, np.maximum(density, 1e-12), 1e-12, color=SERIES[0], alpha=0.8, linewidth=0)
    axis.set_yscale("log")
    axis.set_ylim(bottom=max(float(density[density > 0].min(initial=1.0)), float(density.max()) * 1e-7))
    for value in _numbers(run.curvature.get("top"), "values")[:16]:
        axis.axvline(value, color=SERIES[1], linewidth=0.9)
    axis.set_xlabel(
        "eigenvalue (lines: the largest, searched for)" if run.curvature.get("top") else "eigenvalue"
    )
    axis.set_ylabel("density")
    return "Spectrum of the curvature", d.svg("Density of the eigenvalues of the curvature")


def _numbers(values: Any, key: str) -> list[float]:
    found = values.get(key) if isinstance(values, dict) else None
    return [n for v in found if (n := finite(v)) is not None] if isinstance(found, list) else []


def _nodes(values: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of all probes; empty unless they are matrices of one shape."""
    none = np.zeros(0), np.zeros(0)
    if not isinstance(values, dict):
        return none
    try:
        nodes, weights = (np.asarray(values[k], dtype=np.float64) for k in ("nodes", "weights"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return none
    if nodes.ndim != 2 or nodes.shape != weights.shape or not 0 < nodes.size <= 20_000:
        return none
    if not (
        np.isfinite(nodes).all()
        and np.isfinite(weights).all()
        and (weights >= 0).all()
        and np.abs(nodes).max() < 1e100
    ):
        return none
    keep = weights.ravel() > 0
    return nodes.ravel()[keep], weights.ravel()[keep] / len(nodes)


def scalar(runs: Sequence[Run], name: str, number: int) -> Figure:
    """Any number by its name."""
    d = Drawing(f"x{number}", 4.2, 2.2)
    found = _having(runs, name)
    for i, run, points in found:
        _plot(d.axes[0], points, color=SERIES[i], label=_label(runs, run, ""))
    if name.startswith("bytes/"):
        _bytes_axis(d.axes[0])
    _finish(d.axes[0], "", count=len(found), legend=len(runs) > 1)
    return name, d.svg(f"{name} by step")
