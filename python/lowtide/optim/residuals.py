# SPDX-License-Identifier: Apache-2.0
"""The residual axis: what becomes of the part of a gradient that its subspace misses.

Notation: G gradient (m x n), R = down(G), N the rule's direction in the subspace, S = G - up(R) the residual. Norms
"per channel" are those of columns where the left side is projected and of rows where the right one is, so that each
channel has all its r coordinates in R.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim.bases import Basis
from lowtide.optim.norms import channel_energy, total
from lowtide.optim.stores import BasisStore
from lowtide.optim.updates import Update
from lowtide.optim.weights import finite

#: Guards quotients of norms, as in the codes of Fira and APOLLO.
_TINY = 1e-8


class Here:
    """Norms of a matrix. Those whose rows lie on several processes are :class:`lowtide.optim.sharded_bases.Across`."""

    def energy(self, grad: Tensor, side: str) -> Tensor:
        """Sums of squares of the gradient per channel, float64."""
        return channel_energy(grad, side)

    def total(self, energy: Tensor) -> float:
        """The sum over all channels."""
        return total(energy)

    def finite(self, grad: Tensor) -> bool:
        """Whether no element of the whole gradient is inf or NaN."""
        return finite(grad)


@dataclass(frozen=True)
class LowRankStep:
    """One matrix in the middle of its step.

    Attributes:
        grad: G, fp32 or bf16. r: R, fp32; holds N once :attr:`advance` was called.
        advance: runs the rule on ``r`` in place and moves the moments; to be called once.
        basis, side, state: of this matrix. scale: the group's ``scale``.
        correction: by how much the rule's direction is larger than ``m / (sqrt(v) + eps)``.
        lost: what the first moment lost when the subspace was replaced in this step, full size, times beta1 / (1 - beta1).
        norms: sums over the matrix.
    """

    grad: Tensor
    r: Tensor
    advance: Callable[[], None]
    basis: Basis
    side: str
    state: dict[str, Any]
    scale: float
    correction: float
    lost: Tensor | None = None
    norms: Here = field(default_factory=Here)


class Residual(Protocol):
    """Combines the direction in the subspace with what lies outside.

    Attributes:
        needs_lost: whether :attr:`LowRankStep.lost` is looked at.
        initial: numbers that it keeps, as they are before the first step: a checkpoint that is loaded in place fills what is there.
    """

    initial: ClassVar[dict[str, float]]

    @property
    def needs_lost(self) -> bool: ...  # noqa: D102

    def prepare(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        """The gradient that this step works with."""
        ...

    def update(self, s: LowRankStep) -> Update | None:
        """Call ``s.advance()`` and return what the weight moves by. None if G is not finite and the update would be spoilt by
        that: then nothing was called and the matrix is left alone."""
        ...


class _Memoryless:
    """Residuals that keep nothing of the gradient from one step to the next."""

    needs_lost: ClassVar[bool] = False
    initial: ClassVar[dict[str, float]] = {}

    def prepare(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        """See :class:`Residual`."""
        return grad


@dataclass(frozen=True)
class Drop(_Memoryless):
    """Nothing (GaLore, Q-GaLore): ``U = up(N)``, factor ``scale``."""

    def update(self, s: LowRankStep) -> Update | None:
        """See :class:`Residual`."""
        if not s.basis.reads_all and not s.norms.finite(s.grad):
            return None  # counted and said, although no harm would come of it
        s.advance()
        return _in_subspace(s)


@dataclass(frozen=True)
class SignResidual(_Memoryless):
    """signSGD or SGD outside the subspace (FRUGAL, Zmushko et al., ICML 2025, arXiv 2411.07837, algorithm 1)::

        U = up(N) + lr_scale sign(S)        kind "sign"
        U = up(N) + lr_scale S              kind "sgd"

    with factor ``scale``: no state at all for the residual.

    Attributes:
        lr_scale: learning rate outside of the subspace as a multiple of the one inside, >= 0.
        kind: ``"sign"`` or ``"sgd"``.
    """

    lr_scale: float = 1.0
    kind: str = "sign"

    def __post_init__(self) -> None:
        if self.kind not in ("sign", "sgd"):
            raise LowtideValueError(f"kind must be 'sign' or 'sgd', got {self.kind!r}")
        if not 0.0 <= self.lr_scale < math.inf:
            raise LowtideValueError(f"lr_scale must be a finite number >= 0, got {self.lr_scale!r}")

    def update(self, s: LowRankStep) -> Update | None:
        """See :class:`Residual`."""
        if not s.norms.finite(s.grad):
            return None
        # Where columns are chosen nothing of them is left, and the update is that of the subspace alone.
        rest = s.grad if s.basis.chosen else s.basis.rest(s.grad, s.r)
        s.advance()
        inside = _in_subspace(s)
        return replace(inside, grad=rest, k=torch.full((1, 1), self.lr_scale), sign=self.kind == "sign")


@dataclass(frozen=True)
class ScaledResidual(_Memoryless):
    """The residual at the subspace's learning rate, channel by channel (Fira, Chen et al., NeurIPS 2025, arXiv 2410.01623,
    algorithm 1)::

        k_i = |N_i| / (|R_i| + 1e-8)        per channel i
        U = up(N) + c S diag(k)             factor scale

    The norm-growth limiter c keeps the norm of ``S diag(k)`` from growing by more than ``limiter`` a step. That norm comes from
    ``|S_i|^2 = |G_i|^2 - |R_i|^2``, which needs orthonormal rows; one product with the basis is saved by ``c S diag(k) + up(N) =
    c G diag(k) + up(N - c R diag(k))``.

    Attributes:
        limiter: the largest growth, >= 1 (the paper's gamma).
        compat: as fira 1.0.2: the limiter sees the norm before the bias correction, S is ``G - scale up(R)``, and only
            ``up(N)`` is multiplied by ``scale``. With scale 1 that leaves the first of the three.
    """

    limiter: float = 1.01
    compat: bool = False

    initial: ClassVar[dict[str, float]] = {"residual_norm": 0.0}

    def __post_init__(self) -> None:
        _check_limiter(self.limiter)

    def update(self, s: LowRankStep) -> Update | None:
        """See :class:`Residual`."""
        energy = s.norms.energy(s.grad, s.side)
        if not math.isfinite(s.norms.total(energy)):
            return None
        r = s.r.clone()
        r_energy = channel_energy(r, s.side)
        s.advance()
        k = channel_energy(s.r, s.side).sqrt() / (r_energy.sqrt() + _TINY)
        inner = s.scale if self.compat else 1.0
        # |G - inner up(R)|^2 by channel; round-off may leave less than nothing of a gradient that the subspace holds whole.
        missed = (energy - inner * (2.0 - inner) * r_energy).clamp_min(0.0)
        norm = math.sqrt(s.norms.total(k * k * missed))
        c = _limit(s.state, norm / s.correction if self.compat else norm, self.limiter)
        k = _along(k * c, s.side)
        r *= k
        r = s.r - r
        u = s.basis.up(r.mul_(inner) if inner != 1.0 else r)
        return Update(u, 1.0 if self.compat else s.scale, s.grad, k)


@dataclass(frozen=True)
class ScaledGradient(_Memoryless):
    """The whole gradient at the learning rates that the subspace suggests (APOLLO, Zhu et al., MLSys 2025, arXiv 2412.05270,
    algorithm 1); the direction N is only measured::

        k = |N| / (|R| + 1e-8)              per channel, or of the whole matrix (per="tensor", APOLLO-Mini)
        U = c G diag(k)                     factor sqrt(scale)

    with the norm-growth limiter c of Fira.

    Attributes:
        per: ``"channel"`` or ``"tensor"``.
        limiter: the largest growth of the norm of U, >= 1; None for none.
        compat: as apollo-torch 1.0.3: the limiter sees the norm before the bias correction.
    """

    per: str = "channel"
    limiter: float | None = 1.01
    compat: bool = False

    initial: ClassVar[dict[str, float]] = {"residual_norm": 0.0}

    def __post_init__(self) -> None:
        if self.per not in ("channel", "tensor"):
            raise LowtideValueError(f"scale_type must be 'channel' or 'tensor', got {self.per!r}")
        if self.limiter is not None:
            _check_limiter(self.limiter)

    def update(self, s: LowRankStep) -> Update | None:
        """See :class:`Residual`."""
        energy = s.norms.energy(s.grad, s.side)
        whole = s.norms.total(energy)
        if not math.isfinite(whole):
            return None
        before = channel_energy(s.r, s.side)
        s.advance()
        after = channel_energy(s.r, s.side)
        if self.per == "tensor":
            k = math.sqrt(s.norms.total(after)) / (math.sqrt(s.norms.total(before)) + _TINY)
            norm = k * math.sqrt(whole)
            return self._scaled(s, torch.ones(1, 1), k, norm)
        ks = after.sqrt() / (before.sqrt() + _TINY)
        norm = math.sqrt(s.norms.total(ks * ks * energy))
        return self._scaled(s, _along(ks, s.side), 1.0, norm)

    def _scaled(self, s: LowRankStep, k: Tensor, factor: float, norm: float) -> Update:
        return Update(None, math.sqrt(s.scale) * factor * self._limit(s, norm), s.grad, k)

    def _limit(self, s: LowRankStep, norm: float) -> float:
        if self.limiter is None:
            return 1.0
        return _limit(s.state, norm / s.correction if self.compat else norm, self.limiter)


@dataclass(frozen=True)
class ErrorFeedback:
    """What the subspace misses is added to the next gradient (Seide et al. 2014; DCT-AdamW, arXiv 2505.17967, algorithm 1;
    LDAdam, arXiv 2410.16103, algorithm 1)::

        G = G + E,    E = G - up(R),    U = up(N), factor ``scale``

    Attributes:
        store: how E is kept: ``"fp32"``, ``"bf16"``, ``"int8"``, ``"int4"`` (groups of 256, nearest).
        of_moments: E also takes what the first moment loses when the subspace is replaced, times beta1 / (1 - beta1): LDAdam's
            generalized form.
    """

    store: str = "fp32"
    of_moments: bool = False

    initial: ClassVar[dict[str, float]] = {}

    def __post_init__(self) -> None:
        self._store()

    @property
    def needs_lost(self) -> bool:
        """See :class:`Residual`."""
        return self.of_moments

    def prepare(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        """See :class:`Residual`."""
        error = self._store().dense(state, "error")
        return grad if error is None else error + grad

    def update(self, s: LowRankStep) -> Update | None:
        """See :class:`Residual`."""
        if not s.norms.finite(s.grad):
            return None
        error = s.basis.rest(s.grad, s.r)
        if s.lost is not None:
            error += s.lost
        self._store().save(s.state, error, "error")
        s.advance()
        return _in_subspace(s)

    def _store(self) -> BasisStore:
        if self.store not in ("fp32", "bf16", "int8", "int4"):
            raise LowtideValueError(
                f"error_feedback must be 'fp32', 'bf16', 'int8' or 'int4', got {self.store!r}"
            )
        return BasisStore(self.store)


def _in_subspace(s: LowRankStep) -> Update:
    """What the direction N moves."""
    if s.basis.chosen is None:
        return Update(s.basis.up(s.r), s.scale)
    index, dim = s.basis.chosen
    return Update(s.r, s.scale, index=index, dim=dim)


def _check_limiter(limiter: float) -> None:
    if not 1.0 <= limiter < math.inf:
        raise LowtideValueError(f"limiter must be a finite number >= 1, got {limiter!r}")


def _limit(state: dict[str, Any], norm: float, limiter: float) -> float:
    """What to multiply by so that ``norm`` grows by ``limiter`` at most; remembers the result.

    A norm of zero is no measure of growth: the limit after it would be zero for ever.
    """
    prev = state.get("residual_norm", 0.0)
    c = 1.0 if prev == 0.0 else limiter / max(norm / (prev + _TINY), limiter)
    if norm * c > 0.0:
        state["residual_norm"] = norm * c
    return c


def _along(k: Tensor, side: str) -> Tensor:
    k = k.float()
    return k[:, None] if side == "right" else k[None, :]
