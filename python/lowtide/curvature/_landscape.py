# SPDX-License-Identifier: Apache-2.0
"""The loss on a line or a plane through the parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from lowtide.curvature import _directions
from lowtide.curvature._lanczos import eigsh
from lowtide.curvature._layout import Layout, Vector
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideTypeError, LowtideValueError

AXES = ("random", "layer", "filter", "hessian", "hessian-ends", "gradient")


class Surface(Protocol):
    """A loss as a function of parameters: what :class:`Problem` is, as far as landscapes and paths need it."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The parameters themselves."""

    def evaluate(self, tensors: Sequence[Tensor] | None = None) -> float:
        """The loss at ``tensors``, given in the layout's dtype."""

    def gradient(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """Its gradient there, flat."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """Losses ``L(theta + a d1 + b d2)`` on a grid.

    Attributes:
        losses: float64 ``(len(a), len(b))``, or ``(len(a),)`` on a line. What is not finite stays as it is.
        a, b: coordinates, float64; ``b`` is None on a line. The middle of an odd number of steps is exactly 0.
        axes: how the directions were chosen; ``"given"`` for the caller's own.
        norms: length of each direction, so that ``a * norms[0]`` is a distance in parameter space.
        eigenvalues, residuals: of the Hessian axes, else empty.
        seed: of random directions and of the Lanczos start.
    """

    losses: Tensor
    a: Tensor
    b: Tensor | None
    axes: str
    norms: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    seed: int

    @property
    def criteria(self) -> dict[str, float]:
        """``r_e = |lambda_min / lambda_max|`` (LLA, arXiv 2412.10146) of the axes ``"hessian-ends"``, else empty.

        The criterion of the whole spectrum, K_H, is in ``Spectrum.criteria()``.
        """
        if self.axes != "hessian-ends":
            return {}
        return {"r_e": abs(min(self.eigenvalues) / max(self.eigenvalues))}

    @property
    def minimum(self) -> tuple[float, tuple[float, ...]]:
        """The smallest finite loss of the grid and its coordinates; NaN where there is none."""
        finite = torch.where(self.losses.isfinite(), self.losses, torch.inf)
        at = int(finite.argmin())
        value = float(finite.reshape(-1)[at])
        if not math.isfinite(value):
            return math.nan, ()
        if self.b is None:
            return value, (float(self.a[at]),)
        return value, (float(self.a[at // len(self.b)]), float(self.b[at % len(self.b)]))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; losses that are not finite as the floats nan and inf."""
        return {
            "axes": self.axes,
            "a": self.a.tolist(),
            "b": None if self.b is None else self.b.tolist(),
            "losses": self.losses.tolist(),
            "norms": list(self.norms),
            "eigenvalues": list(self.eigenvalues),
            "residuals": list(self.residuals),
            "criteria": self.criteria,
            "seed": self.seed,
        }

    def plot(
        self, path: str | os.PathLike[str], *, title: str | None = None, cap: float | None = None
    ) -> Path:
        """Draw contours and the surface, or the line, into a .png, .svg or .pdf; losses above ``cap`` are cut off.

        Returns the path. Points that are not finite are marked.

        Raises:
            LowtideImportError: matplotlib is not installed. LowtideValueError: another suffix, or no finite loss.
        """
        from lowtide.curvature import _landscape_plot

        return _landscape_plot.plot(self, Path(path), title, cap)

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.losses.shape)
        bad = int((~self.losses.isfinite()).sum())
        value, at = self.minimum
        where = ", ".join(f"{x:.3g}" for x in at)
        tail = f", {bad} points not finite" if bad else ""
        return f"Landscape({self.axes}, {shape} points, minimum {value:.6g} at ({where}){tail})"


def landscape(
    problem: Surface | LinearOperator,
    *,
    axes: str | Sequence[Vector] = "filter",
    dims: int = 2,
    steps: int = 41,
    span: float | tuple[float, float] = 1.0,
    vectors: str = "zero",
    seed: int = 0,
    progress: bool = False,
) -> Landscape:
    """The loss on a line or a plane through the parameters. The model is not written.

    Needs memory for the directions and two more vectors of ``n`` numbers, and evaluates the loss ``steps ** dims`` times.

    Args:
        problem: a :class:`Problem`, or a :class:`HessianOperator`, which the Hessian axes take their products from.
        axes: directions d1, d2:
            ``"filter"``: Gaussian, each slice ``d[i]`` of a weight as long as ``w[i]`` (Li et al. 2018, §4: makes networks
            comparable whose weights differ in scale); ``"layer"``: each tensor as long as its parameter; ``"random"``:
            each direction as long as all parameters together;
            ``"hessian"``: the eigenvectors of the largest eigenvalues; ``"hessian-ends"``: of the largest and of the smallest
            (a saddle shows); ``"gradient"``: along the gradient, and a random direction at right angles to it. These have
            length 1: coordinates are distances.
            Or your own: a sequence of one or two vectors, each flat ``(n,)``, or a list or dict of tensors; used as they are.
        dims: 1 or 2; for your own directions their number.
        steps: points along each axis, 2 or more; an odd number has the parameters themselves in the middle.
        span: coordinates go from -span to span; a pair gives each axis its own.
        vectors: under ``"filter"`` and ``"layer"``, what biases and scales of norms do: ``"zero"`` stay, ``"copy"`` the
            direction is the parameter itself, ``"scale"`` like the others.
        seed: of random directions and of the Lanczos start.
        progress: show a tqdm bar.

    Returns:
        :class:`Landscape`.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.
    """
    surface = cast(Surface, getattr(problem, "problem", problem))
    if not hasattr(surface, "evaluate"):
        raise LowtideTypeError(
            f"problem must be a Problem or an operator made from one, got {type(problem).__name__}; "
            "make one with lowtide.curvature.Problem(model, params, data, loss_fn)"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise LowtideValueError(f"steps must be an integer of 2 or more, got {steps!r}")
    if vectors not in ("zero", "copy", "scale"):
        raise LowtideValueError(f"vectors must be 'zero', 'copy' or 'scale', got {vectors!r}")
    if not isinstance(axes, str):
        dims = len(axes)
    if dims not in (1, 2):
        raise LowtideValueError(f"axes and dims: a landscape has 1 or 2 directions, got {dims!r}")
    spans = _spans(span, dims)
    name = axes if isinstance(axes, str) else "given"
    eigenvalues: tuple[float, ...] = ()
    residuals: tuple[float, ...] = ()
    if name in ("hessian", "hessian-ends"):
        directions, eigenvalues, residuals = _eigenvectors(problem, name, dims, seed, progress)
    elif isinstance(axes, str):
        directions = _drawn(surface, axes, dims, vectors, seed)
    else:
        directions = [surface.layout.flatten(d, f"axes[{i}]") for i, d in enumerate(axes)]
    grid = [coordinates(steps, s) for s in spans]
    losses = _evaluate(surface, directions, grid, progress)
    return Landscape(
        losses,
        torch.tensor(grid[0], dtype=torch.float64),
        torch.tensor(grid[1], dtype=torch.float64) if dims == 2 else None,
        name,
        tuple(float(d.double().norm()) for d in directions),
        eigenvalues,
        residuals,
        seed,
    )


def coordinates(steps: int, span: float) -> list[float]:
    """``steps`` numbers from -span to span, symmetric, with an exact 0 in the middle of an odd number."""
    return [span * (2 * i - (steps - 1)) / (steps - 1) for i in range(steps)]


def _spans(span: float | tuple[float, float], dims: int) -> list[float]:
    spans = [span] * dims if isinstance(span, (int, float)) else list(span)
    if len(spans) != dims or not all(math.isfinite(s) and s > 0 for s in spans):
        raise LowtideValueError(
            f"span must be positive, one number or one for each of {dims} axes, got {span!r}"
        )
    return [float(s) for s in spans]


def _drawn(surface: Surface, axes: str, dims: int, vectors: str, seed: int) -> list[Tensor]:
    layout = surface.layout
    if axes in ("random", "layer", "filter"):
        norm = "model" if axes == "random" else axes
        tensors = list(surface.tensors)
        return [
            _directions.rescale_(layout, _directions.gaussian(layout, seed, k), tensors, norm, vectors)
            for k in range(dims)
        ]
    if axes != "gradient":
        raise LowtideValueError(f"axes must be one of {', '.join(AXES)}, or one or two vectors, got {axes!r}")
    gradient = layout.flatten(surface.gradient())
    length = float(gradient.double().norm())
    if not length or not math.isfinite(length):
        raise LowtideValueError(f"axes='gradient': the gradient here has norm {length}; choose other axes")
    directions = [gradient / length]
    if dims == 2:
        directions.append(_directions.orthogonal_(_directions.gaussian(layout, seed, 0), gradient))
    return directions


def _eigenvectors(
    operator: Surface | LinearOperator, axes: str, dims: int, seed: int, progress: bool
) -> tuple[list[Tensor], tuple[float, ...], tuple[float, ...]]:
    if not isinstance(operator, LinearOperator):
        raise LowtideTypeError(
            f"axes={axes!r} needs products with the Hessian: pass the HessianOperator in place of its problem"
        )
    if axes == "hessian-ends" and dims != 2:
        raise LowtideValueError(
            f"axes='hessian-ends' has 2 directions, got dims={dims}; use 'hessian' for one"
        )
    found = eigsh(
        operator, dims, which="BE" if axes == "hessian-ends" else "LA", seed=seed, progress=progress
    )
    order = sorted(range(dims), key=lambda i: -float(found.values[i]))
    return (
        [found.vectors[:, i].contiguous() for i in order],
        tuple(float(found.values[i]) for i in order),
        tuple(float(found.residuals[i]) for i in order),
    )


def _evaluate(
    surface: Surface, directions: Sequence[Tensor], grid: Sequence[Sequence[float]], progress: bool
) -> Tensor:
    """Losses over the grid. A row's origin ``theta + a d1`` is made once, so that a point costs one pass over ``n``."""
    layout = surface.layout
    losses = torch.empty([len(g) for g in grid], dtype=torch.float64)
    theta = layout.flatten(list(surface.tensors), "the parameters")
    row, point = torch.empty_like(theta), torch.empty_like(theta)
    second = grid[1] if len(grid) == 2 else None
    with progress_bar(progress, losses.numel(), "landscape", unit="point") as bar:
        for i, a in enumerate(grid[0]):
            torch.add(theta, directions[0], alpha=a, out=row)
            if second is None:
                losses[i] = surface.evaluate(layout.views(row))
                bar.update()
                continue
            for j, b in enumerate(second):
                torch.add(row, directions[1], alpha=b, out=point)
                losses[i, j] = surface.evaluate(layout.views(point))
                bar.update()
    return losses
