# SPDX-License-Identifier: Apache-2.0
"""Nested state (dicts, lists, tensors, plain scalars) as a JSON skeleton and a flat table of tensors.

JSON holds plain values as they are. What JSON cannot say is an object with one key that starts with `$`:
`$tensor` (a name in the table, with its strides where they are not the contiguous ones), `$tuple`,
`$pairs` (a dict whose keys are not all plain strings) and `$float` (nan, inf, -inf).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lowtide.train.errors import CheckpointError

_MAX_DEPTH = 64
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def flatten(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split `tree` into a JSON-able skeleton and its tensors by name.

    A tensor met twice (tied weights) is stored once. Raises TypeError for anything that is not a tensor,
    bool, int, float, str, None, dict, list or tuple: pickles are not an option.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}

    def tensor(value: torch.Tensor, path: str) -> Any:
        value = value.detach()
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        name = seen.get(key) if value.numel() else None
        if name is None:
            name = path or "tensor"
            while name in tensors:  # {"a.b": x, "a": {"b": y}}
                name += "'"
            seen[key] = name
            tensors[name] = value
        node: dict[str, Any] = {"$tensor": name}
        if not value.is_contiguous() and _is_dense(tuple(value.shape), value.stride()):
            node["stride"] = list(value.stride())
        return node

    def walk(value: Any, path: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise TypeError(f"state is nested deeper than {_MAX_DEPTH} levels at {path!r}")
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor):
            return tensor(value, path)

        def child(key: Any, item: Any) -> Any:
            return walk(item, f"{path}.{key}" if path else str(key), depth + 1)

        if isinstance(value, Mapping):
            if all(isinstance(k, str) and not k.startswith("$") for k in value):
                return {k: child(k, v) for k, v in value.items()}
            for k in value:
                if not isinstance(k, (str, int)) or isinstance(k, bool):
                    raise TypeError(f"state key {k!r} at {path!r} is neither a string nor an integer")
            return {"$pairs": [[k, child(k, v)] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [child(i, v) for i, v in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        raise TypeError(f"state holds a {type(value).__name__} at {path!r}, which a checkpoint cannot keep")

    return walk(tree, "", 0), tensors


def unflatten(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Rebuild the tree of `flatten`. Raises CheckpointError if the skeleton and the table do not fit."""
    used: set[str] = set()

    def tensor(node: dict[str, Any]) -> torch.Tensor:
        name = node["$tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise CheckpointError(f"the checkpoint lacks its tensor {name!r}; use an older checkpoint")
        used.add(name)
        value = tensors[name]
        if "stride" in node:
            value = _restride(value, node["stride"], name)
        return value

    def walk(node: Any, depth: int) -> Any:
        if depth > 2 * _MAX_DEPTH:
            raise CheckpointError(
                "the checkpoint's state is nested too deeply; it was not written by lowtide"
            )
        if isinstance(node, list):
            return [walk(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        if "$tensor" in node:
            return tensor(node)
        if "$tuple" in node:
            return tuple(walk(item, depth + 1) for item in _list(node["$tuple"]))
        if "$float" in node:
            if str(node["$float"]) not in _FLOATS:
                raise CheckpointError("the checkpoint holds an unknown number; it was not written by lowtide")
            return _FLOATS[str(node["$float"])]
        if "$pairs" in node:
            pairs = _list(node["$pairs"])
            if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], (str, int)) for p in pairs):
                raise CheckpointError("the checkpoint holds an unknown table; it was not written by lowtide")
            return {p[0]: walk(p[1], depth + 1) for p in pairs}
        return {key: walk(item, depth + 1) for key, item in node.items()}

    tree = walk(skeleton, 0)
    extra = sorted(set(tensors) - used)
    if extra:
        raise CheckpointError(
            f"the checkpoint holds an unknown tensor {extra[0]!r}; it was not written by lowtide"
        )
    return tree


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError("the checkpoint's state has an unknown form; it was not written by lowtide")
    return value


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the layout covers its memory exactly once: no overlap, no holes."""
    expected = 1
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _restride(value: torch.Tensor, strides: Any, name: str) -> torch.Tensor:
    """`value` in the memory layout it had when saved."""
    shape = tuple(value.shape)
    ok = isinstance(strides, list) and len(strides) == len(shape) and all(isinstance(s, int) for s in strides)
    if not ok or not _is_dense(shape, tuple(strides)):
        raise CheckpointError(
            f"the checkpoint gives tensor {name!r} an impossible layout; use an older checkpoint"
        )
    return torch.empty_strided(shape, strides, dtype=value.dtype).copy_(value)
