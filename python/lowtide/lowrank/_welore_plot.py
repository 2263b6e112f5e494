# SPDX-License-Identifier: Apache-2.0
"""The figure of a WeLore plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowtide.errors import LowtideValueError
from lowtide.quant._report_plot import COLOURS, SUFFIXES, kinds, pyplot

if TYPE_CHECKING:
    from lowtide.lowrank._welore import WeLorePlan


def plot(plan: WeLorePlan, path: Path, title: str | None) -> Path:
    """See :meth:`WeLorePlan.plot`."""
    if path.suffix.lower() not in SUFFIXES:
        raise LowtideValueError(f"path: got {str(path)!r}, takes a file name ending in {', '.join(SUFFIXES)}")
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", dpi=150)
    for (kind, members), colour in zip(kinds(plan.matrices).items(), COLOURS, strict=False):
        for i in members:
            s = plan.matrices[i].spectrum
            left.plot(np.linspace(0, 1, s.size), s, color=colour, linewidth=0.6, alpha=0.4)
        kept = [1 - plan.matrices[i].reduction for i in members]
        low = [plan.matrices[i].low_rank for i in members]
        fills = [colour if filled else "none" for filled in low]
        right.scatter(members, kept, s=18, facecolors=fills, edgecolors=colour, linewidths=0.9)
        right.plot([], [], "o", color=colour, markersize=4.5, label=kind)
    if plan.threshold is not None:
        left.axhline(plan.threshold, color="#444444", linewidth=0.9, linestyle="--")
    left.set_xlabel("index over rank")
    left.set_ylabel("singular value, scaled to [0, 1] (dashed: threshold)")
    right.set_xlabel("layer, in the order of the model")
    right.set_ylabel("rank kept (filled: factored)")
    right.set_ylim(0, 1.04)
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    left.set_title(title or f"{plan.reduction:.0%} of all singular values given up", loc="left", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    return path
