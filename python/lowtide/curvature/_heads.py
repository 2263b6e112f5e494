# SPDX-License-Identifier: Apache-2.0
"""Linear heads under a loss whose Hessian has a closed form: no autograd graph, no probes, exact."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lowtide.curvature._head_targets import check_head, cross_entropy_targets
from lowtide.curvature._heads_autograd import logits_of, softmax_diagonal, softmax_product
from lowtide.curvature._layout import Layout
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._logit_rows import (
    diagonal_rows,
    product_rows,
    product_rows_,
    trace_rows,
    weighted_rows,
)
from lowtide.errors import LowtideValueError

_PAIR_ROWS = 1024  # rows of the N x N pair matrices formed at a time


class _Head(ABC):
    """A linear layer ``Z = X W' + b`` under a mean loss that is convex in each row of Z.

    Subclasses give what happens in a row's logits; what follows for the parameters (W, b) is here. Results that stand for
    a vector of parameters come as a pair: the weight part (C, D), and the bias part (C,) or None without a bias. All are
    differentiable in X, W and b by autograd.
    """

    X: Tensor
    W: Tensor
    b: Tensor | None

    def __init__(self, X: Tensor, W: Tensor, b: Tensor | None) -> None:
        check_head(X, W, b)
        self.X, self.W, self.b = X, W, b
        named = [("weight", W)] + ([] if b is None else [("bias", b)])
        self.layout = Layout.of(named)

    def logits(self) -> Tensor:
        """``X W' + b``, (N, C)."""
        return logits_of(self.X, self.W, self.b)

    # In the logits: the gradient, the Hessian's diagonal, its rows' traces, its products, and <H_n, H_m>.
    @abstractmethod
    def _delta(self) -> Tensor: ...

    @abstractmethod
    def _curvature(self) -> Tensor: ...

    @abstractmethod
    def _output_product(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _inner(self, rows: slice) -> Tensor: ...

    def _pair(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight, None if self.b is None else bias

    def _check_vector(self, v: Tensor, v_b: Tensor | None, name: str) -> None:
        if v.shape != self.W.shape or v.dtype != self.W.dtype:
            raise LowtideValueError(
                f"{name} must have W's shape {tuple(self.W.shape)} and dtype {self.W.dtype}, "
                f"got {tuple(v.shape)} and {v.dtype}"
            )
        if self.b is None and v_b is not None:
            raise LowtideValueError(f"{name}_b must be None for a head without a bias")
        if v_b is not None and (v_b.shape != self.W.shape[:1] or v_b.dtype != self.W.dtype):
            raise LowtideValueError(
                f"{name}_b must have shape ({self.W.shape[0]},) and dtype {self.W.dtype}, "
                f"got {tuple(v_b.shape)} and {v_b.dtype}"
            )

    def gradient(self) -> tuple[Tensor, Tensor | None]:
        """The loss's gradient in W (C, D) and b (C,)."""
        delta = self._delta()
        return self._pair(delta.T @ self.X, delta.sum(0))

    def hvp(self, V: Tensor, v_b: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``H (V, v_b)``; V is (C, D), v_b is (C,), zero if left out. Differentiable in V and v_b, too.

        Raises:
            LowtideValueError: shapes or dtypes differ from those of W and b.
        """
        self._check_vector(V, v_b, "V")
        s = self._output_product(logits_of(self.X, V, v_b))
        return self._pair(s.T @ self.X, s.sum(0))

    def diag(self) -> tuple[Tensor, Tensor | None]:
        """The Hessian's diagonal."""
        h = self._curvature()
        return self._pair(h.T @ (self.X * self.X), h.sum(0))

    def trace(self) -> Tensor:
        """The Hessian's trace, no dimensions."""
        return self._curvature().sum(1) @ self._squares()

    def _squares(self) -> Tensor:
        squares = (self.X * self.X).sum(1)
        return squares if self.b is None else squares + 1

    def frobenius2(self) -> Tensor:
        """``||H||_F**2``, the sum of squared eigenvalues, no dimensions.

        Costs N^2 (D + C) multiplications; N x N matrices are formed 1024 rows at a time.
        """
        total = self.X.new_zeros(())
        for begin in range(0, len(self.X), _PAIR_ROWS):
            rows = slice(begin, begin + _PAIR_ROWS)
            k = self.X[rows] @ self.X.T
            k = k if self.b is None else k + 1
            total = total + (k * k * self._inner(rows)).sum()
        return total

    def hg(self) -> tuple[Tensor, Tensor | None]:
        """The Hessian times the loss's gradient."""
        g, g_b = self.gradient()
        return self.hvp(g, g_b)

    def quadratic(self, Q: Tensor, q_b: Tensor | None, V: Tensor, v_b: Tensor | None) -> Tensor:
        """``<(Q, q_b), H (V, v_b)>``, no dimensions; differentiable in X, W, b and both vectors.

        Raises:
            LowtideValueError: shapes or dtypes differ from those of W and b.
        """
        self._check_vector(Q, q_b, "Q")
        h, h_b = self.hvp(V, v_b)
        value = (Q * h).sum()
        return value if q_b is None or h_b is None else value + q_b @ h_b

    def as_operator(self) -> LinearOperator:
        """This Hessian as an operator over (weight, bias), at the present values: for every estimator of the family."""
        return _HeadOperator(self)

    @abstractmethod
    def _frozen(self) -> _Head:
        """The head of detached copies, with what products share computed once."""


class _HeadOperator(LinearOperator):
    positive = True

    def __init__(self, head: _Head) -> None:
        super().__init__(head.layout)
        with torch.no_grad():
            self._head = head._frozen()

    def _product(self, v: Tensor, out: Tensor) -> None:
        head, (rows, cols) = self._head, self._head.W.shape
        cut = rows * cols
        with torch.no_grad():
            bias = None if head.b is None else v[cut:]
            s = head._output_product(logits_of(head.X, v[:cut].view(rows, cols), bias))
            torch.mm(s.T, head.X, out=out[:cut].view(rows, cols))
            if head.b is not None:
                torch.sum(s, 0, out=out[cut:])


class CEHead(_Head):
    """A softmax classifier's last layer under mean cross entropy, as ``torch.nn.functional.cross_entropy`` defines it.

    Args:
        X: (N, D) features. float32 or float64, as everything else.
        W: (C, D) weight.
        b: (C,) bias, or None.
        y: (N,) integer classes, or (N, C) soft targets.
        class_weight: (C,), not negative. With integer classes the mean is over the weights of the rows that count, with
            soft targets over N, as in torch.
        ignore_index: class of rows that do not count.
        label_smoothing: in [0, 1]. Without class weights it moves the gradient, not the Hessian.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named; every row is ignored.

    The Hessian is ``sum_n r_n (diag(p_n) - p_n p_n') (x) x_n x_n'``, x with a 1 appended if there is a bias.

    >>> import torch
    >>> from lowtide.curvature import CEHead
    >>> head = CEHead(torch.eye(2), torch.zeros(2, 2), None, torch.tensor([0, 1]))
    >>> head.trace().item()
    0.5
    """

    def __init__(
        self,
        X: Tensor,
        W: Tensor,
        b: Tensor | None,
        y: Tensor,
        *,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(X, W, b)
        self._targets = cross_entropy_targets(y, X, W, class_weight, ignore_index, label_smoothing)
        self._z: Tensor | None = None

    @property
    def row_weights(self) -> Tensor:
        """(N,): what each row's term is multiplied by in the mean; 0 where ignored."""
        return self._targets.rows

    def probabilities(self) -> Tensor:
        """``softmax(X W' + b)``, (N, C)."""
        return torch.softmax(self.logits(), 1)

    def hvp(self, V: Tensor, v_b: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self._check_vector(V, v_b, "V")
        return self._pair(*softmax_product(self.X, self.W, self.b, V, v_b, self.row_weights))

    def diag(self) -> tuple[Tensor, Tensor | None]:
        return self._pair(*softmax_diagonal(self.X, self.W, self.b, self.row_weights))

    def _delta(self) -> Tensor:
        return self._targets.subtract_from(weighted_rows(self.logits(), self.row_weights))

    def _curvature(self) -> Tensor:
        return diagonal_rows(self.logits(), self.row_weights)

    def trace(self) -> Tensor:
        return trace_rows(self.logits(), self.row_weights) @ self._squares()

    def _output_product(self, u: Tensor) -> Tensor:
        if self._z is not None:  # frozen: u is the operator's own
            return product_rows_(u, self._z, self.row_weights)
        return product_rows(self.logits(), u, self.row_weights)

    def _inner(self, rows: slice) -> Tensor:
        p, r = self.probabilities(), self.row_weights
        q, s = p[rows], r[rows]
        both = q @ p.T
        return (both - q @ (p * p).T - (q * q) @ p.T + both * both) * s[:, None] * r

    def _frozen(self) -> CEHead:
        head = object.__new__(CEHead)
        _Head.__init__(
            head, self.X.detach().clone(), self.W.detach(), None if self.b is None else self.b.detach()
        )
        head._targets = self._targets
        head._z = self.logits()
        return head


class _SeparableHead(_Head):
    """A loss that is a mean over the elements of Z."""

    def _output_product(self, u: Tensor) -> Tensor:
        return self._curvature() * u

    def _inner(self, rows: slice) -> Tensor:
        h = self._curvature()
        return h[rows] @ h.T


class LogisticHead(_SeparableHead):
    """Logistic regression, one or several binary labels a row, under mean binary cross entropy with logits.

    Args:
        X: (N, D) features. float32 or float64, as everything else.
        W: (C, D) weight; (1, D) for one label.
        b: (C,) bias, or None.
        y: (N, C), or (N,) if C is 1; in [0, 1].
        pos_weight: (C,), positive; weight of the positive class, as in ``torch.nn.BCEWithLogitsLoss``.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.

    The mean is over N C elements, as torch's ``reduction="mean"``.
    """

    def __init__(
        self, X: Tensor, W: Tensor, b: Tensor | None, y: Tensor, *, pos_weight: Tensor | None = None
    ) -> None:
        super().__init__(X, W, b)
        y = y[:, None] if y.dim() == 1 else y
        if y.shape != (X.shape[0], W.shape[0]):
            raise LowtideValueError(
                f"y must have shape ({X.shape[0]}, {W.shape[0]}), one label for each row and class, got {tuple(y.shape)}"
            )
        self._y = y.detach().to(X.dtype)
        if bool(((self._y < 0) | (self._y > 1)).any()):
            raise LowtideValueError("y must lie in [0, 1]: labels or probabilities of the positive class")
        if pos_weight is not None and (pos_weight.shape != W.shape[:1] or bool((pos_weight <= 0).any())):
            raise LowtideValueError(f"pos_weight must be {W.shape[0]} positive numbers, one for each class")
        scale = 1.0 / max(self._y.numel(), 1)
        positive = self._y if pos_weight is None else self._y * pos_weight.detach().to(X.dtype)
        self._positive, self._mass = positive * scale, (positive + 1 - self._y) * scale
        self._h: Tensor | None = None

    def _delta(self) -> Tensor:
        return self._mass * torch.sigmoid(self.logits()) - self._positive

    def _curvature(self) -> Tensor:
        if self._h is not None:
            return self._h
        z = self.logits()
        return self._mass * torch.sigmoid(z) * torch.sigmoid(-z)

    def _frozen(self) -> LogisticHead:
        head = object.__new__(LogisticHead)
        _Head.__init__(
            head, self.X.detach().clone(), self.W.detach(), None if self.b is None else self.b.detach()
        )
        head._h = self._curvature()
        return head


class MSEHead(_SeparableHead):
    """Linear regression under the mean squared error: ``H = 2 X' X / (N C)`` for each output, whatever W, b and y are.

    Args:
        X: (N, D) features. float32 or float64, as everything else.
        W: (C, D) weight.
        b: (C,) bias, or None.
        y: (N, C), or (N,) if C is 1.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, named.

    The mean is over N C elements, as torch's ``reduction="mean"``.
    """

    def __init__(self, X: Tensor, W: Tensor, b: Tensor | None, y: Tensor) -> None:
        super().__init__(X, W, b)
        y = y[:, None] if y.dim() == 1 else y
        if y.shape != (X.shape[0], W.shape[0]):
            raise LowtideValueError(
                f"y must have shape ({X.shape[0]}, {W.shape[0]}), one number for each row and output, got {tuple(y.shape)}"
            )
        self._y = y.detach().to(X.dtype)
        self._scale = 2.0 / max(self._y.numel(), 1)

    def _delta(self) -> Tensor:
        return (self.logits() - self._y) * self._scale

    def _curvature(self) -> Tensor:
        return self.X.new_full((), self._scale).expand(self._y.shape)

    def _frozen(self) -> MSEHead:
        return MSEHead(
            self.X.detach().clone(), self.W.detach(), None if self.b is None else self.b.detach(), self._y
        )
