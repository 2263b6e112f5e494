# SPDX-License-Identifier: Apache-2.0
"""The subspace axis: which r directions of a gradient are kept, and when they are renewed.

A basis is always r x d, d the projected side: ``side="right"``: d = columns, R = G Bᵀ (m x r); ``side="left"``: d =
rows, R = B G (r x n). How it is kept depends on its kind: a matrix in a :class:`~lowtide.optim.BasisStore`, indices, or a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.bases import Basis, CosineBasis, DenseBasis, IndexBasis, SeededBasis
from lowtide.optim.norms import channel_energy
from lowtide.optim.stores import BasisStore


class Subspace(Protocol):
    """Finds a basis for a gradient and keeps it.

    Attributes:
        needs_prev: whether :meth:`find` looks at the (dense) basis in use.
        needs_gradient: whether the values of the gradient matter, or only its shape.
        needs_mean: whether :meth:`find` looks at the first moment (bias-corrected, at full size).
        kind: ``"dense"``, ``"indices"`` or ``"seed"``: what is kept.
    """

    @property
    def needs_prev(self) -> bool: ...  # noqa: D102

    needs_gradient: ClassVar[bool]
    needs_mean: ClassVar[bool]
    kind: ClassVar[str]

    def find(
        self,
        grad: Tensor,
        rank: int,
        *,
        side: str,
        prev: Tensor | None,
        seed: int,
        step: int,
        param: int,
        mean: Tensor | None = None,
    ) -> Tensor | None:
        """A basis for ``grad``: a matrix (rank x d), indices, or None if an address says it all; ``prev`` is the one in
        use, or None, ``mean`` the first moment at full size."""
        ...

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """The basis in use."""
        ...


class _FromGradient:
    """What most subspaces need: the gradient and nothing else."""

    needs_gradient: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False

    @property
    def needs_prev(self) -> bool:
        """See :class:`Subspace`."""
        return False


class _Dense(_FromGradient):
    """Bases that are matrices in a :class:`BasisStore`."""

    kind: ClassVar[str] = "dense"

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        matrix = store.load(state)
        assert matrix is not None
        return DenseBasis(matrix, state["side"])


@dataclass(frozen=True)
class ExactSVD(_Dense):
    """The top singular vectors, by LAPACK (GaLore, Zhao et al. 2024, algorithm 1)."""

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`Subspace`."""
        u, _, vh = torch.linalg.svd(grad.float(), full_matrices=False)
        basis: Tensor = vh[:rank] if side == "right" else u[:, :rank].T
        return basis.contiguous()


@dataclass(frozen=True)
class RandomizedSVD(_Dense):
    """A randomized range finder (Halko et al. 2011), warm-started from the basis in use.

    A warm refresh is a subspace iteration or two with aligned rows, so that stale moments keep their meaning.
    """

    oversample: int = 8
    power_iters: int = 1
    warm_start: bool = True

    def __post_init__(self) -> None:
        if self.oversample < 0 or self.power_iters < 0:
            raise LowtideValueError("oversample and power_iters must be >= 0")

    @property
    def needs_prev(self) -> bool:
        """Whether :meth:`find` looks at the basis in use."""
        return self.warm_start

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`Subspace`."""
        from lowtide import ops

        return ops.rsvd(
            grad,
            rank,
            side=side,
            prev=prev if self.warm_start else None,
            oversample=self.oversample,
            power_iters=self.power_iters,
            seed=seed,
            step=step,
            param=param,
        )


@dataclass(frozen=True)
class RandomGaussian(_FromGradient):
    """A random projection that is never stored: its address is drawn from when it is used (APOLLO, Zhu et al. 2024, section
    4.2; Flora, Hao et al. 2024). See :class:`lowtide.lowrank.RandomProjection`."""

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar[str] = "seed"

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> None:  # fmt: skip
        """See :class:`Subspace`."""

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        address = {name: state[f"basis.{name}"] for name in ("seed", "step", "param")}
        return SeededBasis(state["rank"], state["dim"], state["side"], address)


@dataclass(frozen=True)
class RandomOrthonormal(_Dense):
    """Random orthonormal rows, uniformly distributed (FRUGAL's "random"; GoLore): the Q factor of Gaussian rows."""

    needs_gradient: ClassVar[bool] = False

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`Subspace`."""
        from lowtide.lowrank import RandomProjection

        rows = RandomProjection(rank).basis(grad, side=side, seed=seed, step=step, param=param)
        q: Tensor = torch.linalg.qr(rows.T)[0]
        return q.T.contiguous()


class _Indices(_FromGradient):
    """Bases that are chosen columns (right) or rows (left)."""

    kind: ClassVar[str] = "indices"

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return IndexBasis(state["basis.indices"], state["dim"], state["side"])


@dataclass(frozen=True)
class RandomIndices(_Indices):
    """Random columns (right) or rows (left): the subspace of FRUGAL's coordinate-wise variant. A gather, no products."""

    needs_gradient: ClassVar[bool] = False

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The ``rank`` places with the smallest of ``d`` Gaussian numbers: int32, ascending."""
        from lowtide import random

        dim = grad.shape[1 if side == "right" else 0]
        keys = random.sample(dim, seed=seed, step=step, slot=1, param=param, like="torch")
        chosen = torch.argsort(keys, stable=True)[:rank]
        return chosen.sort().values.to(torch.int32)


@dataclass(frozen=True)
class PowerQR(_Dense):
    """One block power iteration from the basis in use at each refresh (LDAdam, Robert et al., ICLR 2025, arXiv 2410.16103,
    algorithm 2), on ``rho M + (1 - rho) G`` with the first moment M (bias-corrected): the subspace follows what momentum
    remembers, too. The first basis comes from a randomized SVD.

    Attributes:
        rho: share of the moment, in [0, 1).
    """

    rho: float = 0.908

    needs_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.rho < 1.0:
            raise LowtideValueError(f"rho must be in [0, 1), got {self.rho!r}")

    @property
    def needs_prev(self) -> bool:
        """See :class:`Subspace`."""
        return True

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`Subspace`."""
        from lowtide import ops

        if prev is None or mean is None:
            return ops.rsvd(grad, rank, side=side, seed=seed, step=step, param=param)
        b = grad * (1.0 - self.rho)
        b += mean * self.rho
        if side == "right":
            y = ops.matmul(b, ops.matmul(b, prev, tb=True), ta=True)
        else:
            y = ops.matmul(b, ops.matmul(prev, b), tb=True)
        q: Tensor = torch.linalg.qr(y)[0]
        return q.T.contiguous()


@dataclass(frozen=True)
class Cosines(_FromGradient):
    """The cosines in which the gradient is largest (DCT-AdamW, Modoranu et al. 2025, arXiv 2505.17967, section 3): see
    :class:`lowtide.lowrank.DCT`.

    Attributes:
        power: ``"l1"`` (the paper's) or ``"l2"``.
    """

    power: str = "l1"

    kind: ClassVar[str] = "indices"

    def __post_init__(self) -> None:
        if self.power not in ("l1", "l2"):
            raise LowtideValueError(f"power must be 'l1' or 'l2', got {self.power!r}")

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`Subspace`."""
        from lowtide.lowrank import DCT

        index: Tensor = DCT(rank, self.power).basis(grad, side=side).index
        return index

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return CosineBasis(state["basis.indices"], state["dim"], state["side"])


@dataclass(frozen=True)
class TopIndices(_Indices):
    """The columns (right) or rows (left) of largest norm: GRASS's Top-r (Muhamed et al., EMNLP 2024, arXiv 2406.17660)."""

    def find(
        self, grad: Tensor, rank: int, *, side: str, prev: Tensor | None, seed: int, step: int, param: int,
        mean: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """int32, ascending; of equal ones the first."""
        energy = channel_energy(grad, "left" if side == "right" else "right")
        return torch.argsort(energy, descending=True, stable=True)[:rank].sort().values.to(torch.int32)


@dataclass(frozen=True)
class EveryT:
    """Refresh when ``step % gap == 0``, counted from 0 (GaLore)."""

    needs_prev = False

    def due(self, state: dict[str, Any], step: int) -> bool:
        """Whether the basis is renewed before the update with this 0-based step."""
        return step % int(state["gap"]) == 0

    def observe(self, state: dict[str, Any], new: Tensor, prev: Tensor | None) -> None:
        """Called after each refresh with both bases."""


@dataclass(frozen=True)
class LazyDoubling:
    """Q-GaLore's layer-adaptive schedule (Zhang et al. 2024, section 3.3): a matrix whose subspace hardly moves over
    ``queue`` refreshes in a row has its gap multiplied by ``gamma``.

    The measure is the sign-safe overlap ``||B Bprevᵀ||_F² / r``; ``compat=True`` takes the cosine of the first
    vectors as q-galore-torch does. The queue is cleared after each doubling, so that the next one needs new evidence
    (compat: kept, as there).
    """

    threshold: float = 0.4
    gamma: float = 2.0
    queue: int = 5
    compat: bool = False

    needs_prev = True

    def __post_init__(self) -> None:
        if not -1.0 <= self.threshold <= 1.0:
            raise LowtideValueError(f"threshold must lie in [-1, 1], got {self.threshold!r}")
        if self.gamma < 1.0:
            raise LowtideValueError(f"gamma must be >= 1, got {self.gamma!r}")
        if self.queue < 1:
            raise LowtideValueError(f"queue must be >= 1, got {self.queue!r}")

    def due(self, state: dict[str, Any], step: int) -> bool:
        """Whether the basis is renewed before the update with this 0-based step."""
        if self.compat:
            return step % int(state["gap"]) == 0
        # Counted from the last refresh: a doubled gap must not shift the phase.
        return "refreshed" not in state or step - int(state["refreshed"]) >= int(state["gap"])

    def observe(self, state: dict[str, Any], new: Tensor, prev: Tensor | None) -> None:
        """Record the overlap and stretch the gap."""
        if prev is None:
            return
        if self.compat:
            overlap = torch.nn.functional.cosine_similarity(new[:1], prev[:1]).item()
        else:
            overlap = (new @ prev.T).square().sum().item() / new.shape[0]
        seen = state.get("overlaps", torch.zeros(0, dtype=torch.float64))
        seen = torch.cat([seen, torch.tensor([overlap], dtype=torch.float64)])[-self.queue :]
        if len(seen) == self.queue and seen.mean().item() >= self.threshold:
            state["gap"] = int(state["gap"] * self.gamma)
            if not self.compat:
                seen = seen[:0].clone()
        state["overlaps"] = seen
