# SPDX-License-Identifier: Apache-2.0
"""Whole optimizers: every op call of their steps runs on both sides, on the states that the CPU's steps made."""

from __future__ import annotations

import pytest
import torch
from emulated import Twins
from torch import nn

import lowtide as lt

ELEMENTWISE = {
    "AdamW8bit": {"fused_step_"},
    "AdamW4bit": {"fused_step_"},
    "Lion8bit": {"fused_step_"},
    "Adafactor": {"adafactor_", "row_dots", "apply_update_"},
    "AdamMini": {"block_adam_", "fused_direction_", "scale_rows_"},
    "AdamP": {"fused_direction_", "row_dots", "apply_update_"},
}
LOW_RANK = {
    "GaLoreAdamW8bit": {"rsvd", "matmul", "fused_direction_", "apply_update_", "channel_energy"},
    "QGaLoreAdamW": {"quantize_group_list_", "dequantize_group_list_", "matmul"},
    "APOLLO": {"random_sample", "matmul", "combine_"},
    "FiraAdamW": {"channel_energy", "combine_"},
    "DCTAdamW": {"dct_power", "dct_forward", "dct_inverse"},
    "SubTrack": {"channel_energy", "matmul", "combine_"},
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *LOW_RANK])
def test_steps(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 40), nn.Linear(40, 7)]
    low: dict[str, int] = {"rank": 4, "update_proj_gap": 2} if name in LOW_RANK else {}
    groups = [
        {"params": [layer.weight for layer in layers], **low},
        {"params": [layer.bias for layer in layers]},
    ]
    optimizer = getattr(lt.optim, name)(groups, lr=1e-2)
    x = torch.randn(16, 24)
    with Twins() as twins:
        for _ in range(3):
            optimizer.zero_grad()
            layers[1](torch.tanh(layers[0](x))).square().mean().backward()
            optimizer.step()
    assert {**ELEMENTWISE, **LOW_RANK}[name] <= set(twins.calls), twins.calls
