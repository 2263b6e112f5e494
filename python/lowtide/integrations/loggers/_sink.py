# SPDX-License-Identifier: Apache-2.0
"""The protocol of a sink, what may be logged, and several sinks as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

from lowtide.errors import LowtideTypeError, LowtideValueError

_Self = TypeVar("_Self", bound="Closing")


@runtime_checkable
class Sink(Protocol):
    """Takes the numbers of a run as they come.

    ``log`` gets a step (an integer >= 0) and values by name: numbers, 0-d arrays and tensors, booleans, strings, None, and mappings
    of such, which TensorBoard and W&B show as ``"a/b"``. After ``close`` nothing more may be logged.
    """

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""
        ...

    def close(self) -> None:
        """Write what is left; closing twice is fine."""
        ...


class Closing:
    """A sink as a context manager."""

    def close(self) -> None:
        """Write what is left."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Many(Closing):
    """Several sinks as one. An error of one does not keep the others from being closed."""

    def __init__(self, *sinks: Sink) -> None:
        for sink in sinks:
            if not isinstance(sink, Sink):
                raise LowtideTypeError(
                    f"sinks must have log(step, values) and close(), got {type(sink).__name__}"
                )
        self.sinks = sinks

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand the values to each sink."""
        for sink in self.sinks:
            sink.log(step, values)

    def close(self) -> None:
        """Close all; raises the first error afterwards."""
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)


def plain(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A copy in plain Python: int, float, bool, str, None, lists and dicts of such; refuses anything else by its name."""
    if not isinstance(values, Mapping):
        raise LowtideTypeError(f"values must be a mapping of names to numbers, got {type(values).__name__}")
    out: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise LowtideTypeError(f"names of values must be strings, got {name!r}")
        out[name] = _plain(value, f"{where}{name}")
    return out


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return plain(value, f"{where}/")
    if isinstance(value, (list, tuple)):
        return [_plain(v, where) for v in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy and torch scalars
        return _plain(value.item(), where)
    raise LowtideTypeError(
        f"{where} must be a number, a string, None, or a mapping or list of such, got {type(value).__name__}"
    )


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one: ``{"bytes": {"states": 1}}`` becomes ``{"bytes/states": 1}``.

    >>> flatten({"loss": 1.0, "bytes": {"states": 1}})
    {'loss': 1.0, 'bytes/states': 1}
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out.update({f"{name}/{inner}": v for inner, v in flatten(value).items()})
        else:
            out[name] = value
    return out


def check_step(step: int) -> int:
    """The step as an int; refuses what is none."""
    if isinstance(step, bool) or not hasattr(step, "__index__") or step.__index__() < 0:
        raise LowtideValueError(f"step must be an integer >= 0, got {step!r}")
    return step.__index__()
