# SPDX-License-Identifier: Apache-2.0
"""What every estimator works on: a symmetric matrix that is only ever multiplied by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide.curvature._layout import Layout, Vector
from lowtide.errors import LowtideTypeError, LowtideValueError


class LinearOperator(ABC):
    """A symmetric operator over ``n`` numbers. Subclasses give :meth:`_product`; everything else follows from it.

    Attributes:
        layout: names and shapes of the tensors that make a vector.
        positive: whether no eigenvalue is negative by construction (Gauss-Newton, Fisher).
        products: how many products were computed so far; what estimators cost is counted in these.
    """

    positive: bool = False

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.products = 0
        self._kept: list[Tensor] = []

    @property
    def n(self) -> int:
        """Rows and columns."""
        return self.layout.n

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""
        return self.n, self.n

    @abstractmethod
    def _product(self, v: Tensor, out: Tensor) -> None:
        """``out[:] = H v``; both flat, of the layout's dtype; ``v`` must stay as it is."""

    def hvp(self, v: Vector, out: Tensor | None = None) -> Tensor:
        """``H v`` as a flat tensor ``(n,)``, written to ``out`` if given."""
        flat = self.layout.flatten(v)
        out = self._out(out)
        self._product(flat, out)
        self.products += 1
        return out

    def __matmul__(self, v: Vector) -> Vector:
        """``H v`` in the form of ``v``: flat ``(n,)``, columns ``(n, k)``, or one tensor a parameter."""
        if isinstance(v, Tensor) and v.dim() == 2:
            if v.shape[0] != self.n:
                raise LowtideValueError(f"v must have {self.n} rows, got {tuple(v.shape)}")
            return torch.stack([self.hvp(column) for column in v.unbind(1)], dim=1)
        return self.layout.like(self.hvp(v), v)

    def hvp_seeded(self, seed: int, k: int, out: Tensor | None = None) -> Tensor:
        """``H z`` for probe ``k`` of ``seed``, a vector of signs (:meth:`Layout.probe`); the memory of z is kept."""
        return self.hvp(self.layout.probe(seed, k, self._scratch(0)), out)

    def quad_seeded(self, seed: int, k: int) -> Tensor:
        """``<z_t, (H z)_t>`` for each tensor t, float64 ``(len(layout.names),)``; their sum is ``z' H z``.

        The memory of z and of ``H z``, two vectors, is kept for the next probe: fetching fresh pages for them costs ten times
        what drawing z does.
        """
        return self.layout.probe_dots(self.hvp_seeded(seed, k, self._scratch(1)), seed, k)

    def _scratch(self, i: int) -> Tensor:
        while len(self._kept) <= i:
            self._kept.append(self.layout.zeros())
        return self._kept[i]

    def _out(self, out: Tensor | None) -> Tensor:
        if out is None:
            return self.layout.zeros()
        if out.shape != (self.n,) or out.dtype != self.layout.dtype or not out.is_contiguous():
            raise LowtideValueError(
                f"out must be contiguous, of shape ({self.n},) and dtype {self.layout.dtype}, "
                f"got {tuple(out.shape)} and {out.dtype}"
            )
        return out

    def dense(self) -> Tensor:
        """The matrix itself, ``(n, n)``, by n products: for tests and small models."""
        eye = torch.eye(self.n, dtype=self.layout.dtype, device=self.layout.device)
        return torch.stack([self.hvp(row) for row in eye], dim=1)


class MatrixOperator(LinearOperator):
    """An explicit symmetric matrix as an operator.

    Args:
        matrix: ``(n, n)``, float32 or float64, symmetric.
        shapes: shapes of the tensors that make a vector; one of n numbers if left out.
        positive: whether the matrix is known to have no negative eigenvalue.

    >>> import torch
    >>> from lowtide.curvature import MatrixOperator
    >>> (MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))) @ torch.ones(2)).tolist()
    [1.0, 2.0]
    """

    def __init__(
        self, matrix: Tensor, *, shapes: Sequence[tuple[int, ...]] | None = None, positive: bool = False
    ) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise LowtideValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise LowtideTypeError(f"matrix must be float32 or float64, got {matrix.dtype}")
        if not torch.allclose(matrix, matrix.T):
            raise LowtideValueError("matrix must be symmetric; pass (matrix + matrix.T) / 2")
        shapes = [(matrix.shape[0],)] if shapes is None else [tuple(s) for s in shapes]
        layout = Layout(
            tuple(f"block{i}" for i in range(len(shapes))), tuple(shapes), matrix.dtype, matrix.device
        )
        if layout.n != matrix.shape[0]:
            raise LowtideValueError(f"shapes must hold {matrix.shape[0]} numbers, got {layout.n}")
        super().__init__(layout)
        self.matrix = matrix
        self.positive = positive

    def _product(self, v: Tensor, out: Tensor) -> None:
        torch.mv(self.matrix, v, out=out)
