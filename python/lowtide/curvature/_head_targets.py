# SPDX-License-Identifier: Apache-2.0
"""What a head's arguments must be, and cross entropy's targets as numbers that its derivatives need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError


def check_head(X: Tensor, W: Tensor, b: Tensor | None) -> None:
    """Raises unless X is (N, D), W is (C, D) and b is (C,) or None, all float32 or all float64 on one device."""
    for name, t in (("X", X), ("W", W), ("b", b)):
        if t is None and name == "b":
            continue
        if not isinstance(t, Tensor) or t.dtype not in (torch.float32, torch.float64):
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise LowtideTypeError(
                f"{name} must be a float32 or float64 tensor, got {got}; convert it with .float()"
            )
        if t.dtype != X.dtype or t.device != X.device:
            raise LowtideTypeError(
                f"{name} must have the dtype and device of X, {X.dtype} on {X.device}, got {t.dtype} on {t.device}"
            )
    if X.dim() != 2 or W.dim() != 2 or X.shape[1] != W.shape[1]:
        raise LowtideValueError(
            f"X must be (N, D) and W (C, D) with one D, got {tuple(X.shape)} and {tuple(W.shape)}; "
            "flatten features to two dimensions"
        )
    if b is not None and b.shape != W.shape[:1]:
        raise LowtideValueError(f"b must have shape ({W.shape[0]},), got {tuple(b.shape)}")


@dataclass(frozen=True)
class Targets:
    """Loss = -sum(T log P) with sum_c T = rows: T is ``index`` (rows at the classes), ``dense``, or both added."""

    rows: Tensor
    index: Tensor | None  # (N,), in range
    index_mass: Tensor | None  # (N,)
    dense: Tensor | None  # (N, C) or broadcastable to it

    def subtract_from(self, weighted: Tensor) -> Tensor:
        """``weighted - T``, (N, C)."""
        if self.dense is not None:
            weighted = weighted - self.dense
        if self.index is None or self.index_mass is None:
            return weighted
        return weighted.scatter_add(1, self.index[:, None], -self.index_mass[:, None])


def _check_class_weight(class_weight: Tensor | None, classes: int, like: Tensor) -> Tensor | None:
    if class_weight is None:
        return None
    if class_weight.shape != (classes,) or not bool((class_weight >= 0).all()):
        raise LowtideValueError(
            f"class_weight must be {classes} numbers that are not negative, one for each class, "
            f"got shape {tuple(class_weight.shape)}"
        )
    return class_weight.detach().to(like.device, like.dtype)


def cross_entropy_targets(
    y: Tensor, X: Tensor, W: Tensor, class_weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> Targets:
    """Targets of ``torch.nn.functional.cross_entropy(X W' + b, y, class_weight, ..., reduction="mean")``."""
    n, classes = X.shape[0], W.shape[0]
    weight = _check_class_weight(class_weight, classes, X)
    if not 0.0 <= label_smoothing <= 1.0:
        raise LowtideValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if y.is_floating_point():
        if y.shape != (n, classes):
            raise LowtideValueError(f"soft targets y must have shape ({n}, {classes}), got {tuple(y.shape)}")
        soft = y.detach().to(X.device, X.dtype)
        soft = soft * (1 - label_smoothing) + label_smoothing / max(classes, 1)
        soft = (soft if weight is None else soft * weight) / max(n, 1)
        return Targets(soft.sum(1), None, None, soft)
    if y.shape != (n,):
        raise LowtideValueError(f"y must have shape ({n},), one class for each row, got {tuple(y.shape)}")
    counted = y != ignore_index
    index = torch.where(counted, y, torch.zeros_like(y)).long()
    if n and bool(((index < 0) | (index >= classes)).any()):
        raise LowtideValueError(
            f"y must hold classes in [0, {classes}) or ignore_index={ignore_index}, "
            f"got values from {int(y.min())} to {int(y.max())}"
        )
    mass = counted.to(X.dtype) if weight is None else counted.to(X.dtype) * weight[index]
    total = mass.sum()
    if n and not float(total) > 0:
        raise LowtideValueError(
            "y: no row counts (all are ignored or have class weight 0), so the mean loss does not exist"
        )
    total = total.clamp_min(torch.finfo(X.dtype).tiny)
    if label_smoothing == 0.0:
        return Targets(mass / total, index, mass / total, None)
    share = X.new_full((classes,), 1.0) if weight is None else weight
    share = share * (label_smoothing / classes)
    dense = (counted.to(X.dtype) / total)[:, None] * share
    index_mass = mass * ((1 - label_smoothing) / total)
    return Targets(index_mass + dense.sum(1), index, index_mass, dense)
