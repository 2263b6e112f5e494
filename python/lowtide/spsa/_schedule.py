# SPDX-License-Identifier: Apache-2.0
"""From a commit to the numbers that are added to the weights: a pure function of committed codes and settings.

The live run, every replica and every replay go through here; doubles in a fixed order, rounded to float32 once.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowtide.errors import LowtideValueError
from lowtide.spsa._method import Hyper, Method

if TYPE_CHECKING:
    from lowtide.spsa._commit import Commit

_MASK = (1 << 64) - 1
#: Address of FedKSeed's candidates: their steps are beyond those of any run.
KSEED_STEP = 1 << 62


@dataclass(frozen=True)
class StepUpdate:
    """What step ``step`` adds to the weights.

    Attributes:
        step: the round; stochastic rounding draws at (seed, step, slot 0).
        decay: factor of the old weights, 1 for none; representable in float32.
        directions: (dir_step, slot, coeff): add coeff * z(seed, dir_step, slot); float32-representable, slots ascending.
        more: (decay, coefficients) of the parameter groups 1, 2, ...; ``decay`` and ``directions`` are of group 0.
        scalars: committed values that methods with a state for each element need (HiZOO: curvature, ConMeZO: slope).
    """

    step: int
    decay: float
    directions: tuple[tuple[int, int, float], ...]
    more: tuple[tuple[float, tuple[float, ...]], ...] = ()
    scalars: tuple[float, ...] = ()

    def of_group(self, group: int) -> tuple[float, tuple[float, ...]]:
        """Decay and coefficients of one parameter group."""
        if group == 0:
            return self.decay, tuple(c for _, _, c in self.directions)
        return self.more[group - 1]


def float32(x: float) -> float:
    """Rounded to float32; what overflows becomes 0, so that nothing infinite gets into weights."""
    try:
        y: float = struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return 0.0
    return y if math.isfinite(y) else 0.0


def _mix(x: int) -> int:
    """The 64-bit finalizer of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def address(method: Method, seed: int, step: int, slot: int) -> tuple[int, int]:
    """(dir_step, dir_slot) of the direction that slot ``slot`` of step ``step`` explores."""
    if method.seeds == 0:
        return step, slot
    return KSEED_STEP, _mix(_mix(_mix(seed) ^ step) ^ slot) % method.seeds


#: One step's contributions: its step, and (slot, value) in ascending order of slots.
Contributions = tuple[int, tuple[tuple[int, float], ...]]


def weights_of(method: Method, values: Sequence[float]) -> list[float]:
    """Each contribution's g / n_eff; FZOO divides by the spread too, and by nothing where there is none."""
    n = len(values)
    if method.estimator != "fzoo":
        return [g / n for g in values]
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((g - mean) ** 2 for g in values) / n)
    return [g / n / spread if spread > 0.0 else 0.0 for g in values]


def updates_of(
    step: int, history: Iterable[Contributions], hyper: Hyper, method: Method, seed: int
) -> StepUpdate:
    """The update of ``step``.

    Args:
        step: the round.
        history: contributions of the last ``method.window`` steps, oldest first, this step's last. Steps in which nothing
            contributed are in it with none.
        hyper: learning rate and decay of each group.
        method, seed: constants of the run.

    Returns:
        The update; without any contribution it changes nothing, not even by decay.
    """
    steps = list(history)[-method.window :]
    addresses: list[tuple[int, int]] = []
    slopes: list[float] = []
    total = math.fsum(method.beta**age for age in range(len(steps)))
    for age, (when, contributions) in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        weights = weights_of(method, [g for _, g in contributions]) if contributions else []
        share = method.beta**age / total if total > 0.0 else 0.0
        for (slot, _), weight in zip(contributions, weights, strict=True):
            addresses.append(address(method, seed, when, slot))
            slopes.append(weight * share if method.window > 1 else weight)
    groups = []
    for lr, decay in zip(hyper.lr, hyper.weight_decay, strict=True):
        factor = float32(1.0 - lr * decay) if slopes and decay != 0.0 else 1.0
        groups.append((factor, tuple(float32(-lr * s) for s in slopes)))
    directions = tuple((a, b, c) for (a, b), c in zip(addresses, groups[0][1], strict=True))
    return StepUpdate(step, groups[0][0], directions, tuple(groups[1:]))


class Schedule:
    """The host's part of the state: the exponent of the next codes and the window of past contributions.

    Args:
        method: constants of the run.
        codec: name of the codec, see ``lowtide.spsa.CODECS``.
        seed: of the run.
    """

    def __init__(self, method: Method, codec: str, seed: int) -> None:
        from lowtide.spsa._codec import CODECS, ExponentRule

        if codec not in CODECS:
            raise LowtideValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
        self.method, self.codec, self.seed = method, CODECS[codec], seed
        self._rule = ExponentRule(codec)
        self._window: deque[Contributions] = deque(maxlen=method.window)

    @property
    def exponent(self) -> int:
        """Exponent of the next step's codes."""
        return self._rule.exponent

    def decode(self, commit: Commit) -> tuple[tuple[int, float], ...]:
        """(slot, value) of the codes that contribute."""
        decoded = ((slot, self.codec.decode(code, self.exponent)) for slot, code in commit.codes)
        return tuple((slot, g) for slot, g in decoded if g is not None)

    def update(self, commit: Commit, hyper: Hyper) -> StepUpdate:
        """The update of a commit; moves on to the next step."""
        values = self.decode(commit)
        self._rule.update([code for _, code in commit.codes])
        if self.method.kind != "plain":
            return self._elementwise(commit.step, values, hyper)
        self._window.append((commit.step, values))
        return updates_of(commit.step, self._window, hyper, self.method, self.seed)

    def _elementwise(self, step: int, values: tuple[tuple[int, float], ...], hyper: Hyper) -> StepUpdate:
        per = self.method.codes_per_direction
        known = dict(values)
        # A direction counts only if all of its codes arrived.
        whole = [s for s in sorted(known) if s % per == 0 and all(s + i in known for i in range(per))]
        contributions = tuple((s // per, known[s]) for s in whole)
        plain = updates_of(step, [(step, contributions)], hyper, self.method, self.seed)
        scalars = tuple(known[s + i] for s in whole for i in range(per))
        return StepUpdate(plain.step, plain.decay, plain.directions, plain.more, scalars)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "rule": self._rule.state_dict(),
            "window": [[step, [[s, g] for s, g in values]] for step, values in self._window],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave."""
        self._rule.load_state_dict(state["rule"])
        self._window.clear()
        for step, values in state["window"]:
            self._window.append((int(step), tuple((int(s), float(g)) for s, g in values)))
