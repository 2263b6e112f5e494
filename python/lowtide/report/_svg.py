# SPDX-License-Identifier: Apache-2.0
"""Figures as SVG that takes the page's colours and fonts, for light and dark alike."""

from __future__ import annotations

import io
import re
from typing import Any

#: Stand-ins for the page's colours: matplotlib knows no CSS variables.
INK, MUTED, GRID = "#010201", "#010202", "#010203"
SERIES = tuple(f"#0103{i:02x}" for i in range(1, 9))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{c: f"s{i}" for i, c in enumerate(SERIES, start=1)}}
_RC: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif", "font.size": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.titlecolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID,
    "grid.linewidth": 0.7, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5,
    "legend.labelcolor": INK, "axes.linewidth": 0.7, "lines.linewidth": 1.6, "path.simplify": True,
    "axes.formatter.useoffset": False,
}  # fmt: skip


class Drawing:
    """A figure in the making: ``axes``, and :meth:`svg` at the end."""

    def __init__(self, name: str, width: float = 5.4, height: float = 2.9, rows: int = 1) -> None:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._name = name
        self._context = matplotlib.rc_context({**_RC, "svg.hashsalt": name})
        self._context.__enter__()
        self._figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(self._figure)
        axes: Any = self._figure.subplots(rows, 1, sharex=True, squeeze=False)
        self.axes: list[Any] = list(axes[:, 0])

    def svg(self, label: str) -> str:
        """The figure as an ``<svg>`` element."""
        try:
            return self._svg(label)
        finally:
            self._context.__exit__(None, None, None)

    def _svg(self, label: str) -> str:
        from html import escape

        text = io.StringIO()
        self._figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
        svg = re.sub(
            r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>',
            rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">',
            svg,
        )
        # One document holds many figures: ids must differ.
        svg = re.sub(r'\bid="([^"]*)"', rf'id="{self._name}-\1"', svg)
        svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{self._name}-\1)", svg)
        svg = re.sub(r'(xlink:)?href="#([^"]*)"', rf'href="#{self._name}-\2"', svg)
        for colour, variable in _VARIABLES.items():
            svg = svg.replace(colour, f"var(--{variable})")
        return svg
