# SPDX-License-Identifier: Apache-2.0
"""Pictures of landscapes and paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowtide.errors import LowtideValueError
from lowtide.quant._report_plot import SUFFIXES, pyplot

if TYPE_CHECKING:
    from lowtide.curvature._connectivity import LossPath
    from lowtide.curvature._landscape import Landscape

_LABELS = {
    "random": "random direction {k} (1 = norm of the weights)",
    "layer": "random direction {k} (1 = norm of each tensor)",
    "filter": "random direction {k} (1 = norm of each filter)",
    "given": "direction {k}",
}
#: Beyond this ratio of the largest loss to the smallest, colours are logarithmic.
_RANGE = 50.0


def check_suffix(path: Path) -> None:
    """Refuse a file that matplotlib would not write."""
    if path.suffix.lower() not in SUFFIXES:
        raise LowtideValueError(f"path: got {str(path)!r}, takes a file name ending in {', '.join(SUFFIXES)}")


def save(plt: Any, figure: Any, path: Path) -> Path:
    """Write the figure and forget it."""
    try:
        figure.savefig(path, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    return path


def axis_label(scape: Landscape, k: int) -> str:
    """What direction ``k`` is and what one unit along it is."""
    if scape.eigenvalues:
        return f"eigenvector of $\\lambda$ = {scape.eigenvalues[k]:.4g} (distance)"
    if scape.axes == "gradient":
        return ("gradient (distance)", "random direction at right angles (distance)")[k]
    return _LABELS[scape.axes].format(k=k + 1)


def plot(scape: Landscape, path: Path, title: str | None, cap: float | None) -> Path:
    """See :meth:`Landscape.plot`."""
    check_suffix(path)
    finite = scape.losses[scape.losses.isfinite()]
    if not len(finite):
        raise LowtideValueError("no loss of this landscape is finite; choose a smaller span")
    top = float(finite.max()) if cap is None else cap
    if math.isnan(top) or top <= float(finite.min()):
        raise LowtideValueError(
            f"cap must be above the smallest loss, {float(finite.min()):.6g}, got {cap!r}"
        )
    plt = pyplot()
    draw = _line if scape.b is None else _plane
    return save(plt, draw(plt, scape, title, top), path)


def _line(plt: Any, scape: Landscape, title: str | None, top: float) -> Any:
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained", dpi=150)
    losses = torch.where(scape.losses <= top, scape.losses, torch.nan)
    axis.plot(scape.a, losses, color="#1f5a99", linewidth=1.8)
    bad = ~scape.losses.isfinite()
    if bad.any():
        axis.plot(scape.a[bad], [top] * int(bad.sum()), "x", color="#c8501e", label="not finite")
        axis.legend(frameon=False)
    if scape.eigenvalues:
        origin = float(scape.losses[len(scape.a) // 2])
        quadratic = origin + 0.5 * scape.eigenvalues[0] * scape.a.square()
        axis.plot(
            scape.a, quadratic, "--", color="#888888", linewidth=1, label="quadratic of this eigenvalue"
        )
        axis.set_ylim(float(losses[losses.isfinite()].min()) * 0.95, top * 1.05)
        axis.legend(frameon=False)
    axis.axvline(0, color="#444444", linewidth=0.8, linestyle=":")
    axis.set(xlabel=axis_label(scape, 0), ylabel="loss")
    axis.set_title(title or "Loss along a direction", loc="left", fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _plane(plt: Any, scape: Landscape, title: str | None, top: float) -> Any:
    from matplotlib import ticker
    from matplotlib.colors import LogNorm, Normalize

    assert scape.b is not None
    losses = scape.losses.T  # rows of an image run along the second axis
    bad = ~losses.isfinite()
    shown = torch.where(bad, torch.nan, losses.clamp(max=top))
    low = float(losses[~bad].min())
    logarithmic = low > 0 and top / low > _RANGE
    norm = LogNorm(low, top) if logarithmic else Normalize(low, top)
    levels = (
        torch.logspace(math.log10(low), math.log10(top), 25, dtype=torch.float64)
        if logarithmic
        else torch.linspace(low, top, 25, dtype=torch.float64)
    ).tolist()
    figure = plt.figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    flat = figure.add_subplot(1, 2, 1)
    filled = flat.contourf(scape.a, scape.b, shown, levels=levels, cmap="viridis", norm=norm)
    flat.contour(scape.a, scape.b, shown, levels=levels[::3], colors="white", linewidths=0.5, alpha=0.6)
    if bad.any():
        rows, columns = bad.nonzero(as_tuple=True)
        flat.plot(scape.a[columns], scape.b[rows], "x", color="#c8501e", markersize=3, label="not finite")
    flat.plot([0], [0], "o", color="white", markeredgecolor="black", markersize=6, label="the model")
    flat.legend(loc="upper right", fontsize=8)
    flat.set(xlabel=axis_label(scape, 0), ylabel=axis_label(scape, 1))
    bar = figure.colorbar(filled, ax=flat, label="loss" + (" (logarithmic)" if logarithmic else ""))
    if logarithmic:
        bar.locator = ticker.LogLocator(subs=(1, 2, 5))
        bar.formatter = ticker.StrMethodFormatter("{x:.3g}")
        bar.update_ticks()
    solid = figure.add_subplot(1, 2, 2, projection="3d")
    x, y = torch.meshgrid(scape.a, scape.b, indexing="xy")
    heights = shown.log10() if logarithmic else shown
    colours = plt.get_cmap("viridis")(norm(shown.numpy()))
    solid.plot_surface(
        x.numpy(),
        y.numpy(),
        heights.numpy(),
        facecolors=colours,
        rstride=1,
        cstride=1,
        linewidth=0,
        shade=True,
    )
    solid.set(
        xlabel="first axis", ylabel="second axis", zlabel="log10 of the loss" if logarithmic else "loss"
    )
    solid.zaxis.labelpad = 8
    solid.view_init(elev=32, azim=-60)
    solid.set_box_aspect(None, zoom=0.85)
    figure.suptitle(title or f"Loss on a plane: {scape.axes} axes", x=0.01, ha="left", fontsize=11)
    return figure


def plot_path(path_: LossPath, path: Path, title: str | None) -> Path:
    """See :meth:`LossPath.plot`."""
    check_suffix(path)
    plt = pyplot()
    rows = 1 if path_.curvature is None else 2
    figure, axes = plt.subplots(
        rows, 1, figsize=(6.4, 4 if rows == 1 else 5.6), sharex=True, squeeze=False, layout="constrained", dpi=150,
        height_ratios=(2, 1)[:rows],
    )  # fmt: skip
    top = axes[0, 0]
    top.plot(path_.t, path_.losses, color="#1f5a99", linewidth=1.8, marker="o", markersize=3)
    top.plot([0, 1], [path_.losses[0], path_.losses[-1]], "--", color="#888888", linewidth=1)
    if math.isfinite(path_.height) and path_.height > 0:
        base = (1 - path_.at) * float(path_.losses[0]) + path_.at * float(path_.losses[-1])
        top.plot([path_.at] * 2, [base, base + path_.height], color="#c8501e", linewidth=1.4)
        top.annotate(
            f"barrier {path_.height:.3g}", (path_.at, base + path_.height / 8), xytext=(6, 0),
            textcoords="offset points", color="#c8501e", fontsize=9, va="center",
        )  # fmt: skip
    top.set_ylabel("loss")
    top.set_title(title or "Loss between two solutions", loc="left", fontsize=10)
    if path_.curvature is not None:
        axes[1, 0].plot(path_.t, path_.curvature, color="#3f8f4f", linewidth=1.6)
        axes[1, 0].axhline(0, color="#444444", linewidth=0.8, linestyle=":")
        axes[1, 0].set_ylabel("$\\Delta^\\top H \\Delta$")
    axes[-1, 0].set_xlabel("t: 0 = first solution, 1 = second")
    for axis in axes[:, 0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return save(plt, figure, path)
