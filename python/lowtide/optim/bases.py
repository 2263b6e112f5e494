# SPDX-License-Identifier: Apache-2.0
"""A subspace in use: how a gradient gets into it and an update out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.ops.matmul import Packed


class Basis(Protocol):
    """The projection of one matrix (m x n). ``side`` as in :mod:`lowtide.lowrank`.

    Attributes:
        reads_all: whether inf or NaN anywhere in a gradient shows in :meth:`down`.
    """

    @property
    def reads_all(self) -> bool: ...  # noqa: D102

    @property
    def orthonormal(self) -> bool:
        """Whether the norm of :meth:`down` is that of the part of a gradient which lies in the subspace (a low-bit basis: nearly)."""
        ...

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """The columns (1) or rows (0) of the gradient that :meth:`down` takes as they are, or None: it mixes them."""
        ...

    def down(self, grad: Tensor) -> Tensor:
        """The gradient in the subspace, fp32: m x r (right) or r x n (left)."""
        ...

    def up(self, r: Tensor) -> Tensor:
        """Back to full size, fp32, m x n."""
        ...

    def add_(self, x: Tensor, r: Tensor) -> None:
        """``x += up(r)`` in place."""
        ...

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """``grad - up(r)`` in a new fp32 tensor."""
        ...


class _Whole(ABC):
    """Bases whose every coordinate depends on the whole gradient."""

    reads_all: ClassVar[bool] = True

    @property
    def orthonormal(self) -> bool:
        """See :class:`Basis`."""
        return True

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """See :class:`Basis`."""
        return None

    @abstractmethod
    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""

    def add_(self, x: Tensor, r: Tensor) -> None:
        """See :class:`Basis`."""
        x += self.up(r)

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        back = self.up(r)
        return torch.sub(grad, back, out=back)


@dataclass(frozen=True)
class DenseBasis(_Whole):
    """Rows of a stored matrix (r x d), dense or packed."""

    matrix: Tensor | Packed
    side: str

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        from lowtide import ops

        return (
            ops.matmul(grad, self.matrix, tb=True) if self.side == "right" else ops.matmul(self.matrix, grad)
        )

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        from lowtide import ops

        return ops.matmul(r, self.matrix) if self.side == "right" else ops.matmul(self.matrix, r, ta=True)


@dataclass(frozen=True)
class TwoSidedBasis(_Whole):
    """Rows and columns at once: R = A G Bᵀ (r x r)."""

    right: DenseBasis  # B
    left: DenseBasis  # A

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        rows, cols = grad.shape
        if rows >= cols:  # the cheaper product first
            return self.left.down(self.right.down(grad))
        return self.right.down(self.left.down(grad))

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return self.left.up(self.right.up(r))


@dataclass(frozen=True)
class SeededBasis(_Whole):
    """A random projection that is drawn when it is used: of :class:`lowtide.lowrank.RandomProjection`'s interface."""

    projection: Any
    dim: int
    side: str
    address: dict[str, int]  # seed, step, param

    @property
    def orthonormal(self) -> bool:
        """See :class:`Basis`: random numbers as they come are not."""
        return bool(getattr(self.projection, "orthonormal", False))

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        result: Tensor = self.projection.project(grad, side=self.side, **self.address)
        return result

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        result: Tensor = self.projection.project_back(r, side=self.side, dim=self.dim, **self.address)
        return result


@dataclass(frozen=True)
class IndexBasis:
    """Chosen columns (right) or rows (left), each times its weight if there are any: a gather and a scatter, no product."""

    indices: Tensor  # int32, sorted, distinct
    dim: int
    side: str
    weights: Tensor | None = None  # fp32, one an index

    reads_all: ClassVar[bool] = False

    @property
    def orthonormal(self) -> bool:
        """See :class:`Basis`: weights stretch."""
        return self.weights is None

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """See :class:`Basis`: with weights they are not taken as they are."""
        return (self.indices, self._axis) if self.weights is None else None

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return self._weighted(grad.index_select(self._axis, self.indices).float().contiguous())

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        shape = (r.shape[0], self.dim) if self.side == "right" else (self.dim, r.shape[1])
        full = torch.zeros(shape, dtype=torch.float32, device=r.device)
        return full.index_copy_(self._axis, self.indices.long(), self._weighted(r))

    def add_(self, x: Tensor, r: Tensor) -> None:
        """See :class:`Basis`."""
        chosen = x.index_select(self._axis, self.indices).add_(self._weighted(r))
        x.index_copy_(self._axis, self.indices.long(), chosen)  # half the time of index_add_

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """See :class:`Basis`: exactly zero where it was taken from, but for weights."""
        full = grad.to(torch.float32, copy=True)
        if self.weights is None:
            return full.index_fill_(self._axis, self.indices.long(), 0.0)
        self.add_(full, -r)
        return full

    def _weighted(self, r: Tensor) -> Tensor:
        if self.weights is None:
            return r
        return r * (self.weights[None, :] if self.side == "right" else self.weights[:, None])

    @property
    def _axis(self) -> int:
        return 1 if self.side == "right" else 0


@dataclass(frozen=True)
class ElementBasis:
    """Chosen elements, as many in each row (right) or column (left): a gather and a scatter, no product."""

    indices: Tensor  # int32, m x r columns (right) or r x n rows (left), distinct within a line
    dim: int
    side: str

    reads_all: ClassVar[bool] = False

    @property
    def orthonormal(self) -> bool:
        """See :class:`Basis`."""
        return True

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """See :class:`Basis`: no line is whole."""
        return None

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return grad.gather(self._axis, self.indices.long()).float()

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        full = r.new_zeros((r.shape[0], self.dim) if self.side == "right" else (self.dim, r.shape[1]))
        return full.scatter_(self._axis, self.indices.long(), r)

    def add_(self, x: Tensor, r: Tensor) -> None:
        """See :class:`Basis`."""
        x.scatter_add_(self._axis, self.indices.long(), r)

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """See :class:`Basis`: exactly zero where it was taken from."""
        return grad.to(torch.float32, copy=True).scatter_(self._axis, self.indices.long(), 0.0)

    @property
    def _axis(self) -> int:
        return 1 if self.side == "right" else 0


@dataclass(frozen=True)
class WholeBasis:
    """Everything (active) or nothing."""

    active: bool
    dim: int
    side: str

    reads_all: ClassVar[bool] = False

    @property
    def orthonormal(self) -> bool:
        """See :class:`Basis`."""
        return True

    @property
    def chosen(self) -> tuple[Tensor, int] | None:
        """See :class:`Basis`: what is inactive chooses nothing."""
        return None if self.active else (torch.empty(0, dtype=torch.int32), 1 if self.side == "right" else 0)

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`: a copy of ``grad``, or a matrix without elements."""
        if self.active:
            return grad.to(torch.float32, copy=True)
        rows, cols = grad.shape
        return grad.new_empty((rows, 0) if self.side == "right" else (0, cols), dtype=torch.float32)

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        if self.active:
            return r
        return r.new_zeros((r.shape[0], self.dim) if self.side == "right" else (self.dim, r.shape[1]))

    def add_(self, x: Tensor, r: Tensor) -> None:
        """See :class:`Basis`."""
        if self.active:
            x += r

    def rest(self, grad: Tensor, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        return (
            torch.zeros_like(grad, dtype=torch.float32) if self.active else grad.to(torch.float32, copy=True)
        )


@dataclass(frozen=True)
class CosineBasis(_Whole):
    """Chosen rows of the DCT-II matrix: a fast transform, no product."""

    indices: Tensor  # int32, ascending
    dim: int
    side: str

    def down(self, grad: Tensor) -> Tensor:
        """See :class:`Basis`."""
        r: Tensor = self._cosines().project(grad, self.side)
        return r

    def up(self, r: Tensor) -> Tensor:
        """See :class:`Basis`."""
        full: Tensor = self._cosines().project_back(r, self.side)
        return full

    def _cosines(self) -> Any:
        from lowtide.lowrank import DCTBasis

        return DCTBasis(self.indices, self.dim)
