# SPDX-License-Identifier: Apache-2.0
"""Parameter groups as the Trainer makes them: which matrices are projected, which parameters decay."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers.trainer_utils import check_target_module_exists

import lowtide.quant
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant import is_quant_weight


def trains(p: nn.Parameter) -> bool:
    """Whether a parameter, dense or packed, is not frozen."""
    return bool(p.quant.trainable if is_quant_weight(p) else p.requires_grad)


def packed(model: nn.Module) -> bool:
    """Whether the model has packed weights that train."""
    return any(is_quant_weight(p) and trains(p) for p in model.parameters())


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, lowtide.quant.Linear))


def target_weights(model: nn.Module, targets: str | list[str] | None) -> set[str]:
    """Names of the matrices that a low-rank method projects.

    Args:
        targets: as ``TrainingArguments.optim_target_modules``: a regular expression that must match the whole name of a linear layer,
            "all-linear", or a list of names, parts of names and such expressions. None: all linear layers but the output head.

    Raises:
        LowtideValueError, LowtideTypeError: nothing matches, or it is something else.
    """
    if targets is not None and not isinstance(targets, (str, list, tuple)):
        raise LowtideTypeError(
            f"optim_target_modules must be a regular expression, 'all-linear' or a list of them, got {targets!r}"
        )
    layers = {name: module for name, module in model.named_modules() if _linear(module)}
    if targets is None:
        get_head = getattr(model, "get_output_embeddings", lambda: None)
        head = get_head()
        chosen = [name for name, module in layers.items() if module is not head]
    elif isinstance(targets, str) and targets.replace("_", "-") == "all-linear":
        chosen = list(layers)
    else:
        wanted = targets if isinstance(targets, str) else list(targets)
        chosen = [name for name in layers if check_target_module_exists(wanted, name)]
    # A head that shares the embedding's weight is listed under the embedding's name, and trains with it.
    named = dict(model.named_parameters())
    found = {f"{name}.weight" for name in chosen if f"{name}.weight" in named}
    found = {name for name in found if trains(named[name])}
    if not found:
        some = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise LowtideValueError(
            f"optim_target_modules={targets!r} matches no linear layer of {type(model).__name__} that trains; "
            + (f"its layers end in {', '.join(some[:12])}" if some else "it has none: use method='adamw8bit'")
        )
    return found


def parameter_groups(
    model: nn.Module, low_rank: set[str], keys: dict[str, Any], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of the parameters that train: low rank or not, with weight decay or, biases and norms, without.

    Each carries ``param_names`` and ``param_ids``, the positions in ``model.named_parameters()`` that address random numbers.
    """
    rule: Any = transformers.Trainer.get_decay_parameter_names
    decays = set(rule(None, model))
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for low, decay in ((True, True), (True, False), (False, True), (False, False)):
        groups[low, decay] = {
            "params": [], "param_names": [], "param_ids": [], "weight_decay": weight_decay if decay else 0.0,
            **(keys if low else {}),
        }  # fmt: skip
    for index, (name, p) in enumerate(model.named_parameters()):
        if not trains(p):
            continue
        group = groups[name in low_rank, name in decays]
        group["params"].append(p)
        group["param_names"].append(name)
        group["param_ids"].append(index)
    return [group for group in groups.values() if group["params"]]
