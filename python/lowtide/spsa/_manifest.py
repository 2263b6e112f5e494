# SPDX-License-Identifier: Apache-2.0
"""The manifest: which tensors a run trains, in which order, under which settings.

A parameter's position in it is its address in the random streams, so two programs with equal manifests draw equal
directions whatever the order in which their modules run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lowtide.errors import LowtideValueError

DTYPES = ("float32", "bfloat16", "float16", "uint8")
#: What a manifest from outside may hold at most.
MAX_ENTRIES, MAX_NAME, MAX_DIMS, MAX_BYTES = 1 << 20, 1024, 16, 1 << 28


@dataclass(frozen=True)
class Entry:
    """One tensor of a run.

    Attributes:
        name: its first name in the model.
        param: its id in the random streams, the position in the manifest.
        shape, dtype: of the master (``"float32"``, ``"bfloat16"``, ``"float16"``; ``"uint8"``: packed codes).
        group: index of its parameter group.
        decay: whether weight decay applies.
        scale: layer scale s: the tensor moves along s z.
        threshold: elements larger than this in magnitude stay (Sparse-MeZO); inf: none.
        aliases: further names of the same tensor (tied weights).
        floor: smallest value an element may take (QZO's scales: 0); -inf: none.
    """

    name: str
    param: int
    shape: tuple[int, ...]
    dtype: str
    group: int = 0
    decay: bool = True
    scale: float = 1.0
    threshold: float = math.inf
    aliases: tuple[str, ...] = field(default=())
    floor: float = -math.inf

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def _bad(what: str, got: object) -> LowtideValueError:
    return LowtideValueError(
        f"manifest: {what}, got {str(got)[:80]!r}: it was not written by this library, or is damaged"
    )


def _integer(value: Any, what: str, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise _bad(f"{what} must be an integer in [0, {limit}]", value)
    return value


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _bad(f"{what} must be a finite number", value)
    return float(value)


def _text(value: Any, what: str) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_NAME:
        raise _bad(f"{what} must be a text of 1 to {MAX_NAME} characters", value)
    return value


def _list(value: Any, what: str, limit: int) -> list[Any]:
    if type(value) is not list or len(value) > limit:
        raise _bad(f"{what} must be a list of at most {limit} items", value)
    return value


def _entry(raw: Any, position: int) -> Entry:
    where = f"entry {position}"
    keys = {"name", "shape", "dtype", "group", "decay", "scale", "threshold", "aliases", "floor"}
    if type(raw) is not dict or set(raw) != keys:
        raise _bad(f"{where} must have exactly the keys {', '.join(sorted(keys))}", raw)
    shape = tuple(_integer(d, f"{where}: a dimension", 1 << 48) for d in _list(raw["shape"], where, MAX_DIMS))
    if math.prod(shape) >= 1 << 62:
        raise _bad(f"{where} must have less than 2**62 elements", shape)
    if raw["dtype"] not in DTYPES:
        raise _bad(f"{where}: dtype must be one of {', '.join(DTYPES)}", raw["dtype"])
    if type(raw["decay"]) is not bool:
        raise _bad(f"{where}: decay must be true or false", raw["decay"])
    threshold, floor = raw["threshold"], raw["floor"]
    return Entry(
        name=_text(raw["name"], f"{where}: name"),
        param=position,
        shape=shape,
        dtype=raw["dtype"],
        group=_integer(raw["group"], f"{where}: group", MAX_ENTRIES),
        decay=raw["decay"],
        scale=_number(raw["scale"], f"{where}: scale"),
        threshold=math.inf if threshold is None else _number(threshold, f"{where}: threshold"),
        aliases=tuple(_text(a, f"{where}: alias") for a in _list(raw["aliases"], where, 4096)),
        floor=-math.inf if floor is None else _number(floor, f"{where}: floor"),
    )


@dataclass(frozen=True)
class Manifest:
    """The entries of a run, in the order of their ids."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for position, e in enumerate(self.entries):
            if e.param != position:
                raise LowtideValueError(
                    f"entries must be in the order of their ids: {e.name} at {position} has id {e.param}"
                )
            for name in (e.name, *e.aliases):
                if name in names:
                    raise LowtideValueError(f"entries must have different names, got {name!r} twice")
                names.add(name)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @cached_property
    def groups(self) -> int:
        """Number of parameter groups."""
        return 1 + max((e.group for e in self.entries), default=0)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest exact floats, null for an infinite threshold or floor."""
        rows = [
            {
                "name": e.name,
                "shape": list(e.shape),
                "dtype": e.dtype,
                "group": e.group,
                "decay": e.decay,
                "scale": float(e.scale),
                "threshold": None if math.isinf(e.threshold) else float(e.threshold),
                "aliases": list(e.aliases),
                "floor": None if math.isinf(e.floor) else float(e.floor),
            }
            for e in self.entries
        ]
        return json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what :meth:`to_json` wrote; anything else is refused.

        Raises:
            LowtideValueError: names the entry and what is wrong with it.
        """
        if len(text) > MAX_BYTES:
            raise _bad(f"it may have at most {MAX_BYTES} characters", len(text))
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _bad("it must be JSON", error) from error
        rows = _list(raw, "the manifest", MAX_ENTRIES)
        return cls(tuple(_entry(row, i) for i, row in enumerate(rows)))

    @cached_property
    def digest(self) -> bytes:
        """BLAKE2b-256 of the canonical JSON."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=32).digest()

    def differences(self, other: Manifest) -> Sequence[str]:
        """What differs, a line for each of the first few: for error messages."""
        lines = []
        if len(self) != len(other):
            lines.append(f"{len(self)} tensors here, {len(other)} there")
        for a, b in zip(self, other, strict=False):
            lines += [
                f"{a.name}: {k} {getattr(a, k)!r} here, {getattr(b, k)!r} there"
                for k in (
                    "name",
                    "shape",
                    "dtype",
                    "group",
                    "decay",
                    "scale",
                    "threshold",
                    "aliases",
                    "floor",
                )
                if getattr(a, k) != getattr(b, k)
            ]
        return lines[:5]
