# SPDX-License-Identifier: Apache-2.0
"""The loss between two solutions: barriers on the straight line, curves around them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._landscape import Surface
from lowtide.curvature._layout import Vector
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideTypeError, LowtideValueError


@dataclass(frozen=True, eq=False)
class LossPath:
    """Losses on a path from the problem's parameters (t = 0) to others (t = 1).

    Attributes:
        t: float64 ``(points,)``, from 0 to 1.
        losses: float64 ``(points,)``; what is not finite stays as it is.
        curvature: float64 ``(points,)``, ``D' H(theta_t) D`` with D the whole difference; None if not asked for.
        distance: Euclidean, between the two ends.
        control: flat ``(n,)``, the middle point of a Bézier curve; None on the straight line.
    """

    t: Tensor
    losses: Tensor
    curvature: Tensor | None
    distance: float
    control: Tensor | None

    @property
    def height(self) -> float:
        """``max_t [L(t) - ((1-t) L(0) + t L(1))]``: 0 or more; inf or NaN if a loss is."""
        return float(self._excess().max())

    @property
    def at(self) -> float:
        """The t of :attr:`height`."""
        return float(self.t[int(self._excess().argmax())])

    @property
    def mode_connectivity(self) -> float:
        """``(L(0) + L(1)) / 2 - L(t*)``, t* where that is largest in size; below 0 there is a barrier (arXiv 2504.18072)."""
        mean = (self.losses[0] + self.losses[-1]) / 2
        deviation = mean - self.losses
        return float(deviation[int(deviation.abs().argmax())])

    def _excess(self) -> Tensor:
        return self.losses - ((1 - self.t) * self.losses[0] + self.t * self.losses[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without the control point."""
        return {
            "t": self.t.tolist(),
            "losses": self.losses.tolist(),
            "curvature": None if self.curvature is None else self.curvature.tolist(),
            "height": self.height,
            "at": self.at,
            "mode_connectivity": self.mode_connectivity,
            "distance": self.distance,
        }

    def plot(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Draw the losses, the line between the ends and, if known, the curvature into a .png, .svg or .pdf.

        Raises:
            LowtideImportError: matplotlib is not installed. LowtideValueError: another suffix.
        """
        from lowtide.curvature import _landscape_plot

        return _landscape_plot.plot_path(self, Path(path), title)

    def __repr__(self) -> str:
        kind = "line" if self.control is None else "Bézier curve"
        return (
            f"LossPath({kind}, {len(self.t)} points, barrier {self.height:.6g} at t = {self.at:.3g}, "
            f"mode connectivity {self.mode_connectivity:.6g}, distance {self.distance:.6g})"
        )


def barrier(
    problem: Surface,
    other: nn.Module | Vector,
    *,
    points: int = 21,
    curvature: bool = False,
    progress: bool = False,
) -> LossPath:
    """The loss on the straight line to other parameters, and how far it rises above the line between the two losses.

    Running statistics of BatchNorm are those of the problem's model all along the line; they belong to neither end.

    Args:
        problem: a :class:`Problem` at the first parameters; its model is not written.
        other: the second parameters: a model of the same kind, a flat vector ``(n,)``, or a list or dict of tensors.
        points: evaluations of the loss, 3 or more, with both ends.
        curvature: also compute ``D' H D`` at each point, by central differences of two gradients: where it is not
            negative anywhere the line cannot have a barrier ("Landscaping linear mode connectivity", arXiv 2406.16300).
        progress: show a tqdm bar.

    Returns:
        :class:`LossPath`.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.
    """
    times = _times(points)
    start, delta, distance = _ends(problem, other)
    losses = torch.empty(points, dtype=torch.float64)
    bends = torch.empty(points, dtype=torch.float64) if curvature else None
    scratch = torch.empty_like(start)
    with progress_bar(progress, points, "line", unit="point") as bar:
        for i, t in enumerate(times):
            _line(start, delta, t, scratch)
            losses[i] = problem.evaluate(problem.layout.views(scratch))
            if bends is not None:
                bends[i] = _second_derivative(problem, start, delta, distance, t, scratch)
            bar.update()
    return LossPath(torch.tensor(times, dtype=torch.float64), losses, bends, distance, None)


def bezier(
    problem: Surface,
    other: nn.Module | Vector,
    *,
    steps: int = 100,
    lr: float = 0.05,
    momentum: float = 0.9,
    points: int = 61,
    seed: int = 0,
    progress: bool = False,
) -> LossPath:
    """A curve of low loss to other parameters: quadratic Bézier, its middle point trained (Garipov et al. 2018, §3).

    Minimizes ``E_t L((1-t)^2 theta0 + 2 t (1-t) c + t^2 theta1)`` over c, t uniform in [0, 1], by SGD with momentum from the
    middle of the straight line; each step takes one gradient over the problem's data. Needs four vectors of ``n``.

    Args:
        problem: a :class:`Problem` at the first parameters; its model is not written.
        other: the second parameters, as :func:`barrier` takes them.
        steps: updates of the middle point; 0 gives the straight line.
        lr, momentum: of SGD on the middle point.
        points: evaluations along the finished curve, 3 or more.
        seed: of the times drawn.
        progress: show a tqdm bar.

    Returns:
        :class:`LossPath`, its ``control`` the middle point.
    """
    times = _times(points)
    if steps < 0:
        raise LowtideValueError(f"steps must be 0 or more, got {steps}")
    if not (math.isfinite(lr) and lr > 0):
        raise LowtideValueError(f"lr must be positive, got {lr!r}")
    if not 0 <= momentum < 1:
        raise LowtideValueError(f"momentum must be in [0, 1), got {momentum!r}")
    layout = problem.layout
    start, delta, distance = _ends(problem, other)
    control = start + 0.5 * delta
    velocity, scratch = torch.zeros_like(start), torch.empty_like(start)

    def point(t: float) -> list[Tensor]:
        # In terms of the difference, so that the ends are exact.
        torch.add(start, delta, alpha=t * t, out=scratch)
        scratch.add_(control - start, alpha=2 * t * (1 - t))
        return layout.views(scratch)

    generator = torch.Generator().manual_seed(seed)
    with progress_bar(progress, steps + points, "curve", unit="point") as bar:
        for _ in range(steps):
            t = float(torch.rand((), generator=generator, dtype=torch.float64))
            gradient = layout.flatten(problem.gradient(point(t)))
            velocity.mul_(momentum).add_(gradient, alpha=2 * t * (1 - t))
            control.add_(velocity, alpha=-lr)
            bar.update()
        losses = torch.empty(points, dtype=torch.float64)
        for i, t in enumerate(times):
            losses[i] = problem.evaluate(point(t))
            bar.update()
    return LossPath(torch.tensor(times, dtype=torch.float64), losses, None, distance, control)


def _times(points: int) -> list[float]:
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LowtideValueError(f"points must be an integer of 3 or more, got {points!r}")
    return [i / (points - 1) for i in range(points)]


def _ends(problem: Surface, other: nn.Module | Vector) -> tuple[Tensor, Tensor, float]:
    """The first parameters, the difference to the second, and its length."""
    layout = problem.layout
    if isinstance(other, nn.Module):
        found = dict(other.named_parameters())
        missing = [name for name in layout.names if name not in found]
        if missing:
            raise LowtideValueError(f"other has no parameter {missing[0]!r}; give a model of the same kind")
        other = {name: found[name] for name in layout.names}
    if not isinstance(other, (Tensor, Mapping, Sequence)):
        raise LowtideTypeError(
            f"other must be a model, a flat tensor, or a list or dict of tensors, got {type(other).__name__}"
        )
    start = layout.flatten(list(problem.tensors), "the parameters")
    delta = layout.flatten(other, "other") - start
    return start, delta, float(delta.double().norm())


def _line(start: Tensor, delta: Tensor, t: float, out: Tensor) -> None:
    torch.add(start, delta, alpha=t, out=out)


def _second_derivative(
    problem: Surface, start: Tensor, delta: Tensor, distance: float, t: float, scratch: Tensor
) -> float:
    """``D' H D`` at t: two slopes along D, a fixed distance in parameter space apart."""
    if not distance:
        return 0.0
    h = (6e-6 if start.dtype == torch.float64 else 5e-3) / distance
    slopes = []
    for at in (t + h, t - h):
        _line(start, delta, at, scratch)
        gradient = problem.layout.flatten(problem.gradient(problem.layout.views(scratch)))
        slopes.append(float(gradient.double() @ delta.double()))
    return (slopes[0] - slopes[1]) / (2 * h)
