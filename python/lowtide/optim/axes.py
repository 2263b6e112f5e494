# SPDX-License-Identifier: Apache-2.0
"""The choices that make an optimizer, and what every update asks of them together."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.bases import Basis
from lowtide.optim.constraints import Constraint
from lowtide.optim.curvature_sources import CurvatureSource
from lowtide.optim.groups import rank_of
from lowtide.optim.meter import Meter
from lowtide.optim.parametrizations import WeightNorm
from lowtide.optim.refresh import Refresh
from lowtide.optim.residuals import Residual
from lowtide.optim.rules import AdamRule, Rule
from lowtide.optim.rules_curvature import CURVATURE_RULES
from lowtide.optim.shards import Rows, is_distributed
from lowtide.optim.stores import BasisStore, StateStore
from lowtide.optim.subspaces import Subspace
from lowtide.optim.subspaces_two_sided import TwoSided, check_two_sided
from lowtide.optim.transforms import GradientTransform
from lowtide.optim.transports import Reset, Rotate, Transport

#: How the fused kernels call the first, second and third moment.
_CODES, _ABSMAX = ("ms", "vs", "ws"), ("m_absmax", "v_absmax", "w_absmax")
State: TypeAlias = "dict[str, Any]"


def projected_shape(state: State, rows: int, cols: int) -> tuple[int, int]:
    """The shape of a gradient in its subspace."""
    rank = state["rank"]
    return {"right": (rows, rank), "left": (rank, cols), "full": (rank, rank)}[state["side"]]


def side_of(shape: tuple[int, int], proj_type: str) -> str:
    """Which side of a matrix of this shape ``proj_type`` projects."""
    from lowtide.lowrank import side_for

    return "full" if proj_type == "full" else side_for(shape, proj_type)


@dataclass
class Axes:
    """One value on each axis of :class:`~lowtide.optim.Composed`, whose arguments these are.

    Attributes:
        peers: (param id, number of elements) of every low-rank matrix.
        skipped: for each fused call, how many blocks it left alone (tensors, not yet added up).
        clamped: whether it was said that a rank is more than a matrix has.
        meter: what is measured of each step (:func:`lowtide.optim.measure`).
    """

    rule: Rule
    subspace: Subspace
    basis: BasisStore
    refresh: Refresh
    transport: Transport
    residual: Residual
    store: StateStore
    decay: str
    stochastic: bool
    seed: int
    constraint: Constraint | None = None
    parametrization: WeightNorm | None = None
    curvature: CurvatureSource | None = None
    transform: GradientTransform | None = None
    peers: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[Tensor] = field(default_factory=list)
    clamped: bool = False
    meter: Meter | None = None

    def __post_init__(self) -> None:
        if self.decay not in ("before", "after"):
            raise LowtideValueError(f"decay must be 'before' or 'after', got {self.decay!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise LowtideValueError(f"seed must be an integer in [0, 2**63), got {self.seed!r}")
        if self.refresh.needs_prev and self.subspace.kind != "dense":
            raise LowtideValueError(
                f"refresh {type(self.refresh).__name__} compares bases, {type(self.subspace).__name__} has none to compare; "
                "use EveryT"
            )
        name = type(self.transport).__name__
        if self.transport.needs_fp32 and self.store.kind != "fp32":
            raise LowtideValueError(
                f"transport {name} needs fp32 moments, got state {self.store.kind!r}; use StateStore()"
            )
        if isinstance(self.transport, Rotate):
            if self.subspace.kind not in ("dense", "indices"):
                raise LowtideValueError("transport Rotate needs bases that are stored; use Stale or Reset")
            more = len(self.rule.moments) > 1 or self.rule.factor_names
            if more and type(self.rule) is not AdamRule:
                raise LowtideValueError(
                    f"transport Rotate knows Adam's second moment, not that of {type(self.rule).__name__}; use Reset"
                )
        if self.parametrization is not None:
            if self.constraint is not None:
                raise LowtideValueError(
                    "constraint cannot hold with a parametrization, which moves the weight after it; leave one of them out"
                )
            if not self.rule.fused or self.rule.factor_names:
                raise LowtideValueError(
                    f"parametrization needs an elementwise rule such as AdamRule, got {type(self.rule).__name__}"
                )
        if self.subspace.varies and not isinstance(self.transport, Reset):
            raise LowtideValueError(
                f"subspace {type(self.subspace).__name__} changes the shape of the moments; use transport Reset, not {name}"
            )
        if isinstance(self.rule, CURVATURE_RULES) != (self.curvature is not None):
            raise LowtideValueError(
                f"curvature feeds AdaHessianRule and SophiaRule and they need it, got rule {type(self.rule).__name__} and "
                f"curvature {self.curvature!r}; give both or neither"
            )
        if self.rule.first_moment is None:
            needs = ((self.subspace, self.subspace.needs_mean), (self.residual, self.residual.needs_lost))
            for part in (part for part, needed in needs if needed):
                raise LowtideValueError(
                    f"{type(part).__name__} needs a running mean of the gradient, {type(self.rule).__name__} keeps none; "
                    "use another rule"
                )

    def subspace_of(self, state: State) -> Subspace:
        """The subspace, or a pair of them where both sides are projected."""
        return TwoSided(self.subspace, self.basis, state) if state["side"] == "full" else self.subspace

    def basis_of(self, state: State) -> Basis:
        """The basis in use."""
        return self.subspace_of(state).load(state, self.basis)

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse a low-rank group that the choices cannot serve."""
        if self.curvature is not None:
            raise LowtideValueError(
                f"rank must be left out with {type(self.rule).__name__}: its curvature is that of single weights, of which a "
                "subspace has none"
            )
        if self.transform is not None:
            raise LowtideValueError(
                f"rank must be left out with transform {type(self.transform).__name__}, which keeps whole gradients"
            )
        if group.get("proj_type") == "full":
            check_two_sided(self.subspace, self.refresh, self.transport, self.residual)

    def hyper(self) -> dict[str, Any]:
        """The rule's hyper-parameters, which groups may override."""
        return {name: getattr(self.rule, name) for name in self.rule.hyper}

    def rule_of(self, group: dict[str, Any]) -> Rule:
        """The rule with a group's own hyper-parameters."""
        own: dict[str, Any] = {}
        for name in self.rule.hyper:
            value = group[name]
            own[name] = tuple(value) if isinstance(value, list) else value
        rule: Any = self.rule
        changed: Rule = dataclasses.replace(rule, **own)
        return changed

    def constraint_of(self, p: Tensor) -> Constraint | None:
        """The constraint if it says anything about ``p``."""
        return self.constraint if self.constraint is not None and self.constraint.holds(p) else None

    def note_constraint(self, p: Tensor, state: State) -> None:
        """Write down in ``state`` which constraint ``p`` is under."""
        constraint = self.constraint_of(p)
        state.pop("constraint", None)
        if constraint is not None:
            state["constraint"] = constraint.digest(p)

    def decays(self, group: dict[str, Any], relief: float = 1.0) -> tuple[float, float]:
        """What the weight is multiplied by before and after the update; ``relief`` multiplies the group's decay."""
        factor = 1.0 - float(group["lr"]) * float(group["weight_decay"]) * relief
        return (factor, 1.0) if self.decay == "before" else (1.0, factor)

    def create_state(
        self,
        group: dict[str, Any],
        p: Tensor,
        state: State,
        store: StateStore | None = None,
        saved: State | None = None,
    ) -> None:
        """Fill the empty ``state`` of a parameter; ``store`` in place of the one chosen, ranks that vary as in ``saved``."""
        shape = weight_store.shape(p)
        state["step"] = 0
        if "rank" in group and len(shape) >= 2 and shape.numel() > 0:
            rows, cols = shape[0], shape.numel() // shape[0]
            side = side_of((rows, cols), group["proj_type"])
            state["dim"] = rows if side == "left" else cols
            if side == "full":
                state["rows"] = rows
            rank = rank_of(group["rank"], rows, cols)
            if rank < group["rank"] and saved is None and p.device.type != "meta" and not self.clamped:
                self.clamped = True
                warnings.warn(
                    f"rank {group['rank']} is more than a weight of shape {tuple(weight_store.shape(p))} has; it is trained at "
                    f"rank {rank}, and others like it at theirs",
                    stacklevel=2,
                )
            if self.subspace.varies:  # nothing before the first refresh says what it is
                rank = state["dim"] if saved is not None and saved.get("rank") == state["dim"] else 0
            state["side"], state["rank"], state["gap"] = side, rank, group["update_proj_gap"]
            state.update({**self.residual.initial, **self.refresh.initial()})
            if isinstance(self.transport, Reset):
                state["moment_step"] = 0
            shape = torch.Size((rows, cols))
            if self.parametrization is not None:
                self.parametrization.create_state(state, rows, self.rule)
        if self.curvature is not None:
            state["curvature_updates"] = state["curvature_at"] = 0
        self.note_constraint(p, state)
        if self.transform is not None:
            self.transform.create(state, weight_store.shape(p))
        self.create_moments(group, state, shape, store, Rows.of(p) if is_distributed(p) else None)

    def create_moments(
        self,
        group: dict[str, Any],
        state: State,
        shape: tuple[int, ...],
        store: StateStore | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Zero moments for a gradient of this shape, in the subspace if ``state`` is of one; sharded as ``rows``."""
        if "side" in state:
            shape = projected_shape(state, *shape)
        shape = torch.Size(shape)
        rule = self.rule_of(group)
        if state.get("side") == "left":
            rows = None  # a sum over all processes, which each of them has
        for name, signed in rule.moments:
            (store or self.store).create(state, name, shape, signed, rows)
        for name, size in rule.factors(shape).items():
            state[name] = torch.zeros(size, dtype=torch.float32)
        if len(state) == 1:
            state["dim"] = shape.numel()  # nothing else says whether a saved state fits

    def direction_(
        self, rule: Rule, rs: list[Tensor], states: list[State], step: int, gs: list[Tensor] | None = None
    ) -> None:
        """Overwrite each r (fp32) by the rule's direction of the gradient g (of r itself where there are no gs) and advance
        its states."""
        from lowtide import ops

        if rule.fused:
            if gs is not None:
                for r, g in zip(rs, gs, strict=True):
                    r.copy_(g)
            self.skipped.append(
                ops.fused_direction_(rs, rule=rule.kernel, **self.moments(states), **rule.scalars(step))
            )
            return
        for i, (r, state) in enumerate(zip(rs, states, strict=True)):
            self.skipped.append(
                rule.direction_(r, None if gs is None else gs[i], state, step, _Moments(self, state))
            )

    def is_coded(self, state: State) -> bool:
        """Whether the moments of a state lie in codes."""
        return any(f"{name}.codes" in state for name, _ in self.rule.moments)

    def moments(self, states: list[State]) -> dict[str, Any]:
        """The moments of states that are stored alike, as the fused kernels take them."""
        names = [name for name, _ in self.rule.moments]
        if not names:
            return {"ms": []}
        if names[0] in states[0]:
            lists = [[s[name] for s in states] for name in names]
            return dict(zip(_CODES, lists, strict=False))
        coded: dict[str, Any] = {"bits": self.store.code_bits}
        for name, codes, absmax in zip(names, _CODES, _ABSMAX, strict=False):
            coded[codes] = [s[f"{name}.codes"] for s in states]
            coded[absmax] = [s[f"{name}.absmax"] for s in states]
        return coded


class _Moments:
    """A rule's way to the moments of one state; see :class:`~lowtide.optim.rules.Momentum`."""

    def __init__(self, axes: Axes, state: State) -> None:
        self._axes = axes
        self._state = state

    def __call__(self, u: Tensor, *, momentum: float, weight: float) -> None:
        from lowtide import ops

        scalars: dict[str, Any] = {"a": 1.0, "momentum": momentum, "weight": weight, "nesterov": 0.0}
        first = {
            k: v for k, v in self._axes.moments([self._state]).items() if k in ("ms", "m_absmax", "bits")
        }
        self._axes.skipped.append(ops.fused_direction_([u], rule="sgd", **first, **scalars))

    def load(self, name: str, shape: torch.Size) -> Tensor:
        return self._axes.store.load(self._state, name, shape, dict(self._axes.rule.moments)[name])
