# SPDX-License-Identifier: Apache-2.0
"""Accelerate: ``prepare`` and its checkpoints keep packed states and packed weights bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="pip install lowtide[demo]")

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


def make_model(weights: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(65, 96), nn.Tanh(), nn.Linear(96, 33))
    if weights is not None:
        lt.quant.quantize_model_(model, weights=weights, group=64, skip=())
    return model.to(dtype)


def ranked(model: nn.Module) -> list[dict[str, Any]]:
    return lt.optim.param_groups(model, rank=8, update_proj_gap=3, scale=1.0)


Kind = tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]
KINDS: dict[str, Kind] = {
    "8-bit moments": (make_model, lambda m: lt.optim.AdamW8bit(m.parameters(), lr=1e-2, min_8bit_size=0)),
    "8-bit moments, bf16 weights": (
        lambda: make_model(dtype=torch.bfloat16),
        lambda m: lt.optim.AdamW8bit(m.parameters(), lr=1e-2, min_8bit_size=0),
    ),
    "4-bit moments, bf16 weights": (
        lambda: make_model(dtype=torch.bfloat16),
        lambda m: lt.optim.AdamW4bit(m.parameters(), lr=1e-2),
    ),
    "INT8 weights, INT4 bases": (
        lambda: make_model("int8"),
        lambda m: lt.optim.QGaLoreAdamW(ranked(m), lr=1e-2),
    ),
    "INT4 weights": (
        lambda: make_model("int4"),
        lambda m: lt.optim.AdamW8bit(m.parameters(), lr=1e-2, min_8bit_size=0),
    ),
    "INT8 error feedback, bf16 weights": (
        lambda: make_model(dtype=torch.bfloat16),
        lambda m: lt.optim.DCTAdamW(lt.optim.param_groups(m, rank=8), lr=1e-2),
    ),
    "updates in backward": (
        make_model,
        lambda m: lt.optim.in_backward(lambda m: lt.optim.AdamW8bit(m.parameters(), min_8bit_size=0), m),
    ),
}


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 65, generator=torch.Generator().manual_seed(step))
    return x.to(dtype), x[:, :33].sin().to(dtype)


def run(accelerator: Accelerator, model: Any, optimizer: Any, steps: range) -> None:
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for step in steps:
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        accelerator.backward((model(x) - y).square().mean())
        optimizer.step()


def tensors(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state_dict."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {k: t for key, value in items for k, t in tensors(value, f"{prefix}.{key}").items()}


def held(model: Any, optimizer: Any) -> dict[str, Tensor]:
    found = {**tensors(model.state_dict(), "model"), **tensors(optimizer.state_dict(), "optimizer")}
    return {name: t.clone() for name, t in found.items()}


def check_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert {k: t.dtype for k, t in got.items()} == {k: t.dtype for k, t in want.items()}
    assert [k for k in want if not torch.equal(got[k], want[k])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_resume_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    make, optimize = KINDS[kind]

    def prepared() -> tuple[Accelerator, Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator, model = Accelerator(cpu=True), make()
        return (accelerator, *accelerator.prepare(model, optimize(model)))

    accelerator, model, optimizer = prepared()
    run(accelerator, model, optimizer, range(4))
    accelerator.save_state(str(tmp_path / "state"))
    run(accelerator, model, optimizer, range(4, 7))
    want = held(model, optimizer)
    assert any(t.dtype in (torch.uint8, torch.int8) for t in want.values())

    accelerator, model, optimizer = prepared()
    accelerator.load_state(str(tmp_path / "state"))
    run(accelerator, model, optimizer, range(4, 7))
    check_same(held(model, optimizer), want)


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_leaves_the_states_as_they_are(kind: str) -> None:
    make, optimize = KINDS[kind]
    accelerator, model = Accelerator(cpu=True), make()
    optimizer = optimize(model)
    run(accelerator, model, optimizer, range(2))
    before = held(model, optimizer)
    check_same(held(*accelerator.prepare(model, optimizer)), before)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulation_and_clipping_equal_a_plain_loop(weights: str | None, precision: str) -> None:
    def optimizer_of(model: nn.Module) -> Any:
        return lt.optim.AdamW8bit(model.parameters(), lr=1e-2, min_8bit_size=0)

    plain = make_model(weights)
    optimizer = optimizer_of(plain)
    norms = []
    for step in range(4):
        x, y = batch(step, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = plain(x)
        ((out.float() - y).square().mean() / 2).backward()
        if step % 2:
            norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.05))
            optimizer.step()
            optimizer.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    model = make_model(weights)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    seen = []
    for step in range(4):
        x, y = batch(step, torch.float32)
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            if accelerator.sync_gradients:
                seen.append(accelerator.clip_grad_norm_(model.parameters(), 0.05))
            optimizer.step()
            optimizer.zero_grad()
    assert [float(n) for n in seen] == [float(n) for n in norms]
    assert min(seen) > 0.05
    check_same(tensors(accelerator.unwrap_model(model).state_dict()), tensors(plain.state_dict()))


def test_in_backward_accumulates_and_clips_by_itself() -> None:
    """Accelerate divides the loss and calls ``step`` once in so many passes; the handle makes a step of as many."""

    def factory(m: nn.Module) -> Any:
        return lt.optim.AdamW8bit(m.parameters(), lr=1e-2, min_8bit_size=0)

    results = []
    for inside in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=2), make_model()
        optimizer: Any = factory(model)
        if inside:
            steps = accelerator.gradient_accumulation_steps
            optimizer = lt.optim.in_backward(optimizer, model, accumulate=steps, max_grad_norm=0.05)
        model, optimizer = accelerator.prepare(model, optimizer)
        for step in range(4):
            x, y = batch(step, torch.float32)
            with accelerator.accumulate(model):
                accelerator.backward((model(x) - y).square().mean())
                if accelerator.sync_gradients and not inside:
                    accelerator.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
        results.append(held(model, optimizer))
    check_same(*results)


ZEROTH: dict[str, Callable[..., Any]] = {
    "spsa": lambda m: lt.spsa.SPSA(m.named_parameters(), lr=1e-3, module=m),
    "spsa, packed weights": lambda m: lt.spsa.SPSA(m.named_parameters(), lr=1e-3, module=m, packed=True),
    "hizoo": lambda m: lt.spsa.HiZOO(m.named_parameters(), lr=1e-3, module=m),
}


@pytest.mark.parametrize("kind", ZEROTH)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_zeroth_order_steps_by_a_closure(kind: str, precision: str, tmp_path: Path) -> None:
    def prepared() -> tuple[Accelerator, Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model = make_model("int8" if "packed" in kind else None)
        return (accelerator, *accelerator.prepare(model, ZEROTH[kind](model)))

    def train(model: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            x, y = batch(step, torch.float32)
            optimizer.step(lambda x=x, y=y: (model(x).float() - y).square().mean())

    accelerator, model, optimizer = prepared()
    start = held(model, optimizer)
    train(model, optimizer, range(3))
    accelerator.save_state(str(tmp_path / "state"))
    train(model, optimizer, range(3, 6))
    want = held(model, optimizer)
    assert any(not torch.equal(start[k], want[k]) for k in start)

    accelerator, model, optimizer = prepared()
    accelerator.load_state(str(tmp_path / "state"))
    assert optimizer.optimizer.t == 3
    train(model, optimizer, range(3, 6))
    check_same(held(model, optimizer), want)
