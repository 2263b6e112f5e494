# SPDX-License-Identifier: Apache-2.0
"""torch.compile: steps beside compiled models, within compiled functions, and packed layers in graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import lowtide as lt
from lowtide._compile import hooks_seen

BACKEND = (
    "aot_eager"  # the graphs of inductor, run by torch's own kernels: the same bits, in a tenth of the time
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(weights: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(65, 96), nn.Tanh(), nn.Linear(96, 33))
    if weights is not None:
        lt.quant.quantize_model_(model, weights=weights, group=64, skip=())
    return model


def batch(step: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 65, generator=torch.Generator().manual_seed(step))
    return x, x[:, :33].sin()


OPTIMIZERS: dict[str, tuple[str | None, Callable[[nn.Module], Any]]] = {
    "AdamW8bit": (None, lambda m: lt.optim.AdamW8bit(m.parameters(), lr=1e-2, min_8bit_size=0)),
    "QGaLoreAdamW, INT8 weights": (
        "int8",
        lambda m: lt.optim.QGaLoreAdamW(lt.optim.param_groups(m, rank=8, update_proj_gap=2), lr=1e-2),
    ),
    "in_backward": (
        None,
        lambda m: lt.optim.in_backward(lambda m: lt.optim.AdamW8bit(m.parameters(), min_8bit_size=0), m),
    ),
}


def train(kind: str, wrap: str, backend: Any, steps: int = 3) -> list[Tensor]:
    """The model's tensors after some steps; ``wrap``: what is compiled."""
    weights, optimize = OPTIMIZERS[kind]
    model = make(weights)
    optimizer = optimize(model)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().mean()

    measured = torch.compile(loss, backend=backend) if wrap == "loss" else loss

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        measured(x, y).backward()
        optimizer.step()

    taken = torch.compile(step, backend=backend) if wrap == "step" else step
    for i in range(steps):
        taken(*batch(i))
    return [t.clone() for t in model.state_dict().values()]


@pytest.mark.parametrize("wrap", ["loss", "step"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_compiled_training_has_the_bits_of_eager(kind: str, wrap: str) -> None:
    torch._dynamo.utils.counters.clear()
    got, want = train(kind, wrap, BACKEND), train(kind, "", None)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["loss", "step"])
@pytest.mark.parametrize("kind", ["AdamW8bit", "QGaLoreAdamW, INT8 weights"])
def test_inductor_trains_as_eager(kind: str, wrap: str) -> None:
    """Inductor's kernels round otherwise than torch's, and Adam enlarges what is left of gradients near zero: on the whole the
    weights move alike."""
    got, want = train(kind, wrap, "inductor"), train(kind, "", None)
    start = make(OPTIMIZERS[kind][0]).state_dict().values()
    pairs = [p for p in zip(got, want, start, strict=True) if p[0].is_floating_point()]
    apart = sum(float((a - b).square().sum()) for a, b, _ in pairs)
    moved = sum(float((b - c).square().sum()) for _, b, c in pairs)
    assert moved > 0
    assert apart < 1e-6 * moved


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_graph_enters_a_step(kind: str) -> None:
    weights, optimize = OPTIMIZERS[kind]
    model = make(weights)
    optimizer = optimize(model)
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    assert torch._dynamo.explain(optimizer.step)().graph_count == 0
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"update|step"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()


@pytest.mark.parametrize("probe", ["scratch", "fused", "snapshot"])
def test_probes_are_seen_through_a_compiled_loss(probe: str) -> None:
    """Compiled before there were hooks, and when the probe knows the model already: hooks that come later are not in the graph."""
    results = []
    for compiled in (False, True):
        model = make()

        def loss(x: Tensor, y: Tensor, model: nn.Module = model) -> Tensor:
            return (model(x) - y).square().mean()

        opt = lt.spsa.SPSA(model.named_parameters(), lr=1e-2, module=model, probe=probe)
        opt.step(lambda loss=loss: loss(*batch(0)))
        counter = CompileCounterWithBackend(BACKEND)
        measured = torch.compile(loss, backend=counter) if compiled else loss
        with torch.no_grad():
            plain = measured(*batch(1))
        if probe != "fused":
            with opt.probe():
                assert measured(*batch(1)) != plain
        for i in range(1, 4):
            opt.step(lambda i=i, measured=measured: measured(*batch(i)))
        # Snapshots write to the weights: the graph stays whole. Else probes run uncompiled.
        if compiled:
            assert counter.frame_count == 1
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_probes_that_overlap_leave_compilation_as_it_was() -> None:
    """Two optimizers in two threads: the first to begin may be the first to end."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda x: x + 1, backend=counter)
    first, second = hooks_seen(), hooks_seen()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(torch.ones(3))
    assert counter.frame_count == 0
    second.__exit__(None, None, None)
    compiled(torch.ones(3))
    assert counter.frame_count == 1


def test_a_compiled_function_may_take_a_zeroth_order_step() -> None:
    results = []
    for compiled in (False, True):
        model = make()
        opt = lt.spsa.SPSA(model.named_parameters(), lr=1e-2, module=model)

        def step(x: Tensor, y: Tensor, model: nn.Module = model, opt: Any = opt) -> Any:
            return opt.step(lambda: (model(x) - y).square().mean())

        taken = torch.compile(step, backend=BACKEND) if compiled else step
        losses = [taken(*batch(i)) for i in range(3)]
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("weights", ["int8", "int4", "nf4"])
def test_packed_layers_are_one_graph_in_inference(weights: str) -> None:
    model = make(weights)
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    with torch.no_grad():
        for rows in (1, 16):
            x, _ = batch(0, rows)
            assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_frozen_packed_layers_are_one_graph_in_training(weights: str) -> None:
    """As under adapters: what comes before and behind them trains."""
    results = []
    for compiled in (False, True):
        base = make(weights).requires_grad_(False)
        torch.manual_seed(1)
        before = nn.Linear(65, 65)

        def loss(x: Tensor, y: Tensor, base: nn.Module = base, before: nn.Module = before) -> Tensor:
            return (base(before(x)) - y).square().mean()

        counter = CompileCounterWithBackend(BACKEND)
        measured = torch.compile(loss, backend=counter, fullgraph=True) if compiled else loss
        for rows in (16, 16, 1):
            measured(*batch(0, rows)).backward()
        if compiled:
            assert counter.frame_count == 2  # one for each number of rows
        results.append([before.weight.grad, before.bias.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_packed_layers_compile_while_a_gradient_waits() -> None:
    """The gradient of codes has another dtype than they have, which a graph's fake tensors must not see."""
    model, other = make("int8"), make("int8")
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    compiled = torch.compile(model, backend=BACKEND)
    (compiled(x) - y).square().mean().backward()
    for _ in range(2):
        (other(x) - y).square().mean().backward()
    assert torch.equal(model[0].weight.grad, other[0].weight.grad)
    assert torch.equal(model[0].bias.grad, other[0].bias.grad)


def test_curvature_of_a_compiled_model() -> None:
    """Compiled functions have one derivative: differences work, exact products say what does."""
    model = make()
    compiled = torch.compile(model, backend=BACKEND)
    x, y = batch(0)
    want = lt.curvature.HessianOperator(model, None, [(x, y)], "mse", method="double")
    v = torch.randn(want.n, generator=torch.Generator().manual_seed(2))
    compiled(x)
    got = lt.curvature.HessianOperator(compiled, None, [(x, y)], "mse")
    torch.testing.assert_close(got @ v, want @ v, rtol=5e-3, atol=5e-4)
    with pytest.raises(lt.LowtideError, match="method='fd'"):
        _ = lt.curvature.HessianOperator(compiled, None, [(x, y)], "mse", method="double") @ v


def test_a_memory_learns_from_a_compiled_model() -> None:
    """Compiled before the memory's hooks: they would not be called."""
    model = make()
    compiled = torch.compile(model, backend="eager")
    x, _ = batch(0, 8)
    with torch.no_grad():
        compiled(x)
    learned = lt.continual.GPM(compiled).learn([x])
    assert list(learned.values()) == list(lt.continual.GPM(model).learn([x]).values())
    assert min(learned.values()) > 0
