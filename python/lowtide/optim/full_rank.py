# SPDX-License-Identifier: Apache-2.0
"""The update of parameters that are trained without a subspace: lists of tensors, one fused call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowtide.optim import weights as weight_store
from lowtide.optim.axes import Axes, State

#: A parameter, its id, its gradient and its state.
Item = tuple[Tensor, int, Tensor, State]


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
        p, _, _, state = item
        key = (state["step"], axes.rule.moments[0][0] in state, weight_store.is_quantized(p))
        batches.setdefault(key, []).append(item)
    for (step, _, quantized), batch in batches.items():
        step += 1
        states = [state for _, _, _, state in batch]
        for state in states:
            state["step"] = step
        if quantized:
            for p, param_id, grad, state in batch:
                direction = weight_store.consume(p, grad)
                axes.direction_(rule, [direction], [state], step)
                weight_store.apply(
                    [p], [direction], alpha=-lr, before=before, after=after, stochastic=True,
                    seed=axes.seed, step=step, param_ids=[param_id],
                )  # fmt: skip
            continue
        axes.skipped.append(
            ops.fused_step_(
                [p for p, _, _, _ in batch], [g for _, _, g, _ in batch], rule=rule.kernel, **axes.moments(states),
                **rule.scalars(step, lr), decay_before=before, decay_after=after, stochastic=axes.stochastic,
                seed=axes.seed, step=step, params=[i for _, i, _, _ in batch],
            )
        )  # fmt: skip
