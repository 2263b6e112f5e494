# SPDX-License-Identifier: Apache-2.0
"""From what a user passes as ``loss_fn`` to a :class:`Loss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lowtide.curvature._causal_lm import CausalLM
from lowtide.curvature._losses import MSE, BCEWithLogits, Criterion, Loss
from lowtide.curvature._losses_classes import CrossEntropy
from lowtide.errors import LowtideTypeError, LowtideValueError

_NAMES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": CrossEntropy,
    "mse": MSE,
    "bce_with_logits": BCEWithLogits,
    "causal_lm": CausalLM,
}


def make_loss(loss_fn: Any) -> Loss:
    """A :class:`Loss` of a name, a criterion module, or a function of (model, batch)."""
    if isinstance(loss_fn, Loss):
        return loss_fn
    if isinstance(loss_fn, str):
        if loss_fn not in _NAMES:
            raise LowtideValueError(
                f"loss_fn must be one of {', '.join(_NAMES)}, a criterion or a function, got {loss_fn!r}"
            )
        return _NAMES[loss_fn]()
    if isinstance(loss_fn, nn.Module):
        if type(loss_fn) is nn.CrossEntropyLoss and loss_fn.reduction == "mean":
            return CrossEntropy(loss_fn)
        if type(loss_fn) is nn.MSELoss and loss_fn.reduction == "mean":
            return MSE()
        if type(loss_fn) is nn.BCEWithLogitsLoss and loss_fn.reduction == "mean":
            return BCEWithLogits(loss_fn)
        return Criterion(loss_fn)
    if not callable(loss_fn):
        raise LowtideTypeError(
            f"loss_fn must be a criterion, one of {', '.join(_NAMES)}, or a function of (model, batch), got {type(loss_fn).__name__}"
        )
    return Loss(loss_fn)
