# SPDX-License-Identifier: Apache-2.0
"""The constraint axis: where a weight may not move. It sees the gradient before the rule and the finished full-size update
before the weight moves, after rule, residual and back-projection.

Projecting the gradient alone is not enough under Adam: its preconditioner turns the direction back into what was projected
out, and momentum from before a constraint still holds it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.norms import dot

#: Below this share of its norm, what is left of a vector is round-off: it is not scaled up.
_ROUND_OFF = 1e-5


class Constraint(Protocol):
    """What may become of gradients and updates. Matrices are (first, rest) for parameters of more dimensions; nothing that is
    passed in may be changed."""

    def holds(self, p: Tensor) -> bool:
        """Whether ``p`` is constrained at all."""
        ...

    def digest(self, p: Tensor) -> str:
        """Names the constraint of ``p``: saved with its state, so that a run goes on under the same one."""
        ...

    def of_gradient(self, p: Tensor, grad: Tensor) -> Tensor:
        """The gradient that subspace and rule work with, for ``grad`` (fp32 or bf16)."""
        ...

    def of_update(self, p: Tensor, update: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """The update to take in place of ``update`` (fp32), and what the group's weight decay is multiplied by. ``grad`` is
        what :meth:`of_gradient` gave."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ...


@dataclass(frozen=True)
class Projection:
    """A linear map of one side of an update: ``U - U Bᵀ diag(weights) B`` (right), ``U - Bᵀ diag(weights) B U`` (left).

    Attributes:
        basis: B, k x d with orthonormal rows, fp32 or bf16 (kept as fp32); d is the number of columns of the weight (right)
            or of its rows (left). k may be 0: nothing is removed.
        weights: k numbers in [0, 1], or None for 1: how much of each direction is removed (SGP's lambda).
        side: ``"right"`` (the layer's inputs) or ``"left"`` (its outputs).
        keep: keep the span of B and remove the rest: ``U Bᵀ B``. Takes no ``weights``.
        scale: multiplies what is left, > 0.

    Raises:
        LowtideValueError, LowtideTypeError: of these one that does not hold.
    """

    basis: Tensor
    weights: Tensor | None = None
    side: str = "right"
    keep: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        b, lam = self.basis, self.weights
        if not isinstance(b, Tensor) or b.dtype not in (torch.float32, torch.bfloat16):
            got = b.dtype if isinstance(b, Tensor) else type(b).__name__
            raise LowtideTypeError(f"basis must be a float32 or bfloat16 tensor, got {got}")
        if b.dim() != 2 or b.shape[0] > b.shape[1]:
            raise LowtideValueError(
                f"basis must be k x d with k <= d (its rows are directions), got {tuple(b.shape)}"
            )
        if self.side not in ("right", "left"):
            raise LowtideValueError(f"side must be 'right' or 'left', got {self.side!r}")
        if not 0.0 < self.scale < math.inf:
            raise LowtideValueError(f"scale must be a finite number > 0, got {self.scale!r}")
        object.__setattr__(self, "basis", b.detach().float().contiguous())
        _check_orthonormal(self.basis, 2e-2 if b.dtype == torch.bfloat16 else 1e-3)
        if lam is None:
            return
        if self.keep:
            raise LowtideValueError("weights cannot be given with keep=True; they say how much is removed")
        if not isinstance(lam, Tensor) or tuple(lam.shape) != (b.shape[0],):
            found = tuple(lam.shape) if isinstance(lam, Tensor) else type(lam).__name__
            raise LowtideValueError(
                f"weights must be a tensor of shape ({b.shape[0]},), one a row of basis, got {found}"
            )
        lam = lam.detach().float().contiguous()
        if lam.numel() and not bool(((lam >= 0.0) & (lam <= 1.0)).all()):
            raise LowtideValueError("weights must be in [0, 1]")
        object.__setattr__(self, "weights", lam)

    @property
    def nbytes(self) -> int:
        """Bytes of basis and weights."""
        return self.basis.nbytes + (0 if self.weights is None else self.weights.nbytes)

    @property
    def idle(self) -> bool:
        """Whether nothing is removed."""
        return not self.keep and self.basis.shape[0] == 0 and self.scale == 1.0

    def __call__(self, update: Tensor) -> Tensor:
        """The projected ``update`` (m x n, fp32), new."""
        from lowtide import ops

        b, right = self.basis, self.side == "right"
        if b.shape[0] == 0:
            return torch.zeros_like(update) if self.keep else update * self.scale
        inner = ops.matmul(update, b, tb=True) if right else ops.matmul(b, update)
        if self.weights is not None:
            inner *= self.weights if right else self.weights[:, None]
        out = ops.matmul(inner, b) if right else ops.matmul(b, inner, ta=True)
        if not self.keep:
            torch.sub(update, out, out=out)
        return out.mul_(self.scale) if self.scale != 1.0 else out


@dataclass(frozen=True)
class NullSpace:
    """Fixed subspaces in which weights do not move (GPM, SGP, Adam-NSCL and others: :mod:`lowtide.continual`).

    Each update is projected as a whole, with whatever the rule made of it. A matrix with a projection is not decayed: that
    would move it along what is protected. Weights stored in bf16 or INT8 are rounded after the projection, so that
    stochastic rounding leaves noise, of mean zero, in the protected directions too; fp32 weights have none.

    Attributes:
        bases: parameter to its projection, or to several that are applied one after the other; a tensor stands for
            ``Projection(tensor)``. Other parameters move freely.

    Raises:
        LowtideValueError, LowtideTypeError: a projection does not fit its parameter.
    """

    bases: Mapping[Tensor, Projection | Tensor | Sequence[Projection]]
    _parts: dict[Tensor, tuple[Projection, ...]] = field(init=False, repr=False)
    _digests: dict[Tensor, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts: dict[Tensor, tuple[Projection, ...]] = {}
        for p, given in self.bases.items():
            if not isinstance(p, Tensor):
                raise LowtideTypeError(f"bases must be keyed by parameters, got {type(p).__name__}")
            chain = (Projection(given),) if isinstance(given, Tensor) else given
            chain = (chain,) if isinstance(chain, Projection) else tuple(chain)
            shape = weight_store.shape(p)
            for part in chain:
                if not isinstance(part, Projection):
                    raise LowtideTypeError(
                        f"bases must hold Projections or tensors, got {type(part).__name__}"
                    )
                size = 0 if len(shape) < 2 else shape[0] if part.side == "left" else shape[1:].numel()
                if len(shape) < 2 or part.basis.shape[1] != size:
                    raise LowtideValueError(
                        f"a {part.side} basis for a parameter of shape {tuple(shape)} must have {size or 'no'} columns, got "
                        f"{tuple(part.basis.shape)}"
                    )
            parts[p] = tuple(part for part in chain if not part.idle)
        parts = {p: chain for p, chain in parts.items() if chain}
        object.__setattr__(self, "bases", dict(parts))
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_digests", {p: _digest(chain) for p, chain in parts.items()})

    def holds(self, p: Tensor) -> bool:
        """See :class:`Constraint`."""
        return p in self._parts

    def digest(self, p: Tensor) -> str:
        """See :class:`Constraint`."""
        return self._digests[p]

    def of_gradient(self, p: Tensor, grad: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        return grad

    def of_update(self, p: Tensor, update: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """See :class:`Constraint`."""
        for part in self._parts[p]:
            update = part(update)
        return update, 0.0

    @property
    def nbytes(self) -> int:
        """See :class:`Constraint`."""
        return sum(part.nbytes for chain in self._parts.values() for part in chain)


@dataclass(frozen=True)
class Perpendicular:
    """No step along the weight itself (perpendicular gradient, Prieto et al. 2025, arXiv 2501.04697, section 5)::

        g = g - <w, g> / (<w, w> + 1e-30) w

    over each whole parameter. Scaling a network's last weights up lowers its loss without changing any prediction; without
    that way out, training that has fitted its data goes on to generalize.

    Attributes:
        rescale: give the rest the norm that the whole had, as in the paper. Where only round-off is left (a parameter of one
            element, a gradient along the weight) it is not scaled.
        of: ``"gradient"``, the paper's form and the default: its results are with this, for any rule. ``"update"``: what the
            rule made of the gradient. Adam's preconditioner turns its direction towards the weight again, so only this form
            keeps the step itself perpendicular.
    """

    rescale: bool = True
    of: str = "gradient"

    nbytes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.of not in ("gradient", "update"):
            raise LowtideValueError(f"of must be 'gradient' or 'update', got {self.of!r}")

    def holds(self, p: Tensor) -> bool:
        """See :class:`Constraint`."""
        return weight_store.shape(p).numel() > 1

    def digest(self, p: Tensor) -> str:
        """See :class:`Constraint`."""
        return f"perpendicular {self.of} {'rescaled' if self.rescale else 'plain'}"

    def of_gradient(self, p: Tensor, grad: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        return self._apart(p, grad) if self.of == "gradient" else grad

    def of_update(self, p: Tensor, update: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """See :class:`Constraint`."""
        return (self._apart(p, update) if self.of == "update" else update), 1.0

    def _apart(self, p: Tensor, x: Tensor) -> Tensor:
        w = weight_store.dense(p).reshape(x.shape)
        g = x.float()
        out = torch.sub(g, w, alpha=dot(w, g) / (dot(w, w) + 1e-30))
        if self.rescale:
            whole, rest = dot(g, g), dot(out, out)
            if rest > _ROUND_OFF**2 * whole:
                out *= math.sqrt(whole / rest)
        return out


def _check_orthonormal(basis: Tensor, tolerance: float) -> None:
    if basis.shape[0] == 0:
        return
    if not weight_store.finite(basis):
        raise LowtideValueError("basis must be finite, it holds inf or NaN")
    gram = basis @ basis.T
    gram.diagonal().sub_(1.0)
    worst = float(gram.abs().max())
    if worst > tolerance:
        raise LowtideValueError(
            f"basis must have orthonormal rows, products of rows are off by {worst:.3g}; take those of torch.linalg.qr"
        )


def _digest(chain: Sequence[Projection]) -> str:
    seen = hashlib.sha256()
    for part in chain:
        about = (part.side, part.keep, part.scale, tuple(part.basis.shape), part.weights is None)
        seen.update(repr(about).encode())
        for x in (part.basis, part.weights):
            if x is not None:
                seen.update(x.cpu().numpy().tobytes())
    return seen.hexdigest()[:32]
