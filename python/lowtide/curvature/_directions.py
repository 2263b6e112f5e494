# SPDX-License-Identifier: Apache-2.0
"""Directions in the space of parameters along which a loss is drawn: random, and in which norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import lowtide
from lowtide.curvature._layout import Layout
from lowtide.errors import LowtideValueError

#: Keeps an all-zero direction at zero (Li et al.'s code uses the same number).
_EPS = 1e-10


def gaussian(layout: Layout, seed: int, k: int) -> Tensor:
    """Direction ``k`` of ``seed``, flat ``(n,)``: standard normal, tensor t from the stream of ``(seed, step k, param t)``."""
    flat = layout.zeros()
    for t, part in enumerate(torch.split(flat, list(layout.sizes))):
        part.copy_(lowtide.random.sample(part.shape, seed=seed, step=k, param=t, like="torch"))
    return flat


def rescale_(layout: Layout, direction: Tensor, tensors: Sequence[Tensor], norm: str, vectors: str) -> Tensor:
    """Give a random direction the lengths that the parameters have, in place (Li et al. 2018, §4).

    Args:
        layout: of ``direction``.
        direction: flat ``(n,)``.
        tensors: the parameters.
        norm: ``"filter"``: each slice ``d[i]`` of a tensor with two or more dimensions gets the norm of ``w[i]``;
            ``"layer"``: each tensor; ``"model"``: the whole vector.
        vectors: what becomes of tensors with fewer than two dimensions (biases, scales of norms): ``"zero"``,
            ``"copy"`` (the direction is the parameter itself) or ``"scale"`` (like the others, element by element
            under ``"filter"``). Ignored by ``"model"``.
    """
    if norm == "model":
        squares = sum(float(w.double().square().sum()) for w in tensors)
        return direction.mul_(squares**0.5 / (float(direction.double().norm()) + _EPS))
    for d, w in zip(layout.views(direction), tensors, strict=True):
        weight = w.to(d.dtype)
        if not d.numel() or (d.dim() < 2 and vectors == "zero"):
            d.zero_()
        elif d.dim() < 2 and vectors == "copy":
            d.copy_(weight)
        elif norm == "layer":
            d.mul_(weight.norm() / (d.norm() + _EPS))
        else:
            rows = _slices(d)
            rows.mul_((_slices(weight).norm(dim=1) / (rows.norm(dim=1) + _EPS))[:, None])
    return direction


def _slices(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1) if x.dim() else x.reshape(1, 1)


def orthogonal_(direction: Tensor, to: Tensor) -> Tensor:
    """Take the part along ``to`` out of a direction and give it length 1, in place."""
    length = to.double().norm()
    unit = to.double() / length if float(length) else to.double()
    rest = direction.double() - (direction.double() @ unit) * unit
    size = float(rest.norm())
    if not size:
        raise LowtideValueError(
            "axes: the two directions are parallel; give another seed or other directions"
        )
    return direction.copy_(rest / size)
