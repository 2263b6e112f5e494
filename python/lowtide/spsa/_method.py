# SPDX-License-Identifier: Apache-2.0
"""What defines a run besides its tensors: constant settings (Method) and those that schedules change (Hyper)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError

#: Distributions of a direction and their ids.
DISTS = {"rademacher": 0, "gaussian": 1, "ih4": 2, "lut8": 3}
ESTIMATORS = ("central", "forward", "fzoo")
KINDS = ("plain", "hizoo", "conmezo")


@dataclass(frozen=True)
class SeedWindow:
    """Momentum that stores seeds instead of a tensor (MeZO, appendix B): the mean of the last ``n`` steps' updates,
    weighted by ``beta ** age``. Costs ``n`` regenerations of z a step and a few hundred bytes."""

    n: int = 16
    beta: float = 0.9

    def __post_init__(self) -> None:
        if type(self.n) is not int or not 1 <= self.n <= 4096:
            raise LowtideValueError(f"SeedWindow: n must be an integer in [1, 4096], got {self.n!r}")
        if not 0.0 <= self.beta <= 1.0:
            raise LowtideValueError(f"SeedWindow: beta must be in [0, 1], got {self.beta!r}")


@dataclass(frozen=True)
class Method:
    """Constant settings of a run: with the manifest, the seed and the commits they determine the weights.

    Attributes:
        estimator: ``"central"``, ``"forward"`` or ``"fzoo"``.
        dist: distribution of z, one of :data:`DISTS`.
        window, beta: momentum by seed window; window 1 is none.
        seeds: FedKSeed's number of candidate directions; 0: a fresh one each time.
        rank, interval: LOZO: z = U V^T / sqrt(rank) for matrices, V kept for ``interval`` steps; rank 0: dense.
        kind: ``"plain"``, or a method with a state for each element (``"hizoo"``, ``"conmezo"``).
        alpha: HiZOO's rate of the curvature estimate; ConMeZO's angle in radians.
    """

    estimator: str = "central"
    dist: str = "rademacher"
    window: int = 1
    beta: float = 0.0
    seeds: int = 0
    rank: int = 0
    interval: int = 1
    kind: str = "plain"
    alpha: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("estimator", ESTIMATORS), ("dist", tuple(DISTS)), ("kind", KINDS)):
            if getattr(self, name) not in choices:
                raise LowtideValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        SeedWindow(self.window, self.beta)
        check_uint(self.seeds, "seeds", 24)
        check_uint(self.interval, "interval", 31)
        if not 0 <= self.rank <= 8:
            raise LowtideValueError(f"rank must be in [0, 8], got {self.rank!r}")
        if self.interval < 1:
            raise LowtideValueError(f"interval must be >= 1, got {self.interval!r}")
        if not math.isfinite(self.alpha):
            raise LowtideValueError(f"alpha must be finite, got {self.alpha!r}")
        if self.kind != "plain" and (self.rank or self.window > 1 or self.estimator != "central"):
            raise LowtideValueError(
                f"kind={self.kind!r} works with estimator='central', without momentum and low rank"
            )

    @property
    def dist_id(self) -> int:
        """Id of the distribution in the ops."""
        return DISTS[self.dist]

    @property
    def codes_per_direction(self) -> int:
        """Slots of a commit that one direction takes: HiZOO commits the slope and the curvature."""
        return 2 if self.kind == "hizoo" else 1

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Method:
        """Read what :meth:`to_json` wrote.

        Raises:
            LowtideValueError, LowtideTypeError: anything else.
        """
        try:
            raw: Any = json.loads(text) if len(text) <= 4096 else None
        except (ValueError, RecursionError) as error:
            raise LowtideValueError(f"method: must be JSON, got {text[:80]!r}") from error
        kinds = {f.name: type(f.default) for f in fields(cls)}
        if type(raw) is not dict or set(raw) != set(kinds):
            raise LowtideValueError(f"method: must have the keys {', '.join(kinds)}, got {str(raw)[:80]}")
        for name, kind in kinds.items():
            if type(raw[name]) is not kind:
                raise LowtideTypeError(f"method: {name} must be of type {kind.__name__}, got {raw[name]!r}")
        return cls(**raw)


@dataclass(frozen=True)
class Hyper:
    """Settings that may change from step to step: one value for each parameter group; doubles, to be kept exactly."""

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.lr) != len(self.weight_decay) or not self.lr:
            raise LowtideValueError(
                f"lr and weight_decay must have one value for each group, got {len(self.lr)} and {len(self.weight_decay)}"
            )
        for name in ("lr", "weight_decay"):
            for value in getattr(self, name):
                if not (math.isfinite(value) and value >= 0.0):
                    raise LowtideValueError(f"{name} must be finite and >= 0, got {value!r}")
