# SPDX-License-Identifier: Apache-2.0
"""Subspaces that follow, switch or stay: Grassmann steps, a change of kind late in training, bases given from outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.refresh import RefreshRequest
from lowtide.optim.subspaces import RandomizedSVD, RandomOrthonormal, Subspace, _Dense


@dataclass(frozen=True)
class Grassmann(_Dense):
    """A step on the Grassmannian at each refresh (SubTrack++, Rajabi et al., NeurIPS 2025, arXiv 2502.01586, algorithm 1): the
    basis turns in one plane, along the best rank-1 approximation ``sigma v u^T`` of the direction in which
    ``|G - up(down(G))|^2`` falls. The first basis comes from a randomized SVD.

    With rows B (r x d), A the coordinates of the gradient in them and a its row along v::

        T = A^T G - A^T A B  (right),   A G^T - A A^T B  (left),        T ~ sigma v u^T
        B = B + v ((cos(t) - 1) v^T B + sin(t) u^T),                    t = 2 sigma step_size

    t never passes the angle that holds most of this gradient, ``tan(2 t) = 2 sigma / (|a|^2 - |G u|^2)``: what a rate means
    depends on the scale of gradients, and a step beyond that angle would lose energy. One step of Newton and Schulz keeps
    rows orthonormal.

    Attributes:
        step_size: the paper's eta, > 0; None: that best angle itself.
    """

    step_size: float | None = 10.0

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0.0 < self.step_size < math.inf:
            raise LowtideValueError(f"step_size must be a finite number > 0 or None, got {self.step_size!r}")

    @property
    def needs_prev(self) -> bool:
        """See :class:`Subspace`."""
        return True

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        from lowtide import ops

        b, g = request.prev, request.grad
        if b is None:
            return ops.rsvd(g, request.rank, side=request.side, **request.address)
        right = request.side == "right"
        a = ops.matmul(g, b, tb=True) if right else ops.matmul(b, g)
        own = ops.matmul(a, a, ta=right, tb=not right)
        tangent = ops.matmul(a, g, ta=right, tb=not right) - ops.matmul(own, b)
        # The leading singular pair, from the r x r Gram matrix.
        gram = ops.matmul(tangent, tangent, tb=True).double()
        values, vectors = torch.linalg.eigh(gram)
        sigma = math.sqrt(max(float(values[-1]), 0.0))
        if sigma == 0.0:
            return b
        v = vectors[:, -1:].float().contiguous()
        u = ops.matmul(v, tangent, ta=True)  # 1 x d
        u -= ops.matmul(ops.matmul(u, b, tb=True), b)  # round-off along B, which matters where T is small
        u /= u.norm()
        inside = float((ops.matmul(a, v) if right else ops.matmul(v, a, ta=True)).square().sum())
        outside = float((ops.matmul(g, u, tb=True) if right else ops.matmul(u, g)).square().sum())
        angle = 0.5 * math.atan2(2.0 * sigma, inside - outside)
        if self.step_size is not None:
            angle = min(angle, 2.0 * sigma * self.step_size)
        turn = ops.matmul(v, b, ta=True).mul_(math.cos(angle) - 1.0).add_(u, alpha=math.sin(angle))
        return _polished(b + ops.matmul(v, turn))


def _polished(b: Tensor) -> Tensor:
    """One Newton-Schulz step towards orthonormal rows: an error e becomes about e^2."""
    from lowtide import ops

    gram = ops.matmul(b, b, tb=True)
    return b.mul(1.5).sub_(ops.matmul(gram, b), alpha=0.5)


@dataclass(frozen=True)
class Switch(_Dense):
    """One kind of basis until a step, another from the first refresh after it: GoLore's change to random bases where noise
    has come to dominate the gradient (He et al., ICML 2025, arXiv 2410.11289).

    Attributes:
        first, then: subspaces whose bases are matrices.
        at: the update (counted from 0) from which ``then`` is asked, >= 0.
    """

    first: Subspace = dataclasses.field(default_factory=RandomizedSVD)
    then: Subspace = dataclasses.field(default_factory=RandomOrthonormal)
    at: int = 0

    def __post_init__(self) -> None:
        for kind in (self.first, self.then):
            if kind.kind != "dense" or kind.needs_mean:
                raise LowtideValueError(
                    f"Switch takes subspaces whose bases are matrices of the gradient alone, got {type(kind).__name__}"
                )
        if not isinstance(self.at, int) or isinstance(self.at, bool) or self.at < 0:
            raise LowtideValueError(f"at must be an integer >= 0 (steps), got {self.at!r}")

    @property
    def needs_prev(self) -> bool:
        """See :class:`Subspace`."""
        return self.first.needs_prev or self.then.needs_prev

    def find(self, request: RefreshRequest) -> Tensor | None:
        """See :class:`Subspace`."""
        return (self.first if request.step < self.at else self.then).find(request)


@dataclass(frozen=True, eq=False)
class Fixed(_Dense):
    """Bases given from outside that never change: the null space of earlier tasks, directions of a GPM memory.

    Attributes:
        bases: one matrix (r x d, orthonormal rows) for each low-rank parameter, by its id: its position in
            ``model.named_parameters()``, as :func:`lowtide.optim.param_groups` notes it in ``param_ids``. r must be the rank
            of the group (an error names both), d the projected side.
    """

    bases: Mapping[int, Tensor]

    two_sided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for i, b in self.bases.items():
            if not isinstance(b, Tensor) or b.dtype not in (torch.float32, torch.bfloat16) or b.dim() != 2:
                raise LowtideTypeError(f"basis {i!r} must be a float32 or bfloat16 matrix, r x d")
            gram = b.float() @ b.float().T
            if not bool(((gram - torch.eye(len(b))).abs() < 1e-2).all()):
                raise LowtideValueError(
                    f"basis {i!r} must have orthonormal rows; take torch.linalg.qr(basis.T)[0].T"
                )

    def find(self, request: RefreshRequest) -> Tensor:
        """See :class:`Subspace`."""
        b = self.bases.get(request.param)
        if b is None:
            raise LowtideValueError(
                f"bases has none for parameter {request.param}; it has {sorted(self.bases)}: give the others a group without rank"
            )
        want = (request.rank, request.dim)
        if tuple(b.shape) != want:
            raise LowtideValueError(
                f"the basis of parameter {request.param} must be {want[0]} x {want[1]} (rank x {request.side} side), got "
                f"{tuple(b.shape)}"
            )
        return b.detach().float().contiguous()
