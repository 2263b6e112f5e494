# SPDX-License-Identifier: Apache-2.0
"""The update of one matrix in a subspace: refresh, down, rule, residual, up, weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError
from lowtide.optim import weights as weight_store
from lowtide.optim.axes import Axes, State, projected_shape
from lowtide.optim.bases import Basis
from lowtide.optim.refresh import RefreshRequest
from lowtide.optim.residuals import Drop, Here, LowRankStep
from lowtide.optim.rules import Rule
from lowtide.optim.sharded_bases import Across, RowsOfBasis
from lowtide.optim.shards import Rows, codes_of, exchange, pieces
from lowtide.optim.transports import Change, overlap
from lowtide.optim.updates import Update


def needs_projection_only(axes: Axes, p: Tensor) -> bool:
    """Whether a step, but for refreshes, asks nothing of a gradient that its subspace misses."""
    return isinstance(axes.residual, Drop) and axes.constraint_of(p) is None and axes.parametrization is None


def project(axes: Axes, grad: Tensor, state: State, renewed: bool = False) -> Tensor | None:
    """R (fp32), where :func:`needs_projection_only` holds and the basis stays, or was ``renewed`` for the coming step; else None."""
    if "refreshes" not in state or not (renewed or not axes.refresh.due(state, state["step"])):
        return None
    grad = grad.reshape(grad.shape[0], -1)
    basis = axes.basis_of(state)
    r = basis.down(grad)
    if not basis.reads_all and not weight_store.finite(grad):
        r.fill_(torch.nan)  # as if it had been read
    return r


def basis_of(axes: Axes, state: State, rows: Rows | None) -> Basis:
    """The basis in use, for what this process has of a matrix."""
    basis = axes.basis_of(state)
    return basis if rows is None or state["side"] == "right" else RowsOfBasis(basis, rows)


def direction_(axes: Axes, rule: Rule, r: Tensor, state: State, step: int, rows: Rows | None) -> None:
    """:meth:`~lowtide.optim.axes.Axes.direction_` of one matrix, the codes of whose moments may lie on several processes."""
    if rows is None or state["side"] == "left" or not axes.is_coded(state):
        axes.direction_(rule, [r], [state], step)
        return
    rows = rows.like(torch.Size(projected_shape(state, rows.shape[0], 0)))
    for piece in pieces(rows, {"g": r}, codes_of(state, axes.store.code_bits), exchange([(rows, r)])[0]):
        axes.direction_(rule, [piece.tensors["g"]], [piece.tensors], step)
        piece.finish()


def step_low_rank(
    axes: Axes,
    group: dict[str, Any],
    p: Tensor,
    param_id: int,
    grad: Tensor | None,
    state: State,
    projected: Tensor | None = None,
    rows: Rows | None = None,
) -> None:
    """Step one matrix by its gradient, or by what :func:`project` gave (which is overwritten).

    With ``rows``, ``p``, ``grad`` (two dimensions) and the moments are what this process has of a matrix that others have a part of.
    """
    side = state["side"]
    constraint = axes.constraint_of(p)
    lost = polar = None
    if projected is None:
        assert grad is not None
        if constraint is not None:
            grad = constraint.of_gradient(p, grad.reshape(grad.shape[0], -1))
        if axes.parametrization is not None:
            polar = axes.parametrization.split(p, grad.reshape(grad.shape[0], -1))
            grad = polar.grad
        grad = axes.residual.prepare(grad if rows else grad.reshape(grad.shape[0], -1), state)
        if axes.refresh.due(state, state["step"]):
            lost = renew_basis(axes, group, state, grad, param_id, rows)
    else:
        grad = projected
    basis = basis_of(axes, state, rows)
    state["step"] += 1
    moment_step = state["step"]
    if "moment_step" in state:
        moment_step = state["moment_step"] = state["moment_step"] + 1
    rule = axes.rule_of(group)
    r = basis.down(grad) if projected is None else projected
    axes.refresh.watch(state, r)
    if axes.meter is not None and projected is None:
        axes.meter.energy(param_id, state["step"], basis, grad, r)
    update = axes.residual.update(
        LowRankStep(
            grad,
            r,
            lambda: direction_(axes, rule, r, state, moment_step, rows),
            basis,
            side,
            state,
            float(group["scale"]),
            rule.scalars(moment_step)["a"],
            lost,
            Here() if rows is None else Across(rows, side),
        )
    )
    if update is None:
        axes.skipped.append(weight_store.nonfinite_blocks(grad))
        return
    relief = 1.0
    if constraint is not None:
        whole, relief = constraint.of_update(p, update.dense(*grad.shape), grad)
        update = Update(whole, update.factor)
    before, after = axes.decays(group, relief)
    lr = rule.step_size(float(group["lr"]), state["step"], p)
    if polar is not None and axes.parametrization is not None:
        axes.direction_(rule, [polar.radial], [axes.parametrization.moments(state)], state["step"])
        magnitude = (polar.norm * before).sub_(polar.radial, alpha=lr).clamp_min_(0.0).mul_(after)
        whole = update.dense(*grad.shape)
        update = Update(axes.parametrization.join(polar, whole, -lr * update.factor, magnitude), -1.0)
        lr, before, after = 1.0, 1.0, 1.0
    weight_store.combine(
        p,
        update,
        lr=lr,
        before=before,
        after=after,
        stochastic=axes.stochastic,
        seed=axes.seed,
        step=state["step"],
        param_id=param_id,
        meter=axes.meter,
        rows=rows,
    )


def renew_basis(
    axes: Axes, group: dict[str, Any], state: State, grad: Tensor, param_id: int, rows: Rows | None = None
) -> Tensor | None:
    """Replace the basis; returns :attr:`LowRankStep.lost` if the residual wants it."""
    prev = None
    had_basis = "refreshes" in state
    if rows is not None:  # of which only the shape is asked
        grad = torch.zeros((), device=grad.device).expand(rows.shape[0], rows.shape[1:].numel())
    subspace = axes.subspace_of(state)
    if axes.refresh.needs_prev or subspace.needs_prev or axes.transport.needs_prev:
        prev = axes.basis.dense(state)
    if subspace.needs_gradient and not weight_store.finite(grad):
        if had_basis:
            return None  # a poisoned gradient says nothing about the subspace: keep the basis in use
        raise LowtideRuntimeError(
            "the first gradient of a low-rank parameter holds inf or NaN, so no subspace can be found; "
            "lower lr or check the data"
        )
    rule = axes.rule_of(group)
    moment = rule.first_moment
    carried = mean = None
    old_basis = basis_of(axes, state, rows) if had_basis else None
    if old_basis is not None and (subspace.needs_mean or axes.residual.needs_lost):
        assert moment is not None  # Axes refuses it
        carried = old_basis.up(state[moment])
        mean = carried / (1.0 - rule.momentum_decay ** state["step"])
    rank = state["rank"]
    request = RefreshRequest(
        grad, rank, state["side"], prev, mean, axes.seed, state["step"], param_id, state.get("refreshes", 0),
        tuple(axes.peers),
    )  # fmt: skip
    new = subspace.find(request)
    old_indices = state.get("basis.indices")
    if new is not None:
        axes.refresh.observe(state, new, prev)
    subspace.keep(state, new, request, axes.basis)
    if old_basis is not None:
        old, fresh = old_basis, basis_of(axes, state, rows)
        change = Change(
            lambda: overlap(new, prev),
            old_indices,
            state.get("basis.indices"),
            lambda moment: fresh.down(old.up(moment)),
        )
        axes.transport.switch(state, rule, axes.store, change)
    if state["rank"] != rank:
        axes.create_moments(group, state, tuple(grad.shape))
    state["refreshed"] = state["step"]
    state["refreshes"] = state.get("refreshes", 0) + 1
    if carried is None or moment is None or not axes.residual.needs_lost:
        return None
    carried -= axes.basis_of(state).up(state[moment])
    beta = rule.momentum_decay
    return carried.mul_(beta / (1.0 - beta))
