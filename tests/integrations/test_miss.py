# SPDX-License-Identifier: Apache-2.0
"""MiSS, formerly Bone (arXiv 2409.15371): PEFT's layers against the formulas, which is why there are none of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="the adapters are PEFT's (pip install lowtide[peft])")
OUT, RANK = 12, 4


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def weight(W: Tensor, D: Tensor, kind: bool | str) -> Tensor:
    """The adapted weight, block by block, as in the paper's section 3."""
    W = W.clone()
    out, width = W.shape
    if kind == "bat":
        for i in range(out // RANK):
            for g in range(width // RANK):
                block = W[i * RANK : (i + 1) * RANK, g * RANK : (g + 1) * RANK]
                block += block @ D[i] + D[i]
        return W
    for o in range(out):
        for column in range(width):
            W[o, column] += D[column % RANK, o % D.shape[1]]
    return W


@pytest.mark.parametrize(
    ("kind", "width"), [(True, 16), (True, 18), (True, 4), ("mini", 16), ("mini", 19), ("bat", 16)]
)
def test_pefts_layer_is_the_formula(kind: bool | str, width: int) -> None:
    config: dict[str, Any] = {"r": RANK, "init_weights": kind, "target_modules": ["linear"], "mini_r": 3}
    base = Model(width)
    W = base.linear.weight.detach().clone()
    x = torch.randn(5, 2, width)
    before = base(x).detach()
    model = peft.get_peft_model(base, peft.MissConfig(**config))
    assert torch.equal(model(x), before)  # D starts at zero
    D = model.base_model.model.linear.miss_block.default
    assert D.shape == {True: (RANK, OUT), "mini": (RANK, 3), "bat": (OUT // RANK, RANK, RANK)}[kind]
    with torch.no_grad():
        D.copy_(torch.randn_like(D))
    want = nn.functional.linear(x, weight(W, D.detach(), kind), base.linear.bias)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged.linear.weight, weight(W, D.detach(), kind), rtol=1e-5, atol=1e-5)
    model(x).square().sum().backward()
    assert D.grad is not None
    assert float(D.grad.abs().min()) > 0
