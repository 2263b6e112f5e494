# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are protected, and what their inputs look like over batches of data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowtide._compile import hooks_seen
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store

#: How to run a model on one batch.
Forward: TypeAlias = "Callable[[nn.Module, Any], Any]"
#: Regular expressions that names of layers are searched for.
Patterns: TypeAlias = "str | Sequence[str] | None"


@dataclass(frozen=True)
class Layer:
    """A weight that multiplies rows of d inputs, and the modules it does that in (several where it is shared).

    Attributes:
        name: of the first module. features: d.
    """

    name: str
    modules: tuple[nn.Module, ...]
    weight: Tensor
    features: int


def find_layers(
    model: nn.Module, patterns: Patterns = None, *, linear_only: bool = False
) -> dict[str, Layer]:
    """Linear layers (``nn.Linear``, ``lt.quant.Linear``) and, unless ``linear_only``, ``nn.Conv2d``, by name.

    Args:
        model: any module.
        patterns: regular expressions searched in names. Default: all.

    Raises:
        LowtideValueError: nothing matches, or a convolution has groups or pads otherwise than with zeros.
        LowtideTypeError: ``model`` is none.
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    wanted = [patterns] if isinstance(patterns, str) else list(patterns or [""])
    found: dict[int, Layer] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        conv = isinstance(module, nn.Conv2d)
        linear = isinstance(weight, nn.Parameter) and (
            isinstance(module, nn.Linear) or weight_store.is_quantized(weight)
        )
        if not (linear or (conv and not linear_only)) or not any(re.search(p, name) for p in wanted):
            continue
        assert isinstance(weight, nn.Parameter)
        if isinstance(module, nn.Conv2d):
            _check_conv(name, module)
        if id(weight) in found:
            shared = found[id(weight)]
            found[id(weight)] = Layer(shared.name, (*shared.modules, module), weight, shared.features)
        else:
            found[id(weight)] = Layer(name, (module,), weight, weight_store.shape(weight)[1:].numel())
    if not found:
        raise LowtideValueError(
            f"layers {patterns!r} matches no linear or convolutional layer of {type(model).__name__}"
        )
    return {layer.name: layer for layer in found.values()}


def unprotected(model: nn.Module, layers: Mapping[str, Layer]) -> list[str]:
    """Names of trainable parameters that are none of the ``layers``' weights."""
    inside = {id(layer.weight) for layer in layers.values()}
    names = []
    for name, p in model.named_parameters():
        trainable = p.quant.trainable if weight_store.is_quantized(p) else p.requires_grad
        if trainable and id(p) not in inside:
            names.append(name)
    return names


def input_grams(
    model: nn.Module, layers: Mapping[str, Layer], batches: Iterable[Any], forward: Forward | None = None
) -> dict[str, tuple[Tensor, int]]:
    """``(XᵀX, rows of X)`` of each layer's inputs over all ``batches``: float64, d x d.

    The model runs in evaluation mode without gradients. Convolutions see one row a patch. d² doubles a layer are all
    that is held, however many batches there are.

    Args:
        batches: what the model takes: a tensor, a tuple (``model(*batch)``) or a mapping (``model(**batch)``).
        forward: called with model and batch instead.

    Raises:
        LowtideValueError: there is no batch, or an input holds inf or NaN.
    """
    grams = {
        name: torch.zeros(layer.features, layer.features, dtype=torch.float64)
        for name, layer in layers.items()
    }
    rows = dict.fromkeys(layers, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = _rows(module, inputs[0].detach())
            grams[name].addmm_(x.T, x)
            rows[name] += x.shape[0]

        return add

    handles = [
        m.register_forward_pre_hook(watch(name)) for name, layer in layers.items() for m in layer.modules
    ]
    training = model.training
    model.eval()
    count = 0
    try:
        with torch.no_grad(), hooks_seen():
            for batch in batches:
                (forward or _call)(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if count == 0:
        raise LowtideValueError("batches must hold at least one batch, got none")
    for name, gram in grams.items():
        if not bool(gram.isfinite().all()):
            raise LowtideValueError(f"the inputs of layer {name!r} hold inf or NaN; check the data")
    return {name: (grams[name], rows[name]) for name in layers}


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        x = nn.functional.unfold(
            x.double(), module.kernel_size, module.dilation, module.padding, module.stride
        )
        return x.mT.reshape(-1, x.shape[1])
    return x.double().reshape(-1, x.shape[-1])


def _check_conv(name: str, conv: nn.Conv2d) -> None:
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise LowtideValueError(
            f"layer {name!r} must be a convolution without groups, padded with zeros by numbers, got {conv}; leave it out with layers="
        )
