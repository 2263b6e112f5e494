# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a model are differentiated, and under which names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError

#: What chooses parameters: None (all that require grad), tensors, names, ``predicate(name, p)``, or (name, tensor) pairs.
ParamSpec: TypeAlias = Iterable[Tensor | str | tuple[str, Tensor]] | Callable[[str, Tensor], bool] | None

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def resolve_params(model: nn.Module, params: ParamSpec) -> list[tuple[str, Tensor]]:
    """(name, parameter) of what is differentiated, tied parameters once and under their first name.

    ``None`` and a predicate keep the model's order, a list its own.

    Raises:
        LowtideTypeError, LowtideValueError: not a parameter of ``model``, named twice, no float, or nothing at all.
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise LowtideTypeError(
            "model must not be wrapped in DistributedDataParallel, whose hooks expect its own parameters: pass model.module"
        )
    own: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = [(name, p) for name, p in own.items() if p.requires_grad]
    elif callable(params):
        chosen = [(name, p) for name, p in own.items() if params(name, p)]
    else:
        if isinstance(params, (Tensor, str)):
            params = [params]
        names = {id(p): name for name, p in own.items()}
        every: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        chosen = [_one(item, i, names, every) for i, item in enumerate(params)]
    seen: set[str] = set()
    for name, p in chosen:
        if name in seen:
            raise LowtideValueError(
                f"params names {name} twice; tied parameters count once, under their first name"
            )
        if p.dtype not in _FLOATS:
            raise LowtideTypeError(
                f"params: {name} must be float64, float32, bfloat16 or float16 to be differentiated, got {p.dtype}"
            )
        seen.add(name)
    if not chosen:
        raise LowtideValueError(
            "params is empty: name at least one tensor, or set requires_grad on what to differentiate"
        )
    return chosen


def _one(
    item: Tensor | str | tuple[str, Tensor], i: int, names: dict[int, str], every: dict[str, Tensor]
) -> tuple[str, Tensor]:
    if isinstance(item, tuple):
        item = item[1]
    if isinstance(item, str):
        if item not in every:
            raise LowtideValueError(
                f"params: the model has no parameter named {item!r}; model.named_parameters() lists them"
            )
        item = every[item]
    if not isinstance(item, Tensor):
        raise LowtideTypeError(
            f"params must hold tensors, names or (name, tensor) pairs, got {type(item).__name__}"
        )
    if id(item) not in names:
        raise LowtideValueError(
            f"params[{i}] of shape {tuple(item.shape)} is no parameter of model; pass those of model.parameters()"
        )
    return names[id(item)], item
