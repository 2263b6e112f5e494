# SPDX-License-Identifier: Apache-2.0
"""The trace from values of the loss alone: second differences along sign vectors, at the memory of inference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from lowtide.curvature._confidence import Moments, Sampling
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._low_rank_trace import Advance
from lowtide.errors import LowtideTypeError, LowtideValueError

#: Lengths |h z| that the first probe tries, in units of eps^(1/4): there rounding of the loss and the fourth derivative
#: balance if both are of order one; networks are smoother than that along random directions.
TRIED = tuple(2.0**k for k in range(8))


def zeroth_order(
    op: LinearOperator, rule: Sampling, seed: int, step: float | None, advance: Advance
) -> tuple[float, float, int, int]:
    """Value, standard error, samples and loss evaluations of the mean of (L(w + hz) + L(w - hz) - 2 L(w)) / h^2."""
    problem: Any = getattr(op, "problem", None)
    if problem is None:
        raise LowtideTypeError(
            f"method='zo' evaluates a loss and {type(op).__name__} has none; pass a HessianOperator or use 'hutchinson'"
        )
    if step is not None and not step > 0:
        raise LowtideValueError(f"fd_step must be positive, got {step}")
    layout = op.layout
    scratch = layout.zeros()
    evaluations = 1
    centre = problem.evaluate()

    def second_difference(k: int, h: float) -> float:
        nonlocal evaluations
        total = -2 * centre
        for sign in (h, -h):
            shifted = [
                torch.add(t.to(z.dtype), z, alpha=sign)  # not in bfloat16, where the step would drown
                for t, z in zip(problem.tensors, layout.views(layout.probe(seed, k, scratch)), strict=True)
            ]
            total += problem.evaluate(shifted)
        evaluations += 2
        return float(total) / h**2

    if step is None:
        step = _choose_step(second_difference, layout.n, layout.dtype)
    moments = Moments()
    for k in range(rule.max_probes):
        moments.add(torch.tensor(second_difference(k, step), dtype=torch.float64))
        advance(1)
        value, stderr = float(moments.mean), float(moments.stderr)
        if moments.count >= rule.min_probes and rule.met(value, stderr, moments.count):
            break
    return value, stderr, moments.count, evaluations


def _choose_step(second_difference: Callable[[int, float], float], n: int, dtype: torch.dtype) -> float:
    """The step whose neighbours, half and twice as long, differ least from it: below noise grows, above the bias."""
    steps = [factor * math.sqrt(math.sqrt(torch.finfo(dtype).eps) / n) for factor in TRIED]
    values = [second_difference(0, h) for h in steps]
    changes = [abs(b - a) for a, b in itertools.pairwise(values)]
    worst = [max(pair) for pair in itertools.pairwise(changes)]
    return steps[1 + worst.index(min(worst))]
