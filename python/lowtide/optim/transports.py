# SPDX-License-Identifier: Apache-2.0
"""The transport axis: what becomes of the moments when their subspace is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.optim.rules import AdamRule, Rule
from lowtide.optim.stores import StateStore


@dataclass(frozen=True)
class Change:
    """A replaced subspace.

    Attributes:
        matrix: called for ``B_new B_oldᵀ`` (r x r), where bases are matrices.
        old, new: indices (int32, ascending), where they are indices; else None.
        carry: takes coordinates in the old basis to the new one by way of the full size, ``down_new(up_old(r))``.
    """

    matrix: Callable[[], Tensor]
    old: Tensor | None = None
    new: Tensor | None = None
    carry: Callable[[Tensor], Tensor] | None = None


def overlap(new: Tensor | None, prev: Tensor | None) -> Tensor:
    """``new prevᵀ`` (r x r)."""
    from lowtide import ops

    assert new is not None
    assert prev is not None
    return ops.matmul(new, prev, tb=True)


class Transport(Protocol):
    """Called after a refresh that replaced an older basis.

    Attributes:
        needs_fp32: whether moments must be kept in fp32.
        needs_prev: whether :meth:`switch` looks at the (dense) basis that was replaced.
    """

    needs_fp32: ClassVar[bool]
    needs_prev: ClassVar[bool]

    def switch(self, state: dict[str, Any], rule: Rule, store: StateStore, change: Change) -> None:
        """Change the moments in ``state``."""
        ...


@dataclass(frozen=True)
class Stale:
    """Keep the moments as they are (GaLore, Q-GaLore, Fira, APOLLO)."""

    needs_fp32: ClassVar[bool] = False
    needs_prev: ClassVar[bool] = False

    def switch(self, state: dict[str, Any], rule: Rule, store: StateStore, change: Change) -> None:
        """See :class:`Transport`."""


@dataclass(frozen=True)
class Reset:
    """Zero the moments and restart their bias correction (FRUGAL, GRASS)."""

    needs_fp32: ClassVar[bool] = False
    needs_prev: ClassVar[bool] = False

    def switch(self, state: dict[str, Any], rule: Rule, store: StateStore, change: Change) -> None:
        """See :class:`Transport`."""
        for name, signed in rule.moments:
            store.reset(state, name, signed)
        for name in rule.factor_names:
            if name in state:
                state[name].zero_()
        state["moment_step"] = 0


@dataclass(frozen=True)
class Reproject:
    """Carry the first moment over, ``m = down_new(up_old(m))``: ``M A_old A_newᵀ`` of Flora (Hao et al., ICML 2024, arXiv 2402.03293,
    algorithm 2), for bases of any kind, also those that are only a seed. Other moments stay as they are."""

    needs_fp32: ClassVar[bool] = True
    needs_prev: ClassVar[bool] = False

    def switch(self, state: dict[str, Any], rule: Rule, store: StateStore, change: Change) -> None:
        """See :class:`Transport`."""
        name = rule.moments[0][0]
        assert change.carry is not None
        state[name] = change.carry(state[name])


@dataclass(frozen=True)
class Rotate:
    """Express the moments in the new basis.

    Between matrices, with ``C = B_new B_oldᵀ``, as LDAdam does (Robert et al., ICLR 2025, arXiv 2410.16103, section 3.2)::

        m = C m,    v = bc2 | C² (v / bc2 - (m / bc1)²) + (C m / bc1)² |        (squares by element)

    Between sets of indices C is 0 and 1, so that moments of what stays are gathered and those of what comes are zero
    (DCT-AdamW, Modoranu et al. 2025, arXiv 2505.17967, section 3.4).
    """

    needs_fp32: ClassVar[bool] = True
    needs_prev: ClassVar[bool] = True

    def switch(self, state: dict[str, Any], rule: Rule, store: StateStore, change: Change) -> None:
        """See :class:`Transport`."""
        names = [name for name, _ in rule.moments]
        axis = 1 if state["side"] == "right" else 0
        if change.new is not None and change.old is not None:
            for name in names:
                state[name] = _gather(state[name], change.old, change.new, axis)
            return
        c = change.matrix()
        mean = state[names[0]]
        turned = _turn(c, mean, axis)
        if len(names) > 1:
            assert isinstance(rule, AdamRule)
            steps = state.get("moment_step", state["step"])
            bc1, bc2 = (1.0 - beta**steps for beta in rule.betas)
            spread = _turn(c * c, state[names[1]] / bc2 - (mean / bc1).square(), axis)
            state[names[1]] = (spread + (turned / bc1).square()).abs_().mul_(bc2)
        state[names[0]] = turned


def _turn(c: Tensor, x: Tensor, axis: int) -> Tensor:
    from lowtide import ops

    return ops.matmul(c, x) if axis == 0 else ops.matmul(x, c, tb=True)


def _gather(x: Tensor, old: Tensor, new: Tensor, axis: int) -> Tensor:
    at = torch.searchsorted(old, new).clamp_max(old.numel() - 1)
    moved = x.index_select(axis, at)
    return moved.index_fill_(axis, (old[at] != new).nonzero().reshape(-1), 0.0)
