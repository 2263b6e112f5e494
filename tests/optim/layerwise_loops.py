# SPDX-License-Identifier: Apache-2.0
"""Loops that in_backward has to equal, and models for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.optim import Composed

GAP = 3


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return lt.optim.param_groups(model, rank=4, update_proj_gap=GAP, scale=1.0)


METHODS: dict[str, Callable[..., Composed]] = {
    "adamw": lambda m, **k: lt.optim.AdamW(m.parameters(), lr=1e-2, **k),
    "galore": lambda m, **k: lt.optim.GaLoreAdamW(groups(m), lr=1e-2, **k),
    "galore_both_sides": lambda m, **k: lt.optim.GaLoreAdamW(
        lt.optim.param_groups(m, rank=4, update_proj_gap=GAP, scale=1.0, proj_type="full"), lr=1e-2, **k
    ),
    "qgalore": lambda m, **k: lt.optim.QGaLoreAdamW(groups(m), lr=1e-2, **k),
    "grass": lambda m, **k: lt.optim.GRASSAdamW(groups(m), lr=1e-2, **k),
    "fira": lambda m, **k: lt.optim.FiraAdamW(groups(m), lr=1e-2, **k),
    "frugal": lambda m, **k: lt.optim.FRUGAL(groups(m), lr=1e-2, **k),
    "apollo": lambda m, **k: lt.optim.APOLLO(groups(m), lr=1e-2, **k),
    "gradnormlorp": lambda m, **k: lt.optim.GradNormLoRP(groups(m), lr=1e-2, **k),
    "ldadam": lambda m, **k: lt.optim.LDAdam(lt.optim.param_groups(m, rank=4), lr=1e-2, **k),
}
SUMS_PROJECTED = ("galore", "galore_both_sides", "qgalore", "grass")
#: What the two ranks of layerwise_rank.py run with.
PARALLEL: tuple[dict[str, Any], ...] = ({"accumulate": 2}, {"max_grad_norm": 0.1})
#: Two refreshes. Q-GaLore's are cold: at a third one a direction's sign may hang on the last bit.
STEPS = 2 * GAP


def make_model(seed: int = 0, quantized: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(33, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 17))
    if quantized:
        lt.quant.quantize_model_(model, weights="int8", group=32)
    return model


def batch(t: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 + t)
    x = torch.randn(8, 33, generator=g)
    return x, x[:, :17].sin()


def loss_of(model: nn.Module, t: int) -> Tensor:
    x, y = batch(t)
    return (model(x) - y).square().mean()


def plain(
    model: nn.Module, opt: Composed, steps: range, n: int = 1, limit: float | None = None
) -> list[float]:
    """The loop that in_backward has to equal; returns the norms."""
    norms = []
    for t in steps:
        for i in range(n):
            (loss_of(model, n * t + i) / n).backward()
        if limit is not None:
            norms.append(float(nn.utils.clip_grad_norm_(params_of(opt), limit)))
        opt.step()
        opt.zero_grad()
    return norms


def params_of(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the optimizer's order: a norm of norms depends on it in its last bit."""
    return [p for g in opt.param_groups for p in g["params"]]


def layerwise(model: nn.Module, handle: Any, steps: range, n: int = 1) -> list[float]:
    norms = []
    for t in steps:
        for i in range(n):
            handle.backward(loss_of(model, n * t + i) / n)
        handle.step()
        norms.append(handle.grad_norm)
        assert all(p.grad is None for p in model.parameters())
    return norms


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def far(a: nn.Module, b: nn.Module, start: nn.Module) -> float:
    """How far apart, relative to the way walked."""
    way = [(x - y, x - z) for x, y, z in zip(a.parameters(), b.parameters(), start.parameters(), strict=True)]
    return max(float((d.norm() / w.norm()).detach()) for d, w in way)
