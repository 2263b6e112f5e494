# SPDX-License-Identifier: Apache-2.0
"""The composition engine: one update loop for every method of the library.

    gradient -> subspace (down) -> rule -> residual -> combine (up) -> constraint -> weight store

A named method is a choice on each axis (:mod:`lowtide.optim.presets`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowtide._compile import uncompiled
from lowtide.errors import LowtideError, LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import resharding, sharding
from lowtide.optim import weights as weight_store
from lowtide.optim.axes import Axes, State
from lowtide.optim.constraints import Constraint
from lowtide.optim.curvature_sources import CurvatureSource, check_sampled, fold_samples, is_due
from lowtide.optim.full_rank import Item, step_full_rank
from lowtide.optim.groups import check_known, check_low_rank_keys
from lowtide.optim.low_rank import step_low_rank
from lowtide.optim.parametrizations import WeightNorm
from lowtide.optim.refresh import EveryT, Refresh
from lowtide.optim.residuals import Drop, Residual
from lowtide.optim.rules import AdamRule, Rule
from lowtide.optim.saved import check_saved
from lowtide.optim.shards import is_distributed, local
from lowtide.optim.stores import BasisStore, StateStore
from lowtide.optim.subspaces import RandomizedSVD, Subspace
from lowtide.optim.transforms import GradientTransform
from lowtide.optim.transports import Stale, Transport


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
        constraint: where weights may not move (:class:`~lowtide.optim.NullSpace`, :class:`~lowtide.optim.Perpendicular`). Saved
            states name it: they load only under the same one.
        parametrization: coordinates of the weights of low-rank groups other than their elements (:class:`~lowtide.optim.WeightNorm`).
        curvature: what feeds the second moment of rules that take it from elsewhere than the gradient
            (:class:`~lowtide.optim.Hutchinson`, :class:`~lowtide.optim.GaussNewtonBartlett`).
        transform: what stands in for the gradients of a step, made of all of them (:class:`~lowtide.optim.InverseFisher`).
        stochastic: round bf16 weights stochastically (fp32 weights are never rounded, INT8 ones always are).
        maximize: step up the gradient instead of down.
        seed: of all random numbers: with the step and the parameter's id it determines every bit.
        nonfinite: what to do with a gradient that holds inf or NaN. ``"skip"``: leave the blocks of 256 elements it
            touches as they are, count them in :attr:`skipped_blocks` and warn once. ``"raise"``: refuse the step before
            anything has changed.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument or group key, named.
    """

    #: ``update_proj_gap``, ``scale`` and ``proj_type`` of a low-rank group that has none.
    default_gap: ClassVar[int] = 200
    default_scale: ClassVar[float] = 1.0
    default_proj_type: ClassVar[str] = "std"

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
        refresh: Refresh | None = None,
        transport: Transport | None = None,
        residual: Residual | None = None,
        state: StateStore | None = None,
        constraint: Constraint | None = None,
        parametrization: WeightNorm | None = None,
        curvature: CurvatureSource | None = None,
        transform: GradientTransform | None = None,
        stochastic: bool = True,
        maximize: bool = False,
        seed: int = 0,
        nonfinite: str = "skip",
    ) -> None:
        if nonfinite not in ("skip", "raise"):
            raise LowtideValueError(f"nonfinite must be 'skip' or 'raise', got {nonfinite!r}")
        self._axes = Axes(
            rule or AdamRule(),
            subspace or RandomizedSVD(),
            basis or BasisStore(),
            refresh or EveryT(),
            transport or Stale(),
            residual or Drop(),
            state or StateStore(),
            decay,
            stochastic,
            seed,
            constraint,
            parametrization,
            curvature,
            transform,
        )
        #: Whether a subspace was chosen: groups with ``rank`` are what this method is for.
        self._low_rank = subspace is not None
        self._nonfinite = nonfinite
        self._skipped_total = 0
        self._warned = False
        self._next_id = 0
        defaults = {"lr": lr, **self._axes.hyper(), "weight_decay": weight_decay, "maximize": bool(maximize)}
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
        self._axes.rule_of({**self._axes.hyper(), **param_group})
        if "rank" in param_group:
            check_low_rank_keys(param_group)
            param_group.setdefault("update_proj_gap", self.default_gap)
            param_group.setdefault("scale", self.default_scale)
            param_group.setdefault("proj_type", self.default_proj_type)
            self._axes.check_group(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            weight_store.check(p)
        try:
            self._check_shards([group])
        except LowtideError:
            self.param_groups.pop()
            raise
        ids = group.get("param_ids")
        if ids is None:
            ids = list(range(self._next_id, self._next_id + len(group["params"])))
        elif len(ids) != len(group["params"]):
            raise LowtideValueError(
                f"param_ids must list one id for each of the {len(group['params'])} parameters, got {len(ids)}"
            )
        group["param_ids"] = ids
        if "rank" in group:
            sizes = [(i, weight_store.shape(p)) for i, p in zip(ids, group["params"], strict=True)]
            self._axes.peers += [(i, s.numel()) for i, s in sizes if len(s) >= 2 and s.numel() > 0]
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
        if self._axes.curvature is not None:
            loss = self._axes.curvature.evaluate(self, closure)
        elif closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(chain.from_iterable(g["params"] for g in self.param_groups))
        return loss

    @uncompiled
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
        self._check_gradients([(p, g) for _, found in work for p, _, g in found])
        if self._axes.curvature is not None:
            check_sampled(self, self._axes.curvature, [p for _, found in work for p, _, _ in found])
        if self._axes.transform is not None:
            work = self._axes.transform.apply(self, work)
        for group, found in work:
            full: list[Item] = []
            shards: list[sharding.Whole] = []
            for p, param_id, grad in found:
                state: State = self.state[p]
                if not state:
                    self._axes.create_state(group, p, state)
                if is_distributed(p):
                    shards.append((p, param_id, grad, state))
                elif "side" in state:
                    step_low_rank(self._axes, group, p, param_id, grad, state)
                else:
                    full.append((p, param_id, grad, state, 0))
            step_full_rank(self._axes, group, full)
            sharding.step(self._axes, group, shards)
        self._warn_of_skipped()

    @uncompiled
    @torch.no_grad()
    def update_projected(self, group: dict[str, Any], p: Tensor, param_id: int, r: Tensor) -> None:
        """Update one matrix by its gradient in the subspace in use (fp32, overwritten), from
        :func:`lowtide.optim.low_rank.project`."""
        if group.get("maximize", False):
            r.neg_()
        self._check_gradients([(p, r)])
        step_low_rank(self._axes, group, p, param_id, None, self.state[p], r)
        self._warn_of_skipped()

    def _warn_of_skipped(self) -> None:
        if self._axes.skipped and not self._warned and self.skipped_blocks:
            self._warned = True
            warnings.warn(
                f"{self._skipped_total} blocks of a gradient held inf or NaN and were skipped; "
                "see skipped_blocks, or pass nonfinite='raise'",
                RuntimeWarning,
                stacklevel=3,
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
        self._skipped_total += int(sum(int(t) for t in self._axes.skipped))
        self._axes.skipped.clear()
        return self._skipped_total

    def _check_shards(self, groups: Sequence[dict[str, Any]]) -> None:
        for group in groups:
            names = group.get("param_names") or [f"number {i}" for i in range(len(group["params"]))]
            for p, name in zip(group["params"], names, strict=True):
                sharding.check(self._axes, group, p, type(self).__name__, name)

    def _check_gradients(self, work: Sequence[tuple[Tensor, Tensor]]) -> None:
        for p, g in work:
            if is_distributed(p):
                sharding.check_gradient(p, g)
        grads = [local(g) for _, g in work]
        for g in grads:
            if g.is_sparse:
                raise LowtideTypeError("gradients must be dense; build the embedding with sparse=False")
            if g.dtype not in (torch.float32, torch.bfloat16):
                raise LowtideTypeError(f"gradients must be float32 or bfloat16, got {g.dtype}")
        if self._nonfinite == "raise" and grads:
            bad = sharding.agree(sum(not weight_store.finite(g) for g in grads), [p for p, _ in work])
            if bad:
                raise LowtideRuntimeError(
                    f"{bad} of {len(grads)} gradients hold inf or NaN; nothing was changed. Lower lr, clip gradients, "
                    "or pass nonfinite='skip'"
                )

    # ------------------------------------------------------------------ curvature

    @property
    def curvature_due(self) -> bool:
        """Whether the next step wants an estimate of the curvature that it does not have yet."""
        source = self._axes.curvature
        return source is not None and is_due(self, source)

    @uncompiled
    @torch.no_grad()
    def update_curvature(
        self, closure: Callable[[], Any] | None = None, *, samples: Mapping[Tensor, Tensor] | None = None
    ) -> Any:
        """Fold an estimate of the Hessian's diagonal into the second moment, for the coming step.

        Args:
            closure: computes the loss and its gradients. Without it, those that are there are used. The loss is that of
                sampled labels for :class:`~lowtide.optim.GaussNewtonBartlett`; for :class:`~lowtide.optim.Hutchinson` gradients
                carry their graph, or products are differences of the closure's gradients.
            samples: an estimate made elsewhere for each parameter, in its shape; then nothing is evaluated. Of the function as it
                is, also where it is maximized.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            LowtideRuntimeError, LowtideValueError: no curvature to update, nothing to take it from, or shapes that do not fit.
        """
        if self._axes.curvature is None:
            raise LowtideRuntimeError(
                f"{type(self).__name__} takes its moments from gradients alone; use AdaHessian, SophiaG or SophiaH"
            )
        if samples is None:
            return self._axes.curvature.update(self, closure)
        fold_samples(self, samples)
        return None

    # ------------------------------------------------------------------ state

    @property
    def constraint(self) -> Constraint | None:
        """The constraint that updates are under; assigning another one (for the next task) keeps the moments."""
        return self._axes.constraint

    @constraint.setter
    def constraint(self, constraint: Constraint | None) -> None:
        before, self._axes.constraint = self._axes.constraint, constraint
        try:
            self._check_shards(self.param_groups)
        except LowtideError:
            self._axes.constraint = before
            raise
        for p, state in self.state.items():
            if state:
                self._axes.note_constraint(p, state)

    def state_bytes(self) -> dict[str, int]:
        """Bytes held now, by kind: weights, gradients, states (moments), basis; and constraint if there is one."""
        count = {"weights": 0, "gradients": 0, "states": 0, "basis": 0}
        if self.constraint is not None:
            count["constraint"] = self.constraint.nbytes
        for p in chain.from_iterable(g["params"] for g in self.param_groups):
            count["weights"] += weight_store.nbytes(p)
            grad = weight_store.gradient(p)
            count["gradients"] += 0 if grad is None else local(grad).nbytes
            for name, value in self.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    count["basis" if name.startswith("basis") else "states"] += local(value).nbytes
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
        saved = dict(state_dict["state"])
        for g in self.param_groups:
            for p in g["params"]:
                saved_id = saved_ids[[id(q) for q in params].index(id(p))]
                if entry := saved.get(saved_id):
                    saved[saved_id] = self._fitted(g, p, entry)
        super().load_state_dict(state_dict)
        for saved_id, p in zip(saved_ids, params, strict=True):
            if saved_id in saved:
                self.state[p] = {
                    k: v.clone() if isinstance(v, Tensor) else v for k, v in saved[saved_id].items()
                }

    def _fitted(self, group: dict[str, Any], p: Tensor, entry: State) -> State:
        want: State = {}
        # "fp32": converted moments that their library did not code (lowtide.optim.from_torchao).
        self._axes.create_state(group, p, want, StateStore() if entry.get("fp32") else None, entry)
        entry = resharding.fit(want, entry, p, self._axes.store.code_bits)
        check_saved(want, entry, weight_store.shape(p))
        if self._axes.transform is not None:
            self._axes.transform.check(entry)
        return entry
