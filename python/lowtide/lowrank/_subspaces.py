# SPDX-License-Identifier: Apache-2.0
"""Ways to find a basis. One method, ``basis``; instances are immutable and hold no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import check_uint, is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.lowrank._projection import check_side, dense


def _check_count(value: Any, name: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LowtideValueError(f"{name} must be an integer >= {least}, got {value!r}")


def _matrix(G: Any) -> Any:
    if not is_torch(G) and not isinstance(G, np.ndarray):
        raise LowtideTypeError(f"G must be a NumPy array or a torch tensor, got {type(G).__name__}")
    if len(G.shape) != 2:
        raise LowtideValueError(f"G must have two dimensions, got shape {tuple(G.shape)}")
    if not is_torch(G) and G.dtype != np.float32:
        raise LowtideTypeError(
            f"G must have dtype float32, got {G.dtype}; convert it with .astype(np.float32)"
        )
    return G


@dataclass(frozen=True)
class SVD:
    """The exact leading singular vectors by LAPACK: GaLore's projector, and the reference for the others.

    Args:
        rank: rows of the basis, >= 1; clamped to min(m, n).
    """

    rank: int

    def __post_init__(self) -> None:
        _check_count(self.rank, "rank", 1)

    def basis(
        self, G: Any, *, side: str, prev: Any = None, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """Orthonormal basis of ``G``, float32, r x d, in the order of singular values.

        ``prev``, ``seed``, ``step`` and ``param`` are accepted for the common interface and not used.
        """
        check_side(side)
        G = _matrix(G)
        if is_torch(G):
            import torch

            G = G.detach().float()
            if not bool(torch.isfinite(G).all()):
                raise LowtideValueError("G is not finite: it holds inf or NaN; skip this step")
            u, _, vh = torch.linalg.svd(G, full_matrices=False)
            return (vh[: self.rank] if side == "right" else u[:, : self.rank].T).contiguous()
        if not np.isfinite(G).all():
            raise LowtideValueError("G is not finite: it holds inf or NaN; skip this step")
        u, _, vh = np.linalg.svd(G, full_matrices=False)
        return np.ascontiguousarray(vh[: self.rank] if side == "right" else u[:, : self.rank].T)


@dataclass(frozen=True)
class RandomizedSVD:
    """Randomized range finder (Halko, Martinsson and Tropp 2011; GaLore 2, arXiv 2504.20437), native.

    The sketch is random but has an address, so every replica finds the same basis. Where the other side of G
    is four times ``rank`` or longer, it is taken from G folded along that side (Clarkson and Woodruff 2013, arXiv
    1207.6365), at a fraction of the cost.

    With a previous basis and ``warm_start``, subspace iterations start there: one if it still holds nine tenths of
    the gradient's energy (judged by a sample), else one on the folded G and one or more on G itself. The rows stay
    aligned with the previous ones (orthogonal Procrustes), so that moments kept in the old basis keep their
    meaning. A basis that holds no more than a random one would is only used for the alignment.

    Args:
        rank: rows of the basis, >= 1; clamped to min(m, n).
        oversample: extra rows of the sketch, >= 0.
        power_iters: products with GᵀG after the sketch, >= 0; 1 means three passes over G in all. If it is not
            0 and the last product gained more than 4.5 % of energy (flat spectra), there is one more.
        warm_start: use ``prev``, if given.
    """

    rank: int
    oversample: int = 8
    power_iters: int = 1
    warm_start: bool = True

    def __post_init__(self) -> None:
        _check_count(self.rank, "rank", 1)
        _check_count(self.oversample, "oversample", 0)
        _check_count(self.power_iters, "power_iters", 0)

    def basis(
        self, G: Any, *, side: str, prev: Any = None, seed: int = 0, step: int = 0, param: int = 0
    ) -> Any:
        """Orthonormal basis of ``G``, float32, r x d; the same bits on every target and for NumPy and torch.

        Args:
            G: m x n, float32 (torch: also bfloat16).
            side: ``"right"`` (d = n) or ``"left"`` (d = m).
            prev: basis in use, r x d, dense or packed; None to start afresh.
            seed, step: 63-bit integers. param: 32-bit integer: the address of the sketch.

        Raises:
            LowtideValueError: a bad argument, or inf or NaN in ``G``.
        """
        check_side(side)
        G = _matrix(G)
        prev = dense(prev, "prev") if prev is not None and self.warm_start else None
        if is_torch(G):
            from lowtide import ops

            return ops.rsvd(
                G,
                self.rank,
                side=side,
                prev=prev,
                oversample=self.oversample,
                power_iters=self.power_iters,
                seed=seed,
                step=step,
                param=param,
            )
        want = (min(self.rank, *G.shape), G.shape[1 if side == "right" else 0])
        if prev is not None:
            prev = np.ascontiguousarray(prev, dtype=np.float32)
            if prev.shape != want:
                raise LowtideValueError(
                    f"prev must have the shape of the new basis, {want}, got {prev.shape}"
                )
        return _core.rsvd(
            np.ascontiguousarray(G),
            self.rank,
            side == "left",
            prev,
            self.oversample,
            self.power_iters,
            check_uint(seed, "seed", 63),
            check_uint(step, "step", 63),
            check_uint(param, "param", 32),
        )
