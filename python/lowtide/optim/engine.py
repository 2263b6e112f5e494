# SPDX-License-Identifier: Apache-2.0
"""The composition engine: one update loop for every method of the library.

    gradient -> subspace (down) -> rule -> residual -> combine (up) -> weight store

A named method is a choice on each axis (:mod:`lowtide.optim.presets`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.groups import check_known, check_low_rank_keys, rank_of
from lowtide.optim.residuals import Drop, LowRankStep, Residual
from lowtide.optim.rules import AdamRule, Rule
from lowtide.optim.saved import check_saved
from lowtide.optim.stores import STATE_BITS, BasisStore, StateStore
from lowtide.optim.subspaces import EveryT, LazyDoubling, RandomizedSVD, Subspace
from lowtide.optim.transports import Change, Rotate, Stale, Transport, overlap

State: TypeAlias = "dict[str, Any]"


class Composed(Optimizer):
    """An optimizer put together from independent choices.

    Args:
        params: parameters, or groups as from :func:`lowtide.optim.param_groups`. A group with the key ``rank`` trains
            its matrices in a subspace (keys ``rank, update_proj_gap, scale, proj_type`` as in galore-torch; tensors with
            more than two dimensions are taken as (first, rest)); a group without trains at full rank.
        lr: learning rate, > 0 (0 is allowed: nothing moves).
        rule: the update rule.
        weight_decay: decoupled decay, >= 0.
        decay: ``"before"`` the update (the papers, torch.optim.AdamW) or ``"after"`` it (galore-torch).
        subspace, basis, refresh, transport, residual: the low-rank axes.
        state: how moments are stored.
        stochastic: round bf16 weights stochastically (fp32 weights are never rounded, INT8 ones always are).
        maximize: step up the gradient instead of down.
        seed: of all random numbers: with the step and the parameter's id it determines every bit.
        nonfinite: what to do with a gradient that holds inf or NaN. ``"skip"``: leave the blocks of 256 elements it
            touches as they are, count them in :attr:`skipped_blocks` and warn once. ``"raise"``: refuse the step before
            anything has changed.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument or group key, named.
    """

    #: ``update_proj_gap`` and ``scale`` of a low-rank group that has none.
    default_gap: ClassVar[int] = 200
    default_scale: ClassVar[float] = 1.0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rule: Rule | None = None,
        weight_decay: float = 0.0,
        decay: str = "before",
        subspace: Subspace | None = None,
        basis: BasisStore | None = None,
        refresh: EveryT | LazyDoubling | None = None,
        transport: Transport | None = None,
        residual: Residual | None = None,
        state: StateStore | None = None,
        stochastic: bool = True,
        maximize: bool = False,
        seed: int = 0,
        nonfinite: str = "skip",
    ) -> None:
        if decay not in ("before", "after"):
            raise LowtideValueError(f"decay must be 'before' or 'after', got {decay!r}")
        if nonfinite not in ("skip", "raise"):
            raise LowtideValueError(f"nonfinite must be 'skip' or 'raise', got {nonfinite!r}")
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise LowtideValueError(f"seed must be an integer in [0, 2**63), got {seed!r}")
        self._rule: Rule = rule or AdamRule()
        self._decay = decay
        self._subspace: Subspace = subspace or RandomizedSVD()
        self._basis = basis or BasisStore()
        self._refresh = refresh or EveryT()
        self._transport: Transport = transport or Stale()
        self._residual: Residual = residual or Drop()
        self._store = state or StateStore()
        self._stochastic = stochastic
        self._seed = seed
        self._nonfinite = nonfinite
        if self._refresh.needs_prev and self._subspace.kind != "dense":
            raise LowtideValueError(
                f"refresh {type(self._refresh).__name__} compares bases, {type(self._subspace).__name__} has none to compare; "
                "use EveryT"
            )
        self._check_transport()
        self._skipped: list[Tensor] = []
        self._skipped_total = 0
        self._warned = False
        self._next_id = 0
        defaults = {"lr": lr, **self._hyper(), "weight_decay": weight_decay, "maximize": bool(maximize)}
        super().__init__(params, defaults)

    # ------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; validates its keys. See the class for the low-rank ones."""
        check_known(param_group, self.defaults)
        lr, decay = (
            param_group.get("lr", self.defaults["lr"]),
            param_group.get("weight_decay", self.defaults["weight_decay"]),
        )
        if not 0.0 <= float(lr) < float("inf"):
            raise LowtideValueError(f"lr must be a finite number >= 0, got {lr!r}")
        if not 0.0 <= float(decay) < float("inf"):
            raise LowtideValueError(f"weight_decay must be a finite number >= 0, got {decay!r}")
        self._group_rule({**self._hyper(), **param_group})
        if "rank" in param_group:
            check_low_rank_keys(param_group)
            param_group.setdefault("update_proj_gap", self.default_gap)
            param_group.setdefault("scale", self.default_scale)
            param_group.setdefault("proj_type", "std")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            weight_store.check(p)
        ids = group.get("param_ids")
        if ids is None:
            ids = list(range(self._next_id, self._next_id + len(group["params"])))
        elif len(ids) != len(group["params"]):
            raise LowtideValueError(
                f"param_ids must list one id for each of the {len(group['params'])} parameters, got {len(ids)}"
            )
        group["param_ids"] = ids
        self._next_id = max([self._next_id, *(i + 1 for i in ids)])

    # ------------------------------------------------------------------ stepping

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients stay as they are for dense weights.

        Args:
            closure: recomputes the loss, as in torch.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(chain.from_iterable(g["params"] for g in self.param_groups))
        return loss

    @torch.no_grad()
    def update(self, params: Iterable[Tensor]) -> None:
        """Update only ``params`` (those that have a gradient), as when gradients are freed layer by layer."""
        wanted = {id(p) for p in params}
        work = []
        for group in self.param_groups:
            chosen = [
                (p, i) for p, i in zip(group["params"], group["param_ids"], strict=True) if id(p) in wanted
            ]
            found = [(p, i, g) for p, i in chosen if (g := weight_store.gradient(p)) is not None]
            if group.get("maximize", False):
                found = [(p, i, g.neg()) for p, i, g in found]
            if found:
                work.append((group, found))
        grads = [g for _, found in work for _, _, g in found]
        self._check_gradients(grads)
        for group, found in work:
            low: list[tuple[Tensor, int, Tensor]] = []
            full: list[tuple[Tensor, int, Tensor]] = []
            for item in found:
                p = item[0]
                state: State = self.state[p]
                if not state:
                    self._create_state(group, p, state)
                (low if "side" in state else full).append(item)
            for p, param_id, grad in low:
                self._step_low_rank(group, p, param_id, grad)
            self._step_full_rank(group, full)
        if self._skipped and not self._warned and self.skipped_blocks:
            self._warned = True
            warnings.warn(
                f"{self._skipped_total} blocks of a gradient held inf or NaN and were skipped; "
                "see skipped_blocks, or pass nonfinite='raise'",
                RuntimeWarning,
                stacklevel=2,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, those of packed weights too."""
        super().zero_grad(set_to_none)
        for p in chain.from_iterable(g["params"] for g in self.param_groups):
            if weight_store.is_quantized(p):
                weight_store.release(p)

    @property
    def skipped_blocks(self) -> int:
        """Blocks of 256 elements left alone so far because their gradient was not finite."""
        self._skipped_total += int(sum(int(t) for t in self._skipped))
        self._skipped.clear()
        return self._skipped_total

    def _check_gradients(self, grads: Sequence[Tensor]) -> None:
        for g in grads:
            if g.is_sparse:
                raise LowtideTypeError("gradients must be dense; build the embedding with sparse=False")
            if g.dtype not in (torch.float32, torch.bfloat16):
                raise LowtideTypeError(f"gradients must be float32 or bfloat16, got {g.dtype}")
        if self._nonfinite == "raise" and grads:
            bad = sum(not weight_store.finite(g) for g in grads)
            if bad:
                raise LowtideRuntimeError(
                    f"{bad} of {len(grads)} gradients hold inf or NaN; nothing was changed. Lower lr, clip gradients, "
                    "or pass nonfinite='skip'"
                )

    def _create_state(
        self, group: dict[str, Any], p: Tensor, state: State, store: StateStore | None = None
    ) -> None:
        shape = weight_store.shape(p)
        state["step"] = 0
        if "rank" in group and len(shape) >= 2 and shape.numel() > 0:
            from lowtide.lowrank import side_for

            rows, cols = shape[0], shape.numel() // shape[0]
            side = side_for((rows, cols), group["proj_type"])
            rank = rank_of(group["rank"], rows, cols)
            state["side"], state["rank"], state["gap"] = side, rank, group["update_proj_gap"]
            state["dim"] = cols if side == "right" else rows
            shape = torch.Size((rows, rank) if side == "right" else (rank, cols))
        for name, signed in self._rule.moments:
            (store or self._store).create(state, name, shape, signed)

    def _hyper(self) -> dict[str, Any]:
        return {name: getattr(self._rule, name) for name in self._rule.hyper}

    def _group_rule(self, group: dict[str, Any]) -> Rule:
        own: dict[str, Any] = {}
        for name in self._rule.hyper:
            value = group[name]
            own[name] = tuple(value) if isinstance(value, list) else value
        rule: Any = self._rule
        changed: Rule = dataclasses.replace(rule, **own)
        return changed

    def _decays(self, group: dict[str, Any]) -> tuple[float, float]:
        factor = 1.0 - float(group["lr"]) * float(group["weight_decay"])
        return (factor, 1.0) if self._decay == "before" else (1.0, factor)

    def _check_transport(self) -> None:
        name = type(self._transport).__name__
        if self._transport.needs_fp32 and self._store.kind != "fp32":
            raise LowtideValueError(
                f"transport {name} needs fp32 moments, got state {self._store.kind!r}; use StateStore()"
            )
        if isinstance(self._transport, Rotate):
            if self._subspace.kind == "seed":
                raise LowtideValueError("transport Rotate needs bases that are stored; use Stale or Reset")
            if len(self._rule.moments) > 1 and not isinstance(self._rule, AdamRule):
                raise LowtideValueError(
                    f"transport Rotate knows Adam's second moment, not that of {type(self._rule).__name__}; use Reset"
                )

    def _step_low_rank(self, group: dict[str, Any], p: Tensor, param_id: int, grad: Tensor) -> None:
        state = self.state[p]
        side = state["side"]
        grad = self._residual.prepare(grad.reshape(grad.shape[0], -1), state)
        lost = None
        if self._refresh.due(state, state["step"]):
            lost = self._renew_basis(group, state, grad, param_id)
        basis = self._subspace.load(state, self._basis)
        state["step"] += 1
        moment_step = state["step"]
        if "moment_step" in state:
            moment_step = state["moment_step"] = state["moment_step"] + 1
        rule = self._group_rule(group)
        r = basis.down(grad)
        combined = self._residual.update(
            LowRankStep(
                grad,
                r,
                lambda: self._direction(rule, [r], [state], moment_step),
                basis,
                side,
                state,
                float(group["scale"]),
                rule.scalars(moment_step)["a"],
                lost,
            )
        )
        if combined is None:
            self._skipped.append(weight_store.nonfinite_blocks(grad))
            return
        update, factor = combined
        before, after = self._decays(group)
        weight_store.apply(
            [p],
            [update],
            alpha=-float(group["lr"]) * factor,
            before=before,
            after=after,
            stochastic=self._stochastic,
            seed=self._seed,
            step=state["step"],
            param_ids=[param_id],
        )

    def _renew_basis(self, group: dict[str, Any], state: State, grad: Tensor, param_id: int) -> Tensor | None:
        """Replace the basis; returns :attr:`LowRankStep.lost` if the residual wants it."""
        prev = None
        had_basis = "refreshes" in state
        if self._refresh.needs_prev or self._subspace.needs_prev or self._transport.needs_prev:
            prev = self._basis.dense(state)
        if self._subspace.needs_gradient and not weight_store.finite(grad):
            if had_basis:
                return None  # a poisoned gradient says nothing about the subspace: keep the basis in use
            raise LowtideRuntimeError(
                "the first gradient of a low-rank parameter holds inf or NaN, so no subspace can be found; "
                "lower lr or check the data"
            )
        rule = self._group_rule(group)
        moment = rule.moments[0][0]
        carried = mean = None
        if had_basis and (self._subspace.needs_mean or self._residual.needs_lost):
            carried = self._subspace.load(state, self._basis).up(state[moment])
            mean = carried / (1.0 - rule.momentum_decay ** state["step"])
        new = self._subspace.find(
            grad,
            state["rank"],
            side=state["side"],
            prev=prev,
            seed=self._seed,
            step=state["step"],
            param=param_id,
            mean=mean,
        )
        old_indices = state.get("basis.indices")
        if new is None:
            address = {"basis.seed": self._seed, "basis.step": state["step"], "basis.param": param_id}
            state.update(address)
        elif self._subspace.kind == "indices":
            state["basis.indices"] = new
        else:
            self._refresh.observe(state, new, prev)
            self._basis.save(state, new)
        if had_basis:
            change = Change(lambda: overlap(new, prev), old_indices, state.get("basis.indices"))
            self._transport.switch(state, rule, self._store, change)
        state["refreshed"] = state["step"]
        state["refreshes"] = state.get("refreshes", 0) + 1
        if carried is None or not self._residual.needs_lost:
            return None
        carried -= self._subspace.load(state, self._basis).up(state[moment])
        beta = rule.momentum_decay
        return carried.mul_(beta / (1.0 - beta))

    def _direction(self, rule: Rule, rs: list[Tensor], states: list[State], step: int) -> None:
        """Overwrite each r (fp32) by the rule's direction and advance its moments."""
        from lowtide import ops

        self._skipped.append(
            ops.fused_direction_(rs, rule=rule.kernel, **self._moments(states), **rule.scalars(step))
        )

    def _moments(self, states: list[State]) -> dict[str, Any]:
        """The moments of states that are stored alike, as the fused kernels take them."""
        names = [name for name, _ in self._rule.moments]
        if names[0] in states[0]:
            lists = [[s[name] for s in states] for name in names]
            return dict(zip(("ms", "vs"), lists, strict=False))
        coded: dict[str, Any] = {"bits": STATE_BITS[self._store.kind]}
        for name, codes, absmax in zip(names, ("ms", "vs"), ("m_absmax", "v_absmax"), strict=False):
            coded[codes] = [s[f"{name}.codes"] for s in states]
            coded[absmax] = [s[f"{name}.absmax"] for s in states]
        return coded

    def _step_full_rank(self, group: dict[str, Any], items: list[tuple[Tensor, int, Tensor]]) -> None:
        from lowtide import ops

        if not items:
            return
        rule = self._group_rule(group)
        lr = float(group["lr"])
        before, after = self._decays(group)
        # One list call for all tensors that share a step, a state layout and a weight store.
        batches: dict[tuple[int, bool, bool], list[tuple[Tensor, int, Tensor]]] = {}
        for item in items:
            state = self.state[item[0]]
            key = (state["step"], self._rule.moments[0][0] in state, weight_store.is_quantized(item[0]))
            batches.setdefault(key, []).append(item)
        for (step, _, quantized), batch in batches.items():
            step += 1
            params = [p for p, _, _ in batch]
            ids = [i for _, i, _ in batch]
            states = [self.state[p] for p in params]
            for state in states:
                state["step"] = step
            if quantized:
                for p, param_id, grad in batch:
                    direction = weight_store.consume(p, grad)
                    self._direction(rule, [direction], [self.state[p]], step)
                    weight_store.apply(
                        [p], [direction], alpha=-lr, before=before, after=after, stochastic=True,
                        seed=self._seed, step=step, param_ids=[param_id],
                    )  # fmt: skip
                continue
            self._skipped.append(
                ops.fused_step_(
                    params, [g for _, _, g in batch], rule=rule.kernel, **self._moments(states), **rule.scalars(step, lr),
                    decay_before=before, decay_after=after, stochastic=self._stochastic, seed=self._seed, step=step,
                    params=ids,
                )
            )  # fmt: skip

    # ------------------------------------------------------------------ state

    def state_bytes(self) -> dict[str, int]:
        """Bytes held now, by kind: weights, gradients, states (moments), basis."""
        count = {"weights": 0, "gradients": 0, "states": 0, "basis": 0}
        for p in chain.from_iterable(g["params"] for g in self.param_groups):
            count["weights"] += weight_store.nbytes(p)
            grad = weight_store.gradient(p)
            count["gradients"] += 0 if grad is None else grad.nbytes
            for name, value in self.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    count["basis" if name.startswith("basis") else "states"] += value.nbytes
        return count

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; torch's own would leave the axes out."""
        own = {
            name: value
            for name, value in self.__dict__.items()
            if name.startswith("_") and "hook" not in name and name != "_zero_grad_profile_name"
        }
        state: dict[str, Any] = super().__getstate__()
        return {**own, **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, bit for bit.

        torch casts state tensors to their parameter's dtype, which would destroy packed codes under bf16 weights; here the
        saved tensors are restored as they were.

        Raises:
            LowtideValueError: the state does not fit these parameters; nothing was changed.
        """
        params = list(chain.from_iterable(g["params"] for g in self.param_groups))
        saved_ids = list(chain.from_iterable(g["params"] for g in state_dict["param_groups"]))
        if len(saved_ids) != len(params):
            raise LowtideValueError(
                f"the saved state has {len(saved_ids)} parameters, this optimizer has {len(params)}; build it with the same groups"
            )
        saved = state_dict["state"]
        for g in self.param_groups:
            for p in g["params"]:
                entry = saved.get(saved_ids[[id(q) for q in params].index(id(p))])
                if entry:
                    self._check_state(g, p, entry)
        super().load_state_dict(state_dict)
        for saved_id, p in zip(saved_ids, params, strict=True):
            if saved_id in saved:
                self.state[p] = {
                    k: v.clone() if isinstance(v, Tensor) else v for k, v in saved[saved_id].items()
                }

    def _check_state(self, group: dict[str, Any], p: Tensor, entry: State) -> None:
        want: State = {}
        # "fp32": converted moments that their library did not code (lowtide.optim.from_torchao).
        self._create_state(group, p, want, StateStore() if entry.get("fp32") else None)
        check_saved(want, entry, weight_store.shape(p))
