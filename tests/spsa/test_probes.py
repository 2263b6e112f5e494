# SPDX-License-Identifier: Apache-2.0
"""Probes: the model is evaluated at w + eps z, and the masters keep every bit."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

import lowtide as lt
from lowtide.spsa import SPSA, _probe_scratch, _tensors

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 0.125


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


class Nested(nn.Module):
    """Parameters of its own beside children, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(8))
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.outer(self.inner(x + self.shift))) * self.shift


class Returned(nn.Module):
    """A module that returns its own weight, as position embeddings do."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8))

        def forward(self) -> tuple[Tensor, int]:
            return self.weight[:3], 3

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = Returned.Table(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        table, n = self.table()
        return self.linear(x[:n]) + table


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2.0


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    register_parametrization(model[0], "weight", Double())
    parametrizations.weight_norm(model[1])
    return model


def checkpointed() -> nn.Module:
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False)

    return Model()


X = torch.linspace(-1, 1, 24).reshape(3, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), X),
    "tied": (Tied, torch.arange(10).reshape(2, 5)),
    "nested": (Nested, X),
    "returned": (Returned, X),
    "attention": (Attention, X[None]),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), X[None]),
    "parametrized": (parametrized, X),
    "checkpointed": (checkpointed, X),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(3)
    factory, x = MODELS[name]
    model = factory().to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    return model, lambda m: m(x)


def bits(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone().view(torch.uint8) for p in model.parameters()]


def perturbed(model: nn.Module, opt: SPSA, sign: float) -> nn.Module:
    """A copy of the model with every parameter at w + eps z, by plain torch."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for e, p in zip(opt.manifest, twin.parameters(), strict=True):
            z = lt.random.sample(
                e.shape, seed=opt.seed, step=opt.t, param=e.param, dist="rademacher", like="torch"
            )
            p.copy_(p.float() + z * torch.tensor(sign * EPS))
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("probe", ["scratch", "snapshot"])
@pytest.mark.parametrize("name", MODELS)
def test_probes_run_at_the_perturbed_weights_and_leave_the_masters(
    name: str, probe: str, dtype: torch.dtype
) -> None:
    model, run = make(name, dtype)
    before, storage = bits(model), [p.data_ptr() for p in model.parameters()]
    opt = SPSA(model.named_parameters(), eps=EPS, seed=5, probe=probe, module=model)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(run(model))
        return seen[-1].float().square().mean()

    opt.masters.apply = lambda updates: None  # type: ignore[method-assign]
    with torch.no_grad():
        want = [run(perturbed(model, opt, s)) for s in (1.0, -1.0)]
        opt.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(seen[-2:], want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    assert storage == [p.data_ptr() for p in model.parameters()]


def test_only_the_rows_that_are_looked_up_are_perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(500, 6), nn.Linear(6, 500, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    model, x = Model(), torch.tensor([[3, 499, 3, 0, 77]])
    opt = SPSA(model.named_parameters(), eps=EPS, seed=5, module=model)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(model(x))
        return seen[-1].square().mean()

    opt.masters.apply = lambda updates: None  # type: ignore[method-assign]
    opt.step(closure)
    rows: list[list[int]] = []
    perturb_rows = opt.masters.perturb_rows
    monkeypatch.setattr(
        opt.masters, "perturb_rows", lambda *a: (rows.append([r for _, r in a[0]]), perturb_rows(*a))[1]
    )
    with torch.no_grad():
        want = [perturbed(model, opt, s)(x) for s in (1.0, -1.0)]
    opt.step(closure)
    assert rows == [[0, 3, 77, 499]] * 2
    assert all(torch.equal(a, b) for a, b in zip(seen[-2:], want, strict=True))
    handle = model.embed.register_forward_hook(lambda *_: None)  # it could read the whole table
    opt.step(closure)
    handle.remove()
    assert len(rows) == 2


class WideHead(nn.Module):
    """An embedding whose table is a wide head's weight too."""

    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(1000, 24), nn.Linear(24, 1000, bias=bias)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_head_is_perturbed_tile_by_tile(
    bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = WideHead(bias, dtype), torch.tensor([[3, 999], [3, 77], [0, 500]])
    tile = 64 * 24 * model.head.weight.element_size()
    monkeypatch.setattr(_probe_scratch, "_TILE", tile)
    opt = SPSA(model.named_parameters(), eps=EPS, seed=5, module=model)
    opt.masters.apply = lambda updates: None  # type: ignore[method-assign]
    seen: list[Tensor] = []
    firsts: list[int] = []
    perturb_rows = opt.masters.perturb_rows
    monkeypatch.setattr(
        opt.masters,
        "perturb_rows",
        lambda parts, *a: (firsts.extend(r for o, r in parts if o.dim() == 2), perturb_rows(parts, *a))[1],
    )

    def closure() -> Tensor:
        seen.append(model(x))
        return seen[-1].float().square().mean()

    before = bits(model)
    for _ in range(2):  # the first learns the structure
        with torch.no_grad():
            want = [perturbed(model, opt, s)(x) for s in (1.0, -1.0)]
        seen.clear()
        firsts.clear()
        opt.step(closure)
        assert firsts == [*range(0, 1000, 64)] * 2
        for got, expected in zip(seen, want, strict=True):
            tolerance = (
                2**-8 if dtype == torch.bfloat16 else 2e-6
            )  # a product of fewer columns may add in another order
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    assert "forward" not in model.head.__dict__
    assert opt.state_bytes()["probe"] <= tile + 4096


@pytest.mark.parametrize("why", ["hook", "grad", "autocast", "replaced forward"])
def test_a_wide_head_that_others_see_is_perturbed_whole(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = WideHead(True, torch.float32), torch.tensor([[3, 999]])
    monkeypatch.setattr(_probe_scratch, "_TILE", 64 * 24 * 4)
    if why == "hook":
        model.head.register_forward_hook(lambda *_: None)
    if why == "replaced forward":
        model.head.forward = functools.partial(nn.Linear.forward, model.head)  # type: ignore[method-assign]
    opt = SPSA(model.named_parameters(), eps=EPS, seed=5, module=model)
    opt.masters.apply = lambda updates: None  # type: ignore[method-assign]
    seen: list[Tensor] = []

    def closure() -> Tensor:
        with torch.set_grad_enabled(why == "grad"), torch.autocast("cpu", enabled=why == "autocast"):
            seen.append(model(x).detach())
        return seen[-1].float().square().mean()

    with torch.no_grad(), torch.autocast("cpu", enabled=why == "autocast"):
        want = [perturbed(model, opt, s)(x) for s in (1.0, -1.0)]
    opt.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(seen, want, strict=True))
    assert ("forward" in model.head.__dict__) == (why == "replaced forward")


def test_scratch_takes_the_memory_of_the_largest_module() -> None:
    model, run = make("mlp")
    opt = SPSA(model.named_parameters(), eps=EPS, module=model)
    for _ in range(3):
        opt.step(lambda: run(model).square().mean())
    largest = max(sum(p.nbytes for p in m.parameters()) for m in model)
    assert largest <= opt.state_bytes()["probe"] <= largest + 2 * 64
    assert opt.state_bytes()["masters"] == 0


def test_the_first_step_holds_no_more_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns which modules read what, and has no buffer yet: what it makes must go as modules end."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    layer = sum(p.nbytes for p in model[0].parameters())
    opt = SPSA(model.named_parameters(), eps=EPS, module=model)
    taken: list[weakref.ref[Tensor]] = []
    most = 0
    allocate = torch.empty_like

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal most
        out = allocate(*args, **kwargs)
        taken.append(weakref.ref(out))
        most = max(most, sum(t.nbytes for r in taken if (t := r()) is not None))
        return out

    monkeypatch.setattr(_probe_scratch.torch, "empty_like", counted)
    opt.step(lambda: model(torch.ones(2, 64)).square().mean())
    assert len(taken) >= 16
    assert most <= 2 * layer


def test_no_magnitudes_are_computed_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision those of an embedding took the memory of a model."""
    model, run = make("mlp")

    def never(w: Tensor) -> float:
        raise AssertionError("a root mean square was computed")

    monkeypatch.setattr(_tensors, "_rms", never)
    SPSA(model.named_parameters(), eps=EPS, module=model).step(lambda: run(model).square().mean())
    with pytest.raises(AssertionError, match="root mean square"):
        SPSA([{"params": list(model.named_parameters()), "scale": "rms"}], eps=EPS, module=model)


@pytest.mark.parametrize("probe", ["scratch", "snapshot"])
def test_an_exception_in_the_closure_changes_nothing(probe: str) -> None:
    model, run = make("nested")
    before, storage = bits(model), [p.data_ptr() for p in model.parameters()]
    opt = SPSA(model.named_parameters(), eps=EPS, probe=probe, module=model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = run(model).square().mean()
        if calls == 3:
            raise KeyError("data ran out")
        return loss

    opt.masters.apply = lambda updates: None  # type: ignore[method-assign]
    opt.step(closure)

    def failing(module: nn.Module, args: Any) -> None:
        raise KeyError("in the middle of the forward")

    for hook in (False, True):
        handle = model.outer.register_forward_pre_hook(failing) if hook else None
        with pytest.raises(KeyError):
            opt.step(closure)
        if handle:
            handle.remove()
        assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
        assert storage == [p.data_ptr() for p in model.parameters()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert opt.t == 1
    opt.step(closure)


def test_a_weight_read_outside_of_its_module_is_named() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x) @ self.embed.weight.T

    model = Model()
    opt = SPSA(model.named_parameters(), eps=EPS, module=model)
    with pytest.raises(lt.LowtideRuntimeError, match=r"embed\.weight is read.*snapshot"):
        opt.step(lambda: model(torch.arange(3)).square().mean())
    snapshot = SPSA(model.named_parameters(), eps=EPS, module=model, probe="snapshot")
    snapshot.step(lambda: model(torch.arange(3)).square().mean())


def test_a_module_that_never_ran_is_named() -> None:
    model, run = make("mlp")
    other = copy.deepcopy(model)
    opt = SPSA(model.named_parameters(), eps=EPS, module=model)
    with pytest.raises(lt.LowtideRuntimeError, match=r"0\.weight, 0\.bias, 2\.weight and 1 more.*module="):
        opt.step(lambda: run(other).square().mean())
    with pytest.raises(lt.LowtideValueError, match="module=model"):
        SPSA(model.named_parameters(), eps=EPS)


def test_manual_probe() -> None:
    model, run = make("mlp")
    opt = SPSA(model.named_parameters(), eps=EPS, seed=5, module=model)
    want = run(perturbed(model, opt, -2.0))
    with opt.probe(sign=-2.0):
        assert torch.equal(run(model), want)
        with pytest.raises(lt.LowtideRuntimeError, match="active"), opt.probe():
            pass


def test_legacy_drifts_and_says_so() -> None:
    model, run = make("mlp")
    before = bits(model)
    with pytest.warns(RuntimeWarning, match="drift"):
        opt = SPSA(model.named_parameters(), lr=0.0, eps=1e-3, module=model, probe="inplace_legacy")
    for _ in range(3):
        opt.step(lambda: run(model).square().mean())
    after = bits(model)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "it used to drift"
    old, new = (torch.cat([b.view(torch.float32).flatten() for b in s]) for s in (before, after))
    assert float((old - new).abs().max()) < 1e-5
    for bad in ({"log": "x.ltlog"}, {"comm": object()}, {"masters": "float32"}):
        with pytest.raises(lt.LowtideValueError, match="inplace_legacy"):
            SPSA(model.named_parameters(), module=model, probe="inplace_legacy", **bad)


def test_both_probes_see_the_same_dropout() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5))
    opt = SPSA(model.named_parameters(), eps=EPS, module=model)
    masks: list[Tensor] = []

    def closure() -> Tensor:
        y = model(X)
        masks.append(y == 0)
        return y.square().mean()

    opt.step(closure)
    opt.step(closure)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
