# SPDX-License-Identifier: Apache-2.0
"""Accelerate: ``prepare`` and its checkpoints keep packed states and packed weights bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import lowtide as lt


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def made(method: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(65, 96), nn.Tanh(), nn.Linear(96, 33))
    if method == "qgalore":
        lt.quant.quantize_model_(model, weights="int8", group=64, skip=())
        groups = lt.optim.param_groups(model, rank=8, update_proj_gap=3, scale=1.0)
        return model, lt.optim.QGaLoreAdamW(groups, lr=1e-2)
    return model, lt.optim.AdamW8bit(model.parameters(), lr=1e-2, min_8bit_size=0)


def run(accelerator: Accelerator, model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 65, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        accelerator.backward((model(x) - x[:, :33].sin()).square().mean())
        optimizer.step()


def packed(optimizer: Any) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("method", ["adamw8bit", "qgalore"])
def test_resume_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*made(method))
    run(accelerator, model, optimizer, range(4))
    accelerator.save_state(str(tmp_path / "state"))
    run(accelerator, model, optimizer, range(4, 9))
    want, want_state = model.state_dict(), packed(optimizer)
    assert any(t.dtype == torch.uint8 for t in want_state.values())

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*made(method))
    accelerator.load_state(str(tmp_path / "state"))
    run(accelerator, model, optimizer, range(4, 9))
    got, got_state = model.state_dict(), packed(optimizer)
    assert got.keys() == want.keys()
    assert got_state.keys() == want_state.keys()
    for name, tensor in [*got.items(), *got_state.items()]:
        assert torch.equal(tensor, want[name] if name in want else want_state[name]), name


def test_prepare_leaves_the_states_as_they_are() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = made("adamw8bit")
    run(accelerator, model, optimizer, range(2))
    before = packed(optimizer)
    model, wrapped = accelerator.prepare(model, optimizer)
    after = packed(wrapped)
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    assert all(torch.equal(after[k], before[k]) for k in before)
