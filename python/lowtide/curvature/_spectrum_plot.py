# SPDX-License-Identifier: Apache-2.0
"""The picture of a spectrum: a logarithmic density, and what stands apart from the bulk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.errors import LowtideImportError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.curvature._spectrum import Spectrum

SUFFIXES = (".png", ".svg", ".pdf")
BULK, OUTLIER, NEGATIVE = "#1f5a99", "#c8501e", "#8a5aa8"


def pyplot() -> Any:
    """matplotlib, drawing to files. Raises LowtideImportError."""
    try:
        import matplotlib
    except ImportError:
        raise LowtideImportError("plot needs matplotlib; run: pip install 'lowtide[demo]'") from None
    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    return pyplot


def plot(spectrum: Spectrum, path: Path, title: str | None, sigma: float | None) -> Path:
    """See :meth:`Spectrum.plot`."""
    if path.suffix.lower() not in SUFFIXES:
        raise LowtideValueError(f"path: got {str(path)!r}, takes a file name ending in {', '.join(SUFFIXES)}")
    plt = pyplot()
    sigma = spectrum.sigma() if sigma is None else sigma
    t, phi = spectrum.density(sigma=sigma, points=2048)
    high, low = spectrum.outliers("high"), spectrum.outliers("low")
    # Well below the peak of a single eigenvalue there is nothing but tails of the kernel.
    floor = 0.05 / (spectrum.n * sigma * 2.5066)
    figure, axis = plt.subplots(figsize=(8.5, 4.2), layout="constrained", dpi=150)
    axis.semilogy(t, phi.clamp(min=floor), color=BULK, linewidth=1.3)
    axis.fill_between(t, floor, phi.clamp(min=floor), color=BULK, alpha=0.15, linewidth=0)
    for found, colour, name in ((high.values, OUTLIER, "above"), (low.values, NEGATIVE, "below")):
        if found:
            label = f"{len(found)} {name} the bulk: {', '.join(f'{v:.3g}' for v in found[:4])}"
            axis.plot(
                found,
                [floor * 1.4] * len(found),
                "|",
                color=colour,
                markersize=11,
                markeredgewidth=1.6,
                label=label + (", …" if len(found) > 4 else ""),
            )
    axis.axvline(0, color="#777777", linewidth=0.7, linestyle=":")
    axis.set_ylim(bottom=floor)
    axis.set_xlabel("eigenvalue")
    axis.set_ylabel("density")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if high.values or low.values:
        axis.legend(frameon=False, loc="upper right")
    trace = spectrum.trace_of(lambda x: x)
    left, right = spectrum.bounds
    axis.set_title(
        f"{title or 'Spectrum'}: {spectrum.n:,} eigenvalues in [{left:.3g}, {right:.3g}]\n"
        f"trace {trace.value:.4g} ± {trace.stderr:.2g}, {spectrum.negative_mass(-spectrum.near_zero()):.1%} clearly negative, "
        f"effective rank {spectrum.effective_rank():.3g}; {len(spectrum.nodes)} probes of {spectrum.nodes.shape[1]} steps",
        loc="left",
        fontsize=9.5,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=path.suffix[1:].lower())
    plt.close(figure)
    return path
