# SPDX-License-Identifier: Apache-2.0
"""Putting estimators on the weights of a model, and taking them off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant.qat.lsq import LSQ
from lowtide.quant.qat.statsq import StatsQ

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _chosen(model: nn.Module, skip: Sequence[str]) -> list[nn.Module]:
    return [
        m
        for name, m in model.named_modules()
        if isinstance(m, _LAYERS)
        and not any(name == s or name.endswith("." + s) or name.startswith(s + ".") for s in skip)
    ]


def attach_(
    model: nn.Module,
    estimator: Callable[..., nn.Module],
    *,
    skip: Sequence[str] = ("lm_head",),
    **settings: Any,
) -> nn.Module:
    """Make the linear and convolution layers of ``model`` (or one such layer) train through a quantized weight.

    The latent weight becomes ``layer.parametrizations.weight.original``. Make the optimizer afterwards, so that it
    sees the latent weights and learned scales.

    Args:
        model: any module. estimator: :class:`StatsQ`, :class:`LSQ`, :class:`ReSTE` or :class:`BiPer`, or any
            callable that returns a module; it is given the weight if its first argument is called ``w``.
        skip: layers to leave alone: full dotted names, last parts, or names of enclosing modules.
        **settings: passed to ``estimator``.

    Returns:
        ``model``.

    Raises:
        LowtideValueError: no such layer, or a layer that is parametrized already; nothing is changed.
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    layers = _chosen(model, [skip] if isinstance(skip, str) else list(skip))
    if not layers:
        raise LowtideValueError(f"{type(model).__name__} has no linear or convolution layer outside of skip")
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            raise LowtideValueError("model has a layer whose weight is parametrized already; bake_ it first")
    first = next(iter(inspect.signature(estimator).parameters), None)
    made = []
    for layer in layers:
        w: Any = layer.weight
        q = estimator(w, **settings) if first == "w" else estimator(**settings)
        made.append(q.to(w.device))
    for layer, q in zip(layers, made, strict=True):
        parametrize.register_parametrization(layer, "weight", q)
    return model


def latent_weights(model: nn.Module) -> dict[Tensor, StatsQ | LSQ]:
    """Latent weight -> its :class:`StatsQ` or :class:`LSQ`, over all layers of ``model`` that have one."""
    found: dict[Tensor, StatsQ | LSQ] = {}
    for m in model.modules():
        if isinstance(m, parametrize.ParametrizationList):
            for q in m:
                if isinstance(q, (StatsQ, LSQ)):
                    original: Any = m.original
                    found[original] = q
    return found


def bake_(model: nn.Module) -> nn.Module:
    """Replace each parametrized ``weight`` by its quantized value, as a plain parameter; returns ``model``."""
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for m in list(model.modules()):
        if parametrize.is_parametrized(m, "weight"):
            parametrize.remove_parametrizations(m, "weight", leave_parametrized=True)
    return model
