# SPDX-License-Identifier: Apache-2.0
"""What the optimizer checks share: parameters, gradients, runs and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

#: ``make(params, **options)``: params as torch.optim takes them (tensors or groups), options ``lr`` and ``maximize``.
Factory: TypeAlias = "Callable[..., torch.optim.Optimizer]"

SHAPES = ((24, 40), (40, 24), (16, 16), (33,), (1, 7), (7, 1), (), (4, 3, 2), (300,))


def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


def gradients(params: Iterable[nn.Parameter], t: int, sign: float = 1.0) -> None:
    """A gradient for each parameter, a pure function of its place and ``t``."""
    for i, p in enumerate(params):
        g = torch.Generator().manual_seed(1000 * t + i)
        p.grad = (sign * torch.randn(p.shape, generator=g)).to(p.dtype)


def values(params: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def moved(before: list[Tensor], params: Iterable[nn.Parameter]) -> list[bool]:
    return [not torch.equal(b, p.detach()) for b, p in zip(before, params, strict=True)]


def run(opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        gradients(params, t)
        opt.step()


def finite(params: Iterable[nn.Parameter]) -> bool:
    return all(bool(p.detach().isfinite().all()) for p in params)
