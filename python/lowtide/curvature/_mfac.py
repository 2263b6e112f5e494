# SPDX-License-Identifier: Apache-2.0
"""M-FAC: products with the inverse of an empirical Fisher matrix of m gradients, in O(m n) (Frantar, Kurtic & Alistarh,
NeurIPS 2021, arXiv 2107.03356)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lowtide.curvature._gradient_window import WindowStore, factor, solve
from lowtide.curvature._layout import Layout, Vector
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.errors import LowtideRuntimeError, LowtideValueError


def _layout(space: Layout | int) -> Layout:
    if isinstance(space, Layout):
        return space
    if not isinstance(space, int) or isinstance(space, bool) or space < 1:
        raise LowtideValueError(f"space must be a Layout or a number of parameters >= 1, got {space!r}")
    return Layout(("vector",), ((space,),))


def _check_damp(damp: float) -> float:
    if not 0.0 < damp < math.inf:
        raise LowtideValueError(f"damp must be a finite number > 0, got {damp!r}")
    return float(damp)


class MFAC(LinearOperator):
    """The inverse of ``F = damp I + (1/m) sum_i g_i g_i'`` over the last m gradients (section 3.2, dynamic), as an operator: ``@``
    multiplies by the inverse.

    The window G (m x n) and its Gram matrix are kept; with the Cholesky factor of the m x m matrix ``m damp I + G G'``::

        F^-1 x = (x - G' (m damp I + G G')^-1 G x) / damp

    which equals the paper's triangular recursion. A product reads G twice; a new gradient replaces the oldest and costs two
    more reads. m is the number of gradients held, while the window is not full yet.

    Bytes: ``ngrads * n`` times 4 (fp32), 2 (bf16), 1.016 (int8) or 8 (fp64), and 8 ngrads^2.

    Args:
        space: the layout of vectors, or n.
        ngrads: size of the window.
        damp: the paper's lambda, > 0.
        window: ``"fp32"``, ``"bf16"``, ``"int8"`` (stochastically rounded) or ``"fp64"``. Default: the layout's dtype.
        seed: of stochastic rounding.

    Raises:
        LowtideValueError: a bad argument, named.

    >>> import torch
    >>> from lowtide.curvature import MFAC
    >>> inverse = MFAC(3, ngrads=2, damp=0.5)
    >>> inverse.push(torch.tensor([1.0, 0.0, 0.0]))
    >>> (inverse @ torch.ones(3)).tolist()  # 1 / (0.5 + 1), 1 / 0.5, 1 / 0.5
    [0.6666666269302368, 2.0, 2.0]
    """

    positive = True

    def __init__(
        self, space: Layout | int, *, ngrads: int = 1024, damp: float = 1e-5, window: str | None = None, seed: int = 0
    ) -> None:  # fmt: skip
        super().__init__(_layout(space))
        self.damp = _check_damp(damp)
        self.seed = seed
        self._store = WindowStore(
            ngrads, window or ("fp64" if self.layout.dtype == torch.float64 else "fp32")
        )
        self.reset()

    def reset(self) -> None:
        """Forget all gradients."""
        self._window: dict[str, Any] = {}
        self._store.create(self._window, self.n)
        self._gram = torch.zeros((self._store.size, self._store.size), dtype=torch.float64)
        self._pushed = 0
        self._lower: Tensor | None = None

    @property
    def count(self) -> int:
        """Gradients held."""
        return min(self._pushed, self._store.size)

    @property
    def nbytes(self) -> int:
        """Bytes of window and Gram matrix."""
        return self._gram.nbytes + int(sum(t.nbytes for t in self._window.values()))

    def push(self, gradient: Vector) -> None:
        """Add a gradient, in place of the oldest one where the window is full.

        Raises:
            LowtideValueError: inf or NaN in it; nothing has changed.
        """
        g = self.layout.flatten(gradient, "gradient")
        if not bool(g.isfinite().all()):
            raise LowtideValueError("gradient holds inf or NaN; leave it out of the window")
        row = self._pushed % self._store.size
        self._store.write(self._window, row, g, seed=self.seed, step=self._pushed, param=0)
        products = self._store.dots(self._window, self._store.row(self._window, row))
        self._gram[row] = products
        self._gram[:, row] = products
        self._pushed += 1
        self._lower = None

    def _factor(self) -> Tensor:
        if self._lower is None:
            # Rows that are still zero are rows of zeros in the Gram matrix: they take no part.
            self._lower = factor(self._gram, self.damp * max(1, self.count))
        return self._lower

    def _product(self, v: Tensor, out: Tensor) -> None:
        c = solve(self._factor(), self._store.dots(self._window, v))
        torch.sub(v, self._store.combine(self._window, c), out=out)
        out.div_(self.damp)

    def diagonal(self) -> Tensor:
        """The diagonal of the inverse, ``(n,)``: what the optimal brain surgeon divides squares of weights by
        (:func:`lowtide.curvature.obs_saliency`). m^2 n operations."""
        out = self.layout.zeros()
        lower = self._factor()
        for at, part in self._store.chunks(self._window):
            solved = torch.linalg.solve_triangular(lower, part.double(), upper=False)
            out[at : at + part.shape[1]] = (1.0 - solved.square_().sum(0)) / self.damp
        return out

    def column(self, index: int) -> Tensor:
        """Column ``index`` of the inverse, ``(n,)``."""
        if not 0 <= index < self.n:
            raise LowtideValueError(f"index must be in [0, {self.n}), got {index!r}")
        unit = self.layout.zeros()
        unit[index] = 1.0
        return self.hvp(unit)


class StaticMFAC(LinearOperator):
    """The same inverse for gradients that stay (section 3.1): rank-one updates one after the other, whose vectors are kept::

        h_i = g_i / damp - sum_{j<i} h_j (h_j . g_i) / q_j,   q_i = m + g_i . h_i
        F^-1 x = x / damp - sum_i h_i (h_i . x) / q_i

    The gradients themselves are not needed afterwards. m^2 n operations, m n numbers of the layout's dtype.

    Args:
        gradients: m vectors, each flat ``(n,)`` or one tensor a parameter; read once.
        space: the layout of vectors, or n.
        damp: the paper's lambda, > 0.

    Raises:
        LowtideValueError: a bad argument, named.
    """

    positive = True

    def __init__(self, gradients: Iterable[Vector], space: Layout | int, *, damp: float = 1e-5) -> None:
        super().__init__(_layout(space))
        self.damp = _check_damp(damp)
        rows = [self.layout.flatten(g, "gradients") for g in gradients]
        if not rows:
            raise LowtideValueError("gradients must hold at least one vector, got none")
        m = len(rows)
        self._h = torch.empty((m, self.n), dtype=self.layout.dtype, device=self.layout.device)
        self._q = torch.empty(m, dtype=torch.float64)
        for i, g in enumerate(rows):
            if not bool(g.isfinite().all()):
                raise LowtideValueError(f"gradients[{i}] holds inf or NaN; leave it out")
            before = self._h[:i]
            torch.div(g, self.damp, out=self._h[i])
            if i:
                c = (before @ g).double() / self._q[:i]
                self._h[i] -= before.T @ c.to(before.dtype)
            self._q[i] = m + float(g @ self._h[i])
            if not float(self._q[i]) > 0.0:
                raise LowtideRuntimeError(
                    "the recursion lost positivity to rounding; use a larger damp, float64 gradients, or MFAC"
                )

    def _product(self, v: Tensor, out: Tensor) -> None:
        c = (self._h @ v).double() / self._q
        torch.sub(v / self.damp, self._h.T @ c.to(v.dtype), out=out)

    def diagonal(self) -> Tensor:
        """The diagonal of the inverse, ``(n,)``."""
        return 1.0 / self.damp - (self._h.square() / self._q[:, None].to(self._h.dtype)).sum(0)
