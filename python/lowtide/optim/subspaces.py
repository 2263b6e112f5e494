# SPDX-License-Identifier: Apache-2.0
"""The subspace axis: which r directions of a gradient are kept.

A basis is always r x d, d the projected side: ``side="right"``: d = columns, R = G Bᵀ (m x r); ``side="left"``: d =
rows, R = B G (r x n). How it is kept depends on its kind: a matrix in a :class:`~lowtide.optim.BasisStore`, indices, or a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.bases import Basis, CosineBasis, DenseBasis, ElementBasis, IndexBasis, SeededBasis
from lowtide.optim.norms import channel_energy, total
from lowtide.optim.refresh import RefreshRequest
from lowtide.optim.stores import BasisStore


class Subspace(Protocol):
    """Finds a basis for a gradient and keeps it.

    Attributes:
        needs_prev: whether :meth:`find` looks at the (dense) basis in use.
        needs_gradient: whether the values of the gradient matter, or only its shape.
        needs_mean: whether :meth:`find` looks at the first moment (bias-corrected, at full size).
        two_sided: whether it can be asked for bases of both sides of a matrix.
        varies: whether :meth:`keep` may change the rank in the state, and with it the shape of the moments.
        kind: ``"dense"``, ``"indices"``, ``"elements"``, ``"seed"`` or ``"block"``: what is kept.
    """

    @property
    def needs_prev(self) -> bool: ...  # noqa: D102

    needs_gradient: ClassVar[bool]
    needs_mean: ClassVar[bool]
    two_sided: ClassVar[bool]
    varies: ClassVar[bool]
    kind: ClassVar[str]

    def find(self, request: RefreshRequest) -> Tensor | None:
        """A basis: a matrix (rank x d), indices, or None if an address says it all."""
        ...

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """Put what :meth:`find` gave for ``request`` into ``state``."""
        ...

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """The basis in use."""
        ...


class _FromGradient:
    """What most subspaces need: the gradient and nothing else."""

    needs_gradient: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False
    two_sided: ClassVar[bool] = False
    varies: ClassVar[bool] = False

    @property
    def needs_prev(self) -> bool:
        """See :class:`Subspace`."""
        return False


class _Dense(_FromGradient):
    """Bases that are matrices in a :class:`BasisStore`."""

    kind: ClassVar[str] = "dense"
    two_sided: ClassVar[bool] = True

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """See :class:`Subspace`."""
        assert found is not None
        store.save(state, found)

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        matrix = store.load(state)
        assert matrix is not None
        return DenseBasis(matrix, state["side"])


@dataclass(frozen=True)
class ExactSVD(_Dense):
    """The top singular vectors, by LAPACK (GaLore, Zhao et al. 2024, algorithm 1)."""

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        rank = request.rank
        u, _, vh = torch.linalg.svd(request.grad.float(), full_matrices=False)
        basis: Tensor = vh[:rank] if request.side == "right" else u[:, :rank].T
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

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        from lowtide import ops

        return ops.rsvd(
            request.grad,
            request.rank,
            side=request.side,
            prev=request.prev if self.warm_start else None,
            oversample=self.oversample,
            power_iters=self.power_iters,
            **request.address,
        )


class _Seeded(_FromGradient):
    """Bases that are drawn when they are used: their address is kept."""

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar[str] = "seed"

    def find(self, request: RefreshRequest) -> None:
        """See :class:`Subspace`."""

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """See :class:`Subspace`."""
        state.update({f"basis.{name}": value for name, value in request.address.items()})


def _address(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[f"basis.{name}"] for name in ("seed", "step", "param")}


@dataclass(frozen=True)
class RandomGaussian(_Seeded):
    """A random projection that is never stored: its address is drawn from when it is used (APOLLO, Zhu et al. 2024, section
    4.2; Flora, Hao et al. 2024). See :class:`lowtide.lowrank.RandomProjection`."""

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        from lowtide.lowrank import RandomProjection

        return SeededBasis(RandomProjection(state["rank"]), state["dim"], state["side"], _address(state))


@dataclass(frozen=True)
class RandomRademacher(_Seeded):
    """:class:`RandomGaussian` with signs in place of Gaussian numbers (Achlioptas 2003): cheaper to draw."""

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        from lowtide.lowrank import RandomProjection

        projection = RandomProjection(state["rank"], "rademacher")
        return SeededBasis(projection, state["dim"], state["side"], _address(state))


@dataclass(frozen=True)
class RandomHadamard(_Seeded):
    """Random signs, a fast Walsh-Hadamard transform, r of its coordinates: orthonormal rows, of which a seed is kept
    and none is formed. See :class:`lowtide.lowrank.RandomHadamard`.

    Attributes:
        orthonormal: rows of length 1; otherwise longer by sqrt(d / r), so that the norm of R is that of G on average, as APOLLO
            wants it.
    """

    orthonormal: bool = True

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        from lowtide.lowrank import RandomHadamard as Projection

        projection = Projection(state["rank"], self.orthonormal)
        return SeededBasis(projection, state["dim"], state["side"], _address(state))


@dataclass(frozen=True)
class RandomOrthonormal(_Dense):
    """Random orthonormal rows, uniformly distributed (FRUGAL's "random"; GoLore): the Q factor of Gaussian rows."""

    needs_gradient: ClassVar[bool] = False

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        from lowtide.lowrank import RandomProjection

        rows = RandomProjection(request.rank).basis(request.grad, side=request.side, **request.address)
        q: Tensor = torch.linalg.qr(rows.T)[0]
        return q.T.contiguous()


class _Indices(_FromGradient):
    """Bases that are chosen columns (right) or rows (left)."""

    kind: ClassVar[str] = "indices"

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """See :class:`Subspace`."""
        state["basis.indices"] = found

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return IndexBasis(state["basis.indices"], state["dim"], state["side"])


@dataclass(frozen=True)
class RandomIndices(_Indices):
    """Random columns (right) or rows (left): the subspace of FRUGAL's coordinate-wise variant. A gather, no products."""

    needs_gradient: ClassVar[bool] = False

    def find(self, request: RefreshRequest) -> Tensor:
        """The ``rank`` places with the smallest of ``d`` Gaussian numbers: int32, ascending."""
        from lowtide import random

        keys = random.sample(request.dim, slot=1, like="torch", **request.address)
        chosen = torch.argsort(keys, stable=True)[: request.rank]
        return chosen.sort().values.to(torch.int32)


@dataclass(frozen=True)
class RandomElements(_Indices):
    """Random elements, r in each row (right) or column (left): FRUGAL's "randk", but with as many in every line, so that moments
    keep the shape m x r or r x n. An index is kept for each."""

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar[str] = "elements"

    def find(self, request: RefreshRequest) -> Tensor:
        """int32, ascending within a line."""
        from lowtide import random

        right = request.side == "right"
        lines = request.grad.shape[0 if right else 1]
        keys = random.sample((lines, request.dim), slot=1, like="torch", **request.address)
        chosen = torch.argsort(keys, dim=1, stable=True)[:, : request.rank].sort(dim=1).values
        return (chosen if right else chosen.T).to(torch.int32).contiguous()

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return ElementBasis(state["basis.indices"], state["dim"], state["side"])


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

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        from lowtide import ops

        prev, side = request.prev, request.side
        if prev is None or request.mean is None:
            return ops.rsvd(request.grad, request.rank, side=side, **request.address)
        b = request.grad * (1.0 - self.rho)
        b += request.mean * self.rho
        if side == "right":
            y = ops.matmul(b, ops.matmul(b, prev, tb=True), ta=True)
        else:
            y = ops.matmul(b, ops.matmul(prev, b), tb=True)
        q: Tensor = torch.linalg.qr(y)[0]
        return q.T.contiguous()


@dataclass(frozen=True)
class Cosines(_Indices):
    """The cosines in which the gradient is largest (DCT-AdamW, Modoranu et al. 2025, arXiv 2505.17967, section 3): see
    :class:`lowtide.lowrank.DCT`.

    Attributes:
        power: ``"l1"`` (the paper's) or ``"l2"``.
    """

    power: str = "l1"

    def __post_init__(self) -> None:
        if self.power not in ("l1", "l2"):
            raise LowtideValueError(f"power must be 'l1' or 'l2', got {self.power!r}")

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        from lowtide.lowrank import DCT

        index: Tensor = DCT(request.rank, self.power).basis(request.grad, side=request.side).index
        return index

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return CosineBasis(state["basis.indices"], state["dim"], state["side"])


@dataclass(frozen=True)
class TopIndices(_Indices):
    """The columns (right) or rows (left) of largest norm: GRASS's Top-r (Muhamed et al., EMNLP 2024, arXiv 2406.17660)."""

    def find(self, request: RefreshRequest) -> Tensor:
        """int32, ascending; of equal ones the first."""
        energy = channel_energy(request.grad, "left" if request.side == "right" else "right")
        best = torch.argsort(energy, descending=True, stable=True)[: request.rank]
        return best.sort().values.to(torch.int32)


@dataclass(frozen=True)
class SampledIndices(_Indices):
    """Columns (right) or rows (left) drawn with probabilities ``q_i ~ |G_i|^2`` and weighted by ``1 / sqrt(r q_i)``: GRASS's sampled
    selection (Muhamed et al., EMNLP 2024, arXiv 2406.17660, section 3.1). None is drawn twice (exponential keys; Efraimidis and
    Spirakis 2006), so a weight is at most what makes the projection unbiased with replacement, and 1 where ``r q_i >= 1``.
    """

    def find(self, request: RefreshRequest) -> Tensor:
        """int32, ascending."""
        from lowtide import random

        q = _shares(request)
        z = random.sample((2, request.dim), slot=1, like="torch", **request.address)
        keys = z.square().sum(0) / q  # twice an exponential number, over q
        return torch.argsort(keys, stable=True)[: request.rank].sort().values.to(torch.int32)

    def keep(
        self, state: dict[str, Any], found: Tensor | None, request: RefreshRequest, store: BasisStore
    ) -> None:
        """See :class:`Subspace`."""
        assert found is not None
        state["basis.indices"] = found
        chance = (_shares(request)[found.long()] * found.numel()).clamp(max=1.0)
        state["basis.weights"] = torch.where(chance > 0, chance.rsqrt(), 1.0)

    def load(self, state: dict[str, Any], store: BasisStore) -> Basis:
        """See :class:`Subspace`."""
        return IndexBasis(state["basis.indices"], state["dim"], state["side"], state["basis.weights"])


def _shares(request: RefreshRequest) -> Tensor:
    """Each column's (right) or row's (left) share of the gradient's energy."""
    energy = channel_energy(request.grad, "left" if request.side == "right" else "right")
    whole = total(energy)
    return (energy / whole if whole > 0 else torch.full_like(energy, 1.0 / energy.numel())).float()
