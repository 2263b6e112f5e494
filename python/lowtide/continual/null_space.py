# SPDX-License-Identifier: Apache-2.0
"""Null spaces of the covariance of a layer's inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowtide.continual._layers import Forward, Patterns
from lowtide.continual._memory import Memory, check_finite, spectrum
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.constraints import NullSpace, Projection


class _Covariance(Memory):
    """Keeps the mean of x xᵀ over all inputs of all tasks; updates go through ``P = B Bᵀ`` of its smallest eigenvectors B.

    What is kept is d x d float64 a layer: the choice hangs on the smallest eigenvalues, which float32 would round away.
    """

    def __init__(self, model: nn.Module, *, normalize: bool, layers: Patterns) -> None:
        super().__init__(model, layers)
        self.normalize = normalize
        self.covariances: dict[str, Tensor] = {}
        self.rows = dict.fromkeys(self.layers, 0)
        self._chosen: NullSpace | None = None

    def learn(self, batches: Iterable[Any], forward: Forward | None = None) -> dict[str, int]:
        """Remember the inputs of a task that was just trained; arguments and errors as :meth:`GPM.learn`.

        Returns:
            By layer, how many directions are protected now.
        """
        for name, (gram, rows) in self._grams(batches, forward).items():
            before = self.rows[name]
            mean = gram / max(rows, 1)
            old = self.covariances.get(name)
            share = rows / max(before + rows, 1)
            self.covariances[name] = mean if old is None else old + share * (mean - old)
            self.rows[name] = before + rows
        self.tasks += 1
        self._chosen = None
        return {name: self._protected(name).shape[0] for name in self.layers}

    @abstractmethod
    def _first_free(self, values: Tensor) -> int:
        """How many of the eigenvalues (largest first) belong to protected directions."""

    def _protected(self, name: str) -> Tensor:
        values, vectors = spectrum(self.covariances[name])
        return vectors[: self._first_free(values)]

    def constraint(self) -> NullSpace:
        """See :class:`Memory`. Computed once a task."""
        if self._chosen is None:
            bases = {}
            for name in self.covariances:
                basis = self._protected(name).float()
                free = basis.shape[1] - basis.shape[0]
                scale = free**-0.5 if self.normalize and free else 1.0
                bases[self.layers[name].weight] = Projection(basis, scale=scale)
            self._chosen = NullSpace(bases)
        return self._chosen

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's ``covariance`` (d x d float64) and ``rows`` (how many inputs went into it)."""
        found = {f"{name}.covariance": c for name, c in self.covariances.items()}
        return {**found, **{f"{name}.rows": torch.tensor(self.rows[name]) for name in self.covariances}}

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        covariances: dict[str, Tensor] = {}
        rows = dict.fromkeys(self.layers, 0)
        for name, layer in self.layers.items():
            d = layer.features
            c, n = tensors.get(f"{name}.covariance"), tensors.get(f"{name}.rows")
            if c is None and n is None and tasks == 0:
                continue
            if c is None or c.dtype != torch.float64 or tuple(c.shape) != (d, d):
                found = "nothing" if c is None else f"{c.dtype} {tuple(c.shape)}"
                raise LowtideValueError(
                    f"state_dict['{name}.covariance'] must be float64 of shape ({d}, {d}), got {found}"
                )
            if n is None or n.numel() != 1 or n.is_floating_point() or int(n) < 0:
                raise LowtideValueError(f"state_dict['{name}.rows'] must be one integer >= 0")
            covariances[name], rows[name] = c, int(n)
        self.covariances, self.rows, self.tasks, self._chosen = covariances, rows, tasks, None


class AdamNSCL(_Covariance):
    """Null space of the feature covariance (Wang et al., CVPR 2021, algorithm 1): the update of any rule is projected onto the
    eigenvectors whose eigenvalue is at most ``ratio`` times the smallest.

    Args:
        model, layers: as in :class:`GPM`.
        ratio: the paper's a, >= 1: 10 to 30 in its experiments. Inputs that leave directions unused have eigenvalues of
            zero: then those, and what round-off makes of them (1e-12 of the largest), are the null space.
        normalize: divide the projection by its Frobenius norm, as the authors' code does: with k free directions the step
            is ``sqrt(k)`` times smaller.
    """

    def __init__(
        self, model: nn.Module, ratio: float = 10.0, *, normalize: bool = False, layers: Patterns = None
    ) -> None:
        super().__init__(model, normalize=normalize, layers=layers)
        check_finite(ratio, "ratio", 1.0)
        self.ratio = ratio

    def _first_free(self, values: Tensor) -> int:
        least = max(float(values[-1]), 1e-12 * float(values[0]) / self.ratio)
        return int((values > self.ratio * least).sum())


class NSGP(_Covariance):
    """Null space at the elbow of the spectrum (NSGP of NSGP-RePRE, arXiv 2502.05540): the projection of Adam-NSCL, free from
    where the eigenvalues bend most.

    The elbow is the largest second difference of the eigenvalues, from 128 on smoothed (Gaussian, sigma 10) and without 3 % of
    them at the ends, as in the authors' code.

    Args:
        model, normalize, layers: as in :class:`AdamNSCL` (the authors normalize in the backbone only).
        offset: moves the elbow: by that share of its index if within [-1, 1], else by that many eigenvalues. Above zero protects
            more.
    """

    def __init__(
        self, model: nn.Module, offset: float = 0.0, *, normalize: bool = False, layers: Patterns = None
    ) -> None:
        super().__init__(model, normalize=normalize, layers=layers)
        if not isinstance(offset, (int, float)) or not np.isfinite(offset):
            raise LowtideTypeError(f"offset must be a finite number, got {offset!r}")
        self.offset = offset

    def _first_free(self, values: Tensor) -> int:
        return elbow(values.numpy(), self.offset)


def elbow(values: np.ndarray[Any, np.dtype[np.float64]], offset: float = 0.0) -> int:
    """Index of the bend in ``values`` (descending): see :class:`NSGP`."""
    n = len(values)
    if n < 3:
        return 0
    smooth = values
    cut = 0
    if n >= 128:
        reach = np.arange(-40, 41)
        kernel = np.exp(-0.5 * (reach / 10.0) ** 2)
        smooth = np.convolve(np.pad(values, 40, mode="symmetric"), kernel / kernel.sum(), mode="valid")
        cut = int(n * 0.03 / 2)
    bends = np.diff(smooth, 2)[cut : n - 2 - cut]
    at = int(np.argmax(bends)) + (n - len(bends)) // 2
    at = int(np.flatnonzero(values >= values[at]).max())  # equal eigenvalues stay together
    at += int(offset * at) if -1.0 <= offset <= 1.0 else int(offset)
    return max(0, min(at, n - 1))
