# SPDX-License-Identifier: Apache-2.0
"""The refresh axis: when a subspace is renewed, and what the search for the next one may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError


@dataclass(frozen=True)
class RefreshRequest:
    """A matrix whose subspace is to be found anew.

    Attributes:
        grad: the gradient, m x n, fp32 or bf16.
        rank: directions wanted, r.
        side: ``"right"`` (d = n) or ``"left"`` (d = m), as in :mod:`lowtide.lowrank`.
        prev: the basis in use, r x d in fp32; None at first, and where the subspace does not say ``needs_prev``.
        mean: the first moment at full size, bias-corrected; None at first, and without ``needs_mean``.
        seed, step, param: the address of random numbers; ``step`` counts updates from 0.
        refreshes: how many there were before this one.
        peers: (param, number of elements) of every low-rank matrix of the optimizer.
    """

    grad: Tensor
    rank: int
    side: str
    prev: Tensor | None = None
    mean: Tensor | None = None
    seed: int = 0
    step: int = 0
    param: int = 0
    refreshes: int = 0
    peers: tuple[tuple[int, int], ...] = ()

    @property
    def dim(self) -> int:
        """d, the length of the projected side."""
        return int(self.grad.shape[1 if self.side == "right" else 0])

    @property
    def address(self) -> dict[str, Any]:
        """``seed``, ``step`` and ``param``, as :mod:`lowtide.random` takes them."""
        return {"seed": self.seed, "step": self.step, "param": self.param}


class _Schedule:
    """What most schedules leave alone."""

    needs_prev: ClassVar[bool] = False

    def initial(self) -> dict[str, Tensor]:
        """What it keeps, as it is before the first step: a checkpoint that is loaded in place fills what is there."""
        return {}

    def observe(self, state: dict[str, Any], new: Tensor, prev: Tensor | None) -> None:
        """Called after each refresh with both bases."""

    def watch(self, state: dict[str, Any], r: Tensor) -> None:
        """Called at each step with the gradient in the subspace, before the rule changes it."""

    def nbytes(self, numel: int) -> int:
        """Bytes it keeps of a gradient that has ``numel`` elements in the subspace."""
        return 0


@dataclass(frozen=True)
class EveryT(_Schedule):
    """Refresh when ``step % gap == 0``, counted from 0 (GaLore)."""

    def due(self, state: dict[str, Any], step: int) -> bool:
        """Whether the basis is renewed before the update with this 0-based step."""
        return step % int(state["gap"]) == 0


@dataclass(frozen=True)
class LazyDoubling(_Schedule):
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

    needs_prev: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -1.0 <= self.threshold <= 1.0:
            raise LowtideValueError(f"threshold must lie in [-1, 1], got {self.threshold!r}")
        if self.gamma < 1.0:
            raise LowtideValueError(f"gamma must be >= 1, got {self.gamma!r}")
        if self.queue < 1:
            raise LowtideValueError(f"queue must be >= 1, got {self.queue!r}")

    def initial(self) -> dict[str, Tensor]:
        """The queue of overlaps, which lie in [-1, 1]; filled up with -2."""
        return {"overlaps": torch.full((self.queue,), -2.0, dtype=torch.float64)}

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
        seen = seen[seen > -1.5]
        seen = torch.cat([seen, torch.tensor([overlap], dtype=torch.float64)])[-self.queue :]
        if len(seen) == self.queue and seen.mean().item() >= self.threshold:
            state["gap"] = int(state["gap"] * self.gamma)
            if not self.compat:
                seen = seen[:0].clone()
        state["overlaps"] = torch.nn.functional.pad(seen, (0, self.queue - len(seen)), value=-2.0)


@dataclass(frozen=True)
class Displacement(_Schedule):
    """Refresh when the gradient has stopped moving within the subspace, after Lotus (arXiv 2602.01233): with R the gradient in the
    subspace and t the steps since the refresh, at every ``gap``-th of them ::

        | R_t / |R_t| - R_1 / |R_1| | / t <= threshold

    makes the next step start with a refresh. Gradients that keep their direction are displaced little; independent ones by
    sqrt(2), so that no subspace outlives ``sqrt(2) / threshold`` steps by more than a gap. ``R_1 / |R_1|`` is kept in bf16, half
    the bytes of a moment. (That the distance of unit gradients
    within the subspace decides is the paper's; threshold and gap are ours.)

    Attributes:
        threshold: displacement a step, >= 0; 0 for one basis for ever.
    """

    threshold: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < float("inf"):
            raise LowtideValueError(f"threshold must be a finite number >= 0, got {self.threshold!r}")

    def due(self, state: dict[str, Any], step: int) -> bool:
        """Whether the basis is renewed before the update with this 0-based step."""
        return "refreshed" not in state or bool(state.get("displaced", 0))

    def nbytes(self, numel: int) -> int:
        """A reference in bf16."""
        return 2 * numel

    def watch(self, state: dict[str, Any], r: Tensor) -> None:
        """Measure the displacement."""
        size = r.norm()
        if not bool(torch.isfinite(size)):
            return
        unit = r / size.clamp_min(torch.finfo(torch.float32).tiny)  # a zero gradient stays zero
        since = int(state["step"]) - int(state["refreshed"])
        if state.get("referred") != state["refreshes"]:
            state["referred"], state["displaced"] = state["refreshes"], 0
            state["reference"] = unit.to(torch.bfloat16)
        elif since % int(state["gap"]) == 0:
            moved = float((unit - state["reference"]).norm()) / since
            state["displaced"] = int(moved <= self.threshold)


Refresh: TypeAlias = "EveryT | LazyDoubling | Displacement"
