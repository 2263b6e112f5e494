# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._losses import Criterion, split, with_target
from lowtide.errors import LowtideValueError


class CrossEntropy(Criterion):
    """Softmax cross-entropy with class weights, ``ignore_index``, label smoothing, class indices or probabilities.

    Outputs are ``(N, C)`` or ``(N, C, d1, ...)``. Its output Hessian is ``w_n (p u - p (p . u))`` in each row
    (research report, section 1.8): smoothing and soft targets do not change it.
    """

    convex = True

    def __init__(self, module: nn.CrossEntropyLoss | None = None) -> None:
        super().__init__(module or nn.CrossEntropyLoss())

    def target(self, batch: Any) -> Tensor:
        """Class indices, or probabilities in the outputs' shape."""
        target: Tensor = split(batch)[1]
        return target

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.value`."""
        value: Tensor = self.module(outputs, self.target(batch))
        return value

    def count(self, batch: Any) -> float:
        """Targets that count, each by its class weight: what torch's mean divides by."""
        target, weight = self.target(batch), self.module.weight
        if target.is_floating_point():
            return float(target.numel() // target.shape[1])
        valid = target[target.ne(self.module.ignore_index)]
        return float(valid.numel() if weight is None else weight.double().to(valid.device)[valid].sum())

    def _weights(self, outputs: Tensor, target: Tensor, smoothed: bool) -> Tensor:
        """Each row's factor, with 1 in the place of classes; with ``smoothed`` that of all terms of the loss."""
        c, weight, eps = (
            outputs.shape[1],
            self.module.weight,
            self.module.label_smoothing if smoothed else 0.0,
        )
        if target.is_floating_point():
            rows = outputs.numel() // c
            y = target * (1 - eps) + eps / c
            shape = [1, c, *[1] * (outputs.dim() - 2)]
            factor = y.sum(1) if weight is None else (y * weight.to(y.dtype).view(shape)).sum(1)
            return (factor / rows).unsqueeze(1)
        valid = target.ne(self.module.ignore_index)
        own = valid.to(outputs.dtype)
        total = own.sum()
        if weight is not None:
            w = weight.to(outputs.dtype)
            own = torch.where(valid, w[target.clamp_min(0)], 0.0)
            total = own.sum()
            own = (1 - eps) * own + torch.where(valid, eps * w.mean(), 0.0)
        return (own / total).unsqueeze(1)

    def output_hessian(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        """``w_n (p u - p (p . u))``."""
        p = torch.softmax(outputs, 1)
        pu = p * u
        return (pu - p * pu.sum(1, keepdim=True)) * self._weights(outputs, self.target(batch), True)

    def curvature_root(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.curvature_root`."""
        return self._weights(outputs, self.target(batch), True).sqrt()

    def _one_hot(self, outputs: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            return target
        return torch.zeros_like(outputs).scatter_(1, target.clamp_min(0).unsqueeze(1), 1.0)

    def nll_gradient(self, outputs: Tensor, batch: Any) -> Tensor:
        """``p - y``."""
        return torch.softmax(outputs, 1) - self._one_hot(outputs, self.target(batch))

    def row_gradients(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Of class weights, those of the rows' classes are the rows' weights."""
        target, eps, weight = self.target(batch), self.module.label_smoothing, self.module.weight
        if weight is not None and (eps or target.is_floating_point()):
            raise LowtideValueError(
                "loss_fn: class weights with smoothed or soft targets weigh the terms of a row apart, so an empirical Fisher "
                "has no weight for the row; leave out one of the two"
            )
        y = self._one_hot(outputs, target) * (1 - eps) + eps / outputs.shape[1]
        return torch.softmax(outputs, 1) - y, self._weights(outputs, target, False)

    def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Classes drawn from ``p``; ignored targets stay ignored."""
        target = self.target(batch)
        return with_target(batch, self._draw(outputs, target, generator))

    def _draw(self, outputs: Tensor, target: Tensor, generator: torch.Generator | None) -> Tensor:
        p = torch.softmax(outputs.detach(), 1).movedim(1, -1)
        rows = p.reshape(-1, p.shape[-1])
        if generator is not None and generator.device != rows.device:
            rows = rows.to(generator.device)
        drawn = torch.multinomial(rows, 1, generator=generator).view(p.shape[:-1]).to(target.device)
        if target.is_floating_point():
            return drawn
        ignored = target.eq(self.module.ignore_index)
        return torch.where(ignored, target, drawn)

    def row_sum(self, products: Tensor) -> Tensor:
        """Sum over classes: every place of an output with further dimensions is a row."""
        return products.sum(1, keepdim=True)
