# SPDX-License-Identifier: Apache-2.0
"""The update of parameters that are trained without a subspace: lists of tensors, one fused call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.optim import weights as weight_store
from lowtide.optim.axes import Axes, State
from lowtide.optim.rules import Rule

#: A parameter, its id, its gradient, its state, and the index of its first element in the whole tensor.
Item = tuple[Tensor, int, Tensor, State, int]


def step_full_rank(axes: Axes, group: dict[str, Any], items: list[Item]) -> None:
    """Step the parameters of one group."""
    from lowtide import ops

    if not items:
        return
    rule = axes.rule_of(group)
    lr = float(group["lr"])
    before, after = axes.decays(group)
    # One list call for all tensors that share a step, a state layout and a weight store.
    batches: dict[tuple[int, bool, bool], list[Item]] = {}
    for item in items:
        p, _, _, state, _ = item
        alone = not rule.fused or weight_store.is_quantized(p) or axes.constraint_of(p) is not None
        key = (state["step"], axes.is_coded(state), alone)
        batches.setdefault(key, []).append(item)
    for (step, _, alone), batch in batches.items():
        step += 1
        states = [state for _, _, _, state, _ in batch]
        for state in states:
            state["step"] = step
        if alone:
            for item in batch:
                _step_alone(axes, group, rule, item)
            continue
        params, ids = [p for p, *_ in batch], [i for _, i, *_ in batch]
        with weight_store.metered(axes.meter, params, ids, step):
            skipped = ops.fused_step_(
                params, [g for _, _, g, _, _ in batch], rule=rule.kernel, **axes.moments(states),
                **rule.scalars(step, lr), decay_before=before, decay_after=after, stochastic=axes.stochastic,
                seed=axes.seed, step=step, params=ids, offsets=[offset for *_, offset in batch],
            )  # fmt: skip
        axes.skipped.append(skipped)


def _step_alone(axes: Axes, group: dict[str, Any], rule: Rule, item: Item) -> None:
    """Direction, constraint, weight: of a parameter whose update must exist for a moment."""
    p, param_id, grad, state, _ = item
    constraint = axes.constraint_of(p)
    if constraint is not None and grad.dim() > 1:
        grad = grad.reshape(grad.shape[0], -1)
    if constraint is not None:
        grad = constraint.of_gradient(p, grad)
    if weight_store.is_quantized(p):
        grad = weight_store.consume(p, grad)
    if weight_store.is_quantized(p) and constraint is None:  # its gradient is given away
        update = grad
        axes.direction_(rule, [update], [state], state["step"])
    else:
        update = torch.empty(grad.shape, dtype=torch.float32)
        axes.direction_(rule, [update], [state], state["step"], [grad])
    relief = 1.0
    if constraint is not None:
        update, relief = constraint.of_update(p, update, grad)
    before, after = axes.decays(group, relief)
    weight_store.apply(
        [p], [update], alpha=-rule.step_size(float(group["lr"]), state["step"], p), before=before, after=after,
        stochastic=axes.stochastic, seed=axes.seed, step=state["step"], param_ids=[param_id],
        meter=axes.meter,
    )  # fmt: skip
