# SPDX-License-Identifier: Apache-2.0
"""The figure of a quantization report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.errors import LowtideImportError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.quant._report import Report

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#1f5a99", "#c8501e", "#3f8f4f", "#8a5aa8", "#c79a1b", "#4fb0c6", "#8c564b", "#777777")
#: Up to so many layers have their names on the axis.
_NAMED = 24


def pyplot() -> Any:
    """matplotlib, drawing to files. Raises LowtideImportError."""
    try:
        import matplotlib
    except ImportError:
        raise LowtideImportError("plot needs matplotlib; run: pip install 'lowtide[demo]'") from None
    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    return pyplot


def kinds(layers: Sequence[Any]) -> dict[str, list[int]]:
    """Indices of layers by the last part of their ``name``, in order of appearance; the eighth kind holds all further ones."""
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        kind = layer.name.rsplit(".", 1)[-1]
        if kind.isdigit() or not kind:
            kind = "layer"
        if kind not in found and len(found) >= len(COLOURS) - 1:
            kind = "other"
        found.setdefault(kind, []).append(i)
    return found


def plot(report: Report, path: Path, title: str | None) -> Path:
    """See :meth:`Report.plot`."""
    if path.suffix.lower() not in SUFFIXES:
        raise LowtideValueError(f"path: got {str(path)!r}, takes a file name ending in {', '.join(SUFFIXES)}")
    layers = [r for r in report.layers if r.error is not None]
    if not layers:
        raise LowtideValueError(
            "report has no errors to plot: pass reference= to lt.quant.report, or quantize within lt.quant.recording()"
        )
    plt = pyplot()
    named = len(layers) <= _NAMED
    figure, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(9.5, 6.2 if named else 5.4),
        height_ratios=(3, 1),
        sharex=True,
        layout="constrained",
        dpi=150,
    )
    for (kind, members), colour in zip(kinds(layers).items(), COLOURS, strict=False):
        good = [
            (i, e.sqnr, e.worst_sqnr) for i in members if (e := layers[i].error) and math.isfinite(e.sqnr)
        ]
        for i, mean, low in good if named else ():  # many stems would hide the dots
            if math.isfinite(low):
                top.plot([i, i], [low, mean], color=colour, linewidth=0.8, alpha=0.45)
        top.plot(
            [i for i, _, _ in good], [y for _, y, _ in good], "o", color=colour, markersize=4.5, label=kind
        )
        low_points = [(i, y) for i, _, y in good if math.isfinite(y)]
        top.plot(
            *zip(*low_points, strict=True) if low_points else ([], []),
            "_",
            color=colour,
            markersize=5,
            markeredgewidth=1.4,
        )
        bottom.plot(members, [layers[i].bits_per_weight for i in members], "o", color=colour, markersize=3)
    if report.sqnr is not None and math.isfinite(report.sqnr):
        top.axhline(report.sqnr, color="#444444", linewidth=0.9, linestyle="--", zorder=0)
    top.set_ylabel("SQNR (dB): layer (dot), worst group (bar)")
    what = f"{len(layers)} layers, {report.bits_per_weight:.3f} bits a weight"
    if report.sqnr is not None and math.isfinite(report.sqnr):
        what += f", {report.sqnr:.2f} dB together (dashed)"
    top.set_title(title or what, loc="left", fontsize=10)
    if len(kinds(layers)) > 1:
        top.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    bottom.set_ylabel("bits a weight")
    bits = [r.bits_per_weight for r in layers]
    spread = max(max(bits) - min(bits), 0.2)
    bottom.set_ylim(min(bits) - 0.35 * spread, max(bits) + 0.35 * spread)
    if named:
        names = [r.name or "(model)" for r in layers]
        turn = {"rotation": 60, "ha": "right"} if max(map(len, names)) > 3 else {}
        bottom.set_xticks(range(len(layers)), names, fontsize=7, **turn)
    else:
        bottom.set_xlabel("layer, in the order of the model")
    for axis in (top, bottom):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    return path
