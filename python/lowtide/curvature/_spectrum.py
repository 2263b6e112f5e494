# SPDX-License-Identifier: Apache-2.0
"""A spectral density as nodes and weights, and the numbers that are read from it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._confidence import SKEW, student_quantile
from lowtide.errors import LowtideTypeError, LowtideValueError

#: Nodes closer than this share of the range are copies of one eigenvalue.
_COPIES = 1e-5
#: A Ritz value stands apart if its residual is below this share of the distance to the next one.
_APART = 0.1
_MAX_NODES = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A mean over probes.

    Attributes:
        value: the mean.
        stderr: its standard error; inf with one probe.
        ci: the interval that holds the truth with the chosen confidence: Student's t, widened for skewed samples.
    """

    value: float
    stderr: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Criteria:
    """How far a minimum is from convex (Gabdullin 2024, arXiv 2412.10146).

    Attributes:
        r_e: \\|smallest / largest eigenvalue\\|.
        k_h: sum over negative nodes of \\|node weight\\|^n by that over positive ones, n = 0.5; mean over probes.
    """

    r_e: float
    k_h: float


@dataclass(frozen=True)
class Outliers:
    """Eigenvalues that stand apart from the bulk (Sagun et al. 2017, arXiv 1706.04454).

    Attributes:
        values: from the outermost to the innermost, medians over the probes that resolved them.
        edge: the outermost node of the bulk, median over probes.
    """

    values: tuple[float, ...]
    edge: float


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The distribution of ``n`` eigenvalues, as one quadrature a probe.

    Attributes:
        nodes: float64 ``(probes, steps)``, rising; rows that ended early are padded with nodes of weight 0.
        weights: float64 ``(probes, steps)``, each row sums to 1.
        errors: float64 ``(probes, steps)``: residuals; some eigenvalue lies within ``errors`` of the node.
        n: size of the operator.
    """

    nodes: Tensor
    weights: Tensor
    errors: Tensor
    n: int

    def __repr__(self) -> str:
        low, high = self.bounds
        return (
            f"Spectrum({self.n} eigenvalues in [{low:.4g}, {high:.4g}], trace {self.trace_of(lambda t: t).value:.5g}, "
            f"{self.negative_mass(-self.near_zero()):.2%} clearly negative; {self.nodes.shape[0]} probes of {self.nodes.shape[1]} steps)"
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest node: within the spectrum, and near its ends."""
        used = self.nodes[self.weights > 0]
        return float(used.min()), float(used.max())

    def sigma(self) -> float:
        """The width of the kernel that fits the number of nodes: a share ``2 / ((steps - 1) sqrt(8 ln 3))`` of half the range
        with 5 % of margin (Papyan 2019).
        """
        low, high = self.bounds
        if high == low:
            return max(abs(high), 1.0) * 1e-3
        return 0.5 * (high - low) * 1.05 * 2 / (max(1, self.nodes.shape[1] - 1) * math.sqrt(8 * math.log(3)))

    def density(
        self, grid: Tensor | None = None, sigma: float | None = None, *, points: int = 1024
    ) -> tuple[Tensor, Tensor]:
        """The density smoothed by a Gaussian: ``(t, phi)``, float64; phi integrates to 1.

        Args:
            grid: where to evaluate; ``points`` from 5 ``sigma`` below the smallest node to 5 above the largest if left out.
            sigma: width of the kernel; :meth:`sigma` if left out.
            points: of the default grid.
        """
        sigma = self.sigma() if sigma is None else sigma
        if not (math.isfinite(sigma) and sigma > 0):
            raise LowtideValueError(f"sigma must be a number above 0, got {sigma}")
        if grid is None:
            low, high = self.bounds
            grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, points, dtype=torch.float64)
        t = torch.as_tensor(grid, dtype=torch.float64).reshape(-1)
        phi = torch.zeros_like(t)
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            phi += torch.exp(-0.5 * ((t[:, None] - nodes) / sigma) ** 2) @ weights
        return t, phi / (len(self.nodes) * sigma * math.sqrt(2 * math.pi))

    def cdf(self, t: Tensor | float) -> Tensor:
        """The share of eigenvalues <= ``t``, float64 in the shape of ``t``; mean over probes."""
        at = torch.as_tensor(t, dtype=torch.float64)
        share = torch.zeros_like(at)
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            below = torch.cat([torch.zeros(1, dtype=torch.float64), weights[nodes.argsort()].cumsum(0)])
            share += below[torch.searchsorted(nodes.sort().values, at, right=True)]
        return share / len(self.nodes)

    def trace_of(self, f: Callable[[Tensor], Tensor], *, confidence: float = 0.95) -> Estimate:
        """``tr f(H)`` for a function that takes a float64 tensor to one of its shape, with its error bar over probes."""
        if not 0 < confidence < 1:
            raise LowtideValueError(f"confidence must lie between 0 and 1, got {confidence}")
        values = torch.as_tensor(f(self.nodes), dtype=torch.float64).expand_as(self.nodes)
        # f may have a pole where a padded node lies
        terms = torch.where(self.weights > 0, self.weights * values, 0.0)
        sums = self.n * terms.sum(1)
        value, count = float(sums.mean()), len(sums)
        if count < 2:
            return Estimate(value, math.inf, (-math.inf, math.inf))
        stderr = float(sums.std()) / math.sqrt(count)
        half = student_quantile(confidence, count - 1) * stderr * (1 + SKEW / count)
        return Estimate(value, stderr, (value - half, value + half))

    def bulk_mass(self, eps: float) -> float:
        """The share of eigenvalues with ``|t| < eps``."""
        return self._mass(self.nodes.abs() < eps)

    def negative_mass(self, below: float = 0.0) -> float:
        """The share of eigenvalues under ``below``.

        Of networks most eigenvalues are zero, and half of those come out negative by rounding: ``below=-near_zero()`` counts the others.
        """
        return self._mass(self.nodes < below)

    def near_zero(self) -> float:
        """A thousandth of the largest magnitude: nodes within are zero as far as a picture can tell."""
        return 1e-3 * max(abs(bound) for bound in self.bounds)

    def effective_rank(self) -> float:
        """``tr(H)**2 / tr(H**2)``: how many equal eigenvalues would have these two sums; 0 of a zero operator."""
        first = float((self.weights * self.nodes).sum()) / len(self.nodes)
        second = float((self.weights * self.nodes**2).sum()) / len(self.nodes)
        return self.n * first**2 / second if second > 0 else 0.0

    def criteria(self, n: float = 0.5) -> Criteria:
        """The two criteria of Loss Landscape Analysis; inf where nothing is positive."""
        low, high = self.bounds
        mass = self.nodes * self.weights
        negative = (mass.clamp(max=0).abs() ** n).sum(1)
        positive = (mass.clamp(min=0) ** n).sum(1)
        return Criteria(
            abs(low / high) if high != 0 else math.inf,
            float((negative / positive).mean()) if bool((positive > 0).all()) else math.inf,
        )

    def outliers(self, side: str = "high") -> Outliers:
        """The eigenvalues at one end that most probes resolved: those whose residual is below a tenth of the distance
        to their neighbour. In the bulk eigenvalues are closer than Lanczos can tell apart, and the list ends.

        How many steps were made sets what can be resolved: with as many as n, everything is.

        Args:
            side: ``high`` or ``low``.
        """
        if side not in ("high", "low"):
            raise LowtideValueError(f"side must be high or low, got {side!r}")
        sign = 1.0 if side == "high" else -1.0
        low, high = self.bounds
        near = _COPIES * (high - low)
        found, edges = [], []
        for nodes, weights, errors in zip(self.nodes, self.weights, self.errors, strict=True):
            values, errors = _distinct(sign * nodes, weights, errors, near, self.n)
            gaps = torch.cat([values[:-1] - values[1:], torch.zeros(1, dtype=torch.float64)])
            resolved = (errors <= _APART * gaps) & (gaps > 0)  # the innermost has no neighbour
            count = int(resolved.logical_not().nonzero()[0])
            # Of a value that stands apart: Kato and Temple; what a rounded basis adds averages over its n numbers.
            narrow = (errors**2 / gaps + 4 * errors / math.sqrt(self.n))[:count]
            found += list(zip(values[:count].tolist(), narrow.tolist(), strict=True))
            edges.append(float(values[count]))
        # A start can be as good as orthogonal to an eigenvector: most probes must have seen it, not all.
        agreed = [
            median(group)
            for group in _grouped(sorted(found, reverse=True), near)
            if 2 * len(group) > len(edges)
        ]
        return Outliers(tuple(sign * value for value in agreed), sign * median(edges))

    def plot(
        self, path: str | os.PathLike[str], *, title: str | None = None, sigma: float | None = None
    ) -> Path:
        """Draw the density on a logarithmic axis, with what stands apart from the bulk marked.

        Args:
            path: a file name ending in .png, .svg or .pdf.
            title: the first words of the heading.
            sigma: width of the kernel; :meth:`sigma` if left out.

        Raises:
            LowtideImportError: matplotlib is not installed.
        """
        from lowtide.curvature._spectrum_plot import plot

        return plot(self, Path(path), title, sigma)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; :meth:`from_dict` gives the same spectrum."""
        return {
            "n": self.n,
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "errors": self.errors.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spectrum:
        """What :meth:`to_dict` wrote, checked: values may come from a file."""
        if not isinstance(values, Mapping) or set(values) != {"n", "nodes", "weights", "errors"}:
            raise LowtideValueError("a spectrum holds n, nodes, weights and errors; write it with to_dict()")
        n = values["n"]
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise LowtideValueError(f"n of a spectrum must be an integer >= 1, got {n!r}")
        nodes, weights, errors = (_matrix(values[name], name) for name in ("nodes", "weights", "errors"))
        if not nodes.shape == weights.shape == errors.shape:
            raise LowtideValueError("nodes, weights and errors of a spectrum must have one shape")
        sums = weights.sum(1)
        if bool((weights < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-6):
            raise LowtideValueError("weights of a spectrum must be >= 0 and each row must sum to 1")
        return cls(nodes, weights, errors, n)

    def _mass(self, where: Tensor) -> float:
        return float(torch.where(where, self.weights, 0.0).sum()) / len(self.nodes)


def _distinct(values: Tensor, weights: Tensor, errors: Tensor, near: float, n: int) -> tuple[Tensor, Tensor]:
    """Nodes from the largest down, copies joined by their weights, and the residuals of the best of them."""
    # A copy on its way to an eigenvalue has next to no weight; an eigenvalue has about 1/n.
    used = weights > 1e-6 / n
    order = values[used].argsort(descending=True)
    v, w, e = values[used][order], weights[used][order], errors[used][order]
    first = torch.cat([torch.ones(1, dtype=torch.bool), (v[:-1] - v[1:]) > near])
    group = first.long().cumsum(0) - 1
    count = int(group[-1]) + 1
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, group, w)
    mean = torch.zeros(count, dtype=torch.float64).index_add_(0, group, v * w) / total
    least = torch.full((count,), math.inf, dtype=torch.float64).scatter_reduce_(0, group, e, "amin")
    return mean, least


def _grouped(found: list[tuple[float, float]], near: float) -> list[list[float]]:
    """Falling ``(value, error)`` cut where two neighbours are further apart than their errors allow."""
    groups: list[list[float]] = []
    last, reach = math.inf, 0.0
    for value, error in found:
        if last - value > near + reach + error:
            groups.append([])
        groups[-1].append(value)
        last, reach = value, error
    return groups


def _matrix(rows: Any, name: str) -> Tensor:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise LowtideTypeError(f"{name} of a spectrum must be a list of rows of numbers")
    width = len(rows[0])
    if width == 0 or any(len(row) != width for row in rows) or width * len(rows) > _MAX_NODES:
        raise LowtideValueError(
            f"{name} of a spectrum must have rows of one length >= 1, {_MAX_NODES} numbers at most"
        )
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for row in rows for x in row):
        raise LowtideTypeError(f"{name} of a spectrum must hold numbers only")
    matrix = torch.tensor(rows, dtype=torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise LowtideValueError(f"{name} of a spectrum must be finite")
    return matrix
