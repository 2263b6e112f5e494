# SPDX-License-Identifier: Apache-2.0
"""Which settings train a model within so many bytes, the best ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowtide.errors import LowtideValueError
from lowtide.optim.architectures import read
from lowtide.optim.memory import MemoryReport, memory

#: Share of the budget that settings may use: the rest is for workspaces, logits and the allocator, which are not counted.
USABLE = 0.9

#: (method, weights, rank, why it stands here): best expected quality first. Losses are those of docs/training.md.
_LADDER: tuple[tuple[str, str, float | None, str], ...] = (
    ("adamw", "fp32", None, "the reference"),
    ("adamw8bit", "fp32", None, "8-bit states: loss within 0.02 % of the reference"),
    ("adamw4bit", "fp32", None, "4-bit states: loss no worse than the reference's, over 300 steps"),
    ("adamw8bit", "bf16", None, "bf16 weights, stochastically rounded"),
    ("adamw8bit", "int8", None, "INT8 weights, stochastically rounded: +0.15 % loss"),
    ("adamw4bit", "int8", None, "INT8 weights, 4-bit states"),
    ("fira", "int8", 0.25, "subspace of a quarter, the rest of the gradient at its rate"),
    ("apollo", "int8", 0.25, "rates from a random subspace of a quarter, which is not stored"),
    ("galore8bit", "int8", 0.25, "subspace of a quarter, the rest of the gradient dropped"),
    ("qgalore", "int8", 0.25, "the same with INT4 bases"),
    ("qgalore", "int8", 0.125, "subspace of an eighth"),
    ("apollo-mini", "int8", None, "one rate a matrix: next to no states"),
)


@dataclass(frozen=True)
class Proposal:
    """Settings and what they take.

    Attributes:
        report: bytes by kind, with activations. method, weights, rank: see :func:`memory`; rank None: full rank.
        in_backward: gradients are freed as they arrive (:func:`in_backward`).
        checkpointing: activations of layers are computed again, about a third more time.
        accumulate: into how many backward passes the batch is cut.
        why: why this method, in words.
        fits: whether ``report.total`` is within the usable share of the budget.
    """

    report: MemoryReport
    method: str
    weights: str
    rank: float | None
    in_backward: bool
    checkpointing: bool
    accumulate: int
    why: str
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {k: v for k, v in self.__dict__.items() if k != "report"}
        return {
            **own,
            "bytes": {k: v for k, v in self.report.as_dict().items() if k not in ("method", "parameters")},
        }


def fit(model: Any, budget: int, *, batch: int = 1, seq: int = 1024) -> list[Proposal]:
    """Settings that train ``model`` within ``budget`` bytes.

    For each method (with weight store and rank) the way that costs least time: gradients all at once; freed as they arrive;
    layers checkpointed; the batch cut into backward passes, in this order.

    Args:
        model: a LLaMA: a name, config, directory or module, as for :func:`memory`.
        budget: bytes, > 0; nine tenths of them are given out.
        batch, seq: sequences a step, and their tokens.

    Returns:
        Proposals that fit, best expected quality first. If none does: the one that misses by least, alone, with ``fits`` False.

    Raises:
        LowtideValueError: a bad argument, or the model is no LLaMA.
    """
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise LowtideValueError(f"budget must be an integer > 0 (bytes), got {budget!r}")
    for name, value in (("batch", batch), ("seq", seq)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LowtideValueError(f"{name} must be an integer >= 1, got {value!r}")
    _, llama = read(model)
    if llama is None:
        raise LowtideValueError(
            "model must be a LLaMA whose activations can be counted; pass its config.json or a name"
        )
    limit = USABLE * budget
    found, nearest = [], None
    for step in _LADDER:
        for ways in _ways(batch):
            proposal = _propose(model, step, batch, seq, ways, limit)
            if nearest is None or proposal.report.total < nearest.report.total:
                nearest = proposal
            if proposal.fits:
                found.append(proposal)
                break
    assert nearest is not None
    return found or [nearest]


def _ways(batch: int) -> list[tuple[str, str, int]]:
    """(gradients, activations, passes), quickest first; halving the batch rather than going to one at once."""
    passes = [1]
    while passes[-1] < batch:
        passes.append(min(2 * passes[-1], batch))
    ways = [("all", "full", 1), ("one", "full", 1)]
    ways += [(grads, "checkpointed", 1) for grads in ("all", "one")]
    ways += [("all" if n > 1 else "one", "checkpointed", n) for n in passes[1:]]
    ways += [("accumulated", "checkpointed", n) for n in passes[1:]]
    return ways


def _propose(
    model: Any,
    step: tuple[str, str, float | None, str],
    batch: int,
    seq: int,
    way: tuple[str, str, int],
    limit: float,
) -> Proposal:
    method, weights, rank, why = step
    gradients, activations, passes = way
    report = memory(
        model, method, rank=rank or 1, weights=weights, gradients=gradients,
        batch=-(-batch // passes), seq=seq, activations=activations,
    )  # fmt: skip
    return Proposal(
        report,
        method,
        weights,
        rank,
        gradients != "all",
        activations == "checkpointed",
        passes,
        why,
        report.total <= limit,
    )
