# SPDX-License-Identifier: Apache-2.0
"""What a sequence of tasks is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowtide.errors import LowtideValueError


@dataclass(frozen=True)
class Transfer:
    """Summary of a table of scores (Lopez-Paz & Ranzato, NeurIPS 2017, section 3).

    Attributes:
        average: mean score over all tasks after the last one (ACC).
        backward: mean change of a task's score since it was learned, without the last task (BWT): forgetting if below zero.
        learned: mean score of each task right after it was learned.
    """

    average: float
    backward: float
    learned: float


def transfer(scores: Sequence[Sequence[float]]) -> Transfer:
    """Summarize ``scores[i][j]``: the score of task j after task i was learned, higher is better, j <= i at least.

    Raises:
        LowtideValueError: a row is missing or too short.

    >>> import lowtide as lt
    >>> lt.continual.transfer([[0.9], [0.7, 0.8]])
    Transfer(average=0.75, backward=-0.2, learned=0.85)
    """
    n = len(scores)
    if n == 0 or any(len(row) <= i for i, row in enumerate(scores)):
        raise LowtideValueError("scores must have one row a task, each with a score of every task so far")
    own = [float(scores[i][i]) for i in range(n)]
    last = [float(x) for x in scores[-1][:n]]
    backward = sum(a - b for a, b in zip(last[:-1], own[:-1], strict=True)) / (n - 1) if n > 1 else 0.0
    return Transfer(round(sum(last) / n, 12), round(backward, 12), round(sum(own) / n, 12))
