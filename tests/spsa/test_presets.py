# SPDX-License-Identifier: Apache-2.0
"""Named methods: each learns, and each does what its paper says."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide import spsa
from lowtide.spsa import Commit

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.linspace(-2, 2, 64 * 32).reshape(64, 32).sin()
Y = (X[:, :1] * X[:, 1:2]).tanh()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: (model(X) - Y).square().mean()


def z_of(p: Tensor, seed: int, step: int, param: int, slot: int = 0) -> Tensor:
    return lt.random.sample(p.shape, seed=seed, step=step, slot=slot, param=param, like="torch")


METHODS: dict[str, tuple[type[spsa.SPSA], dict[str, Any]]] = {
    "MeZO": (spsa.MeZO, {"lr": 2e-3}),
    "FZOO": (spsa.FZOO, {"lr": 1e-3}),
    "SparseMeZO": (spsa.SparseMeZO, {"lr": 2e-3, "keep": 0.5}),
    "LOZO": (spsa.LOZO, {"lr": 2e-3}),
    "HiZOO": (spsa.HiZOO, {"lr": 2e-3, "alpha": 1e-4}),
    "ConMeZO": (spsa.ConMeZO, {"lr": 2e-3, "warmup": 0, "beta": 0.9}),
    "FedKSeed": (spsa.FedKSeed, {"lr": 2e-3, "seeds": 64}),
}


@pytest.mark.parametrize("name", METHODS)
def test_learns_and_resumes(name: str) -> None:
    cls, options = METHODS[name]

    def make(model: nn.Module) -> spsa.SPSA:
        return cls(model.named_parameters(), module=model, seed=3, **options)

    model = network()
    opt = make(model)
    first = float(loss_of(model)().detach())
    for _ in range(120):
        opt.step(loss_of(model))
    state, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    other = network(1)
    other.load_state_dict(weights)
    resumed = make(other)
    resumed.load_state_dict(state)
    for _ in range(5):
        opt.step(loss_of(model))
        resumed.step(loss_of(other))
    assert float(loss_of(model)().detach()) < 0.7 * first
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert opt.skipped == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_qzo_moves_scales_and_no_code(bits: int) -> None:
    """Scales that are off by a factor come back, codes stay."""
    model = network()
    lt.quant.quantize_model_(model, weights=f"int{bits}", group=32, skip=())
    target = model(X).detach()
    for _, t in spsa.quantized_scales(model):
        t.mul_(torch.linspace(0.5, 2.0, t.numel()).reshape(t.shape))
    codes = {n: t.clone() for n, t in model.state_dict().items() if t.dtype == torch.uint8}
    opt = spsa.QZO(model, lr=1e-1)
    assert [e.name for e in opt.manifest] == ["0.weight_scale", "2.weight_scale"]
    assert all(e.floor == 0.0 and e.dtype == "float32" for e in opt.manifest)
    losses = [opt.step(lambda: (model(X) - target).square().mean()) for _ in range(200)]
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(model.state_dict()[n], t) for n, t in codes.items())
    opt.apply(Commit(opt.t, 1, ((0, opt.schedule.codec.encode(1e9)),)))
    assert min(float(t.min()) for _, t in spsa.quantized_scales(model)) == 0.0
    with pytest.raises(lt.LowtideValueError, match="quantize_model_"):
        spsa.QZO(network())


@pytest.mark.parametrize(("bits", "scheme"), [(8, "asymmetric"), (8, "symmetric"), (4, "asymmetric")])
def test_quzo_moves_codes_and_no_scale(bits: int, scheme: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = network()
        return lt.quant.quantize_model_(model, weights=f"int{bits}", group=32, skip=(), scheme=scheme)

    model, again = make(), make()
    start = copy.deepcopy(model.state_dict())
    opt = spsa.QuZO(
        model.named_parameters(), lr=5e-3, eps=2e-2, directions=4, module=model, log=tmp_path / "run.ltlog"
    )
    assert [(e.name, e.dtype) for e in opt.manifest][:2] == [("0.weight", "uint8"), ("0.bias", "float32")]
    seen: list[Tensor] = []

    model[0].register_forward_hook(lambda m, *_: seen.append(m.weight.data.clone()))
    losses = [opt.step(loss_of(model)) for _ in range(60)]
    opt.close()
    assert statistics.mean(losses[-10:]) < 0.8 * losses[0]
    # The probes of a pair are mirror images but where a code saturates, and not the weights themselves.
    plus, minus, base = (t.int() for t in (seen[0], seen[1], start["0.weight"]))
    if bits == 8:
        inside = (plus > 1) & (plus < 255) & (minus > 1) & (minus < 255)
        assert bool((plus != base)[inside].any())
        assert torch.equal((plus + minus)[inside], 2 * base[inside])
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, start[n])}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}
    spsa.replay(again, tmp_path / "run.ltlog")
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    frozen = spsa.MeZO(model.named_parameters(), module=model)
    assert [e.name for e in frozen.manifest] == ["0.bias", "2.bias"]
    with pytest.raises(lt.LowtideValueError, match="packed codes"):
        spsa.QuZO(model.named_parameters(), keep=0.5, module=model)


@pytest.mark.parametrize("name", ["LOZO", "HiZOO", "SparseMeZO", "QuZO", "QZO"])
def test_methods_with_the_fused_probe(name: str) -> None:
    """Losses as with the scratch probe, up to the order of sums in a product."""
    losses = []
    for probe in ("scratch", "fused"):
        model = network()
        options: dict[str, Any] = {"lr": 0.0, "eps": 0.05, "probe": probe, "module": model}
        if name in ("QuZO", "QZO"):
            lt.quant.quantize_model_(model, weights="int8", group=32, skip=())
        if name == "QZO":
            opt: spsa.SPSA = spsa.QZO(model, **options)
        else:
            opt = getattr(spsa, name)(model.named_parameters(), **options)
        seen: list[float] = []

        def closure(model: nn.Module = model, seen: list[float] = seen) -> Tensor:
            loss = (model(X) - Y).square().mean()
            seen.append(float(loss.detach()))
            return loss

        for _ in range(2):
            opt.step(closure)
        losses.append(seen[-2:])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0][0] - losses[0][1]) > 1e-4


def test_hizoo_without_rate_is_mezo_and_learns_the_curvature() -> None:
    a, b = network(), network()
    one = spsa.HiZOO(a.named_parameters(), 1e-3, alpha=0.0, module=a)
    two = spsa.MeZO(b.named_parameters(), 1e-3, module=b)
    for _ in range(5):
        one.step(loss_of(a))
        two.step(loss_of(b))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)

    # A quadratic with curvatures 1 and 100: H grows where z^2 (L+ + L- - 2 L0) is large on average.
    p = nn.Parameter(torch.zeros(2, 200))
    curve = torch.tensor([[1.0], [100.0]]).expand(2, 200).double()
    opt = spsa.HiZOO([p], 0.0, 1e-2, alpha=1e-5, probe="snapshot")
    for _ in range(300):
        opt.step(lambda: 0.5 * (curve * p.double().square()).sum())
    elements = opt.masters.elements
    assert elements is not None
    low, high = elements.state[0].view(2, 200).mean(1).tolist()
    assert high > low
    assert opt.state_bytes()["states"] == 4 * p.numel()


def test_conmezo_follows_its_cone() -> None:
    p = nn.Parameter(torch.zeros(20_000))
    slope = torch.linspace(-1, 1, p.numel())
    opt = spsa.ConMeZO([p], 1e-6, 0.5, angle=1.0, beta=0.5, warmup=0, probe="snapshot", seed=6)
    m = torch.zeros(p.numel())
    w = torch.zeros(p.numel())
    for t in range(4):
        u = z_of(p, 6, t, 0)
        z = u if t == 0 else math.cos(1.0) * m * (p.numel() ** 0.5 / m.norm()) + math.sin(1.0) * u
        g = float(z @ slope)
        opt.step(lambda: p @ slope)
        w -= 1e-6 * g * z
        m = 0.5 * m + 0.5 * g * z
    elements = opt.masters.elements
    assert elements is not None
    # The norm is followed, not measured: good to 1 / sqrt(d).
    assert abs(elements.rms / float(m.square().mean().sqrt()) - 1.0) < 0.05
    assert float((elements.state[0] - m).norm() / m.norm()) < 0.05
    assert float((p.detach() - w).norm() / w.norm()) < 0.05


def test_lozo_moves_along_low_rank_factors() -> None:
    p = nn.Parameter(torch.zeros(24, 40))
    q = nn.Parameter(torch.zeros(40))
    opt = spsa.LOZO([p, q], 1.0, rank=2, interval=3, probe="snapshot", seed=1)
    rows = []
    for t in range(4):
        before = p.detach().clone()
        opt.apply(Commit(t, 1, ((0, opt.schedule.codec.encode(-1.0)),)))
        z = p.detach() - before
        values = torch.linalg.svdvals(z.double())
        assert float(values[2]) < 1e-5 * float(values[1])
        assert 0.5 < float(z.square().mean()) < 2.0
        rows.append(torch.linalg.svd(z.double()).Vh[:2])
    overlap = [float((rows[0] @ r.T).square().sum()) for r in rows]
    assert overlap[1] > 1.99  # the same V for three steps
    assert overlap[2] > 1.99
    assert overlap[3] < 1.0
    assert torch.allclose(q.detach(), sum(z_of(q, 1, t, 1) for t in range(4)), atol=1e-5)


def test_fedkseed_is_rebuilt_from_its_accumulators() -> None:
    model = network()
    base = [p.detach().clone() for p in model.parameters()]
    opt = spsa.FedKSeed(model.named_parameters(), 2e-3, seeds=16, directions=2, module=model)
    for _ in range(60):
        opt.step(loss_of(model))
    live = [p.detach().clone() for p in model.parameters()]
    assert int((opt.accumulators != 0).sum()) == 16
    opt.rebuild(base)
    for p, w, w0 in zip(model.parameters(), live, base, strict=True):
        assert float((p.detach() - w).norm() / (w - w0).norm()) < 1e-5
    opt.param_groups[0]["lr"] = 1e-4
    with pytest.raises(lt.LowtideRuntimeError, match="lr of FedKSeed"):
        opt.step(loss_of(model))
    with pytest.raises(lt.LowtideValueError, match="weight decay"):
        spsa.FedKSeed(model.named_parameters(), weight_decay=0.1, module=model)
    with pytest.raises(lt.LowtideValueError, match="accumulators"):
        spsa.FedKSeed(model.named_parameters(), seeds=4, module=model).rebuild(base, opt.accumulators)


def test_lora_trains_adapters_only() -> None:
    class LoRA(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear.requires_grad_(False)
            self.a = nn.Parameter(torch.randn(4, linear.in_features) / 6)
            self.b = nn.Parameter(torch.zeros(linear.out_features, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + x @ self.a.T @ self.b.T

    model = network()
    model[0], model[2] = LoRA(model[0]), LoRA(model[2])
    frozen = model[0].linear.weight.clone()
    adapters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    opt = spsa.MeZO(model.named_parameters(), 1e-2, module=model)
    assert [e.name for e in opt.manifest] == [n for n, _ in adapters]
    first = float(loss_of(model)().detach())
    for _ in range(150):
        opt.step(loss_of(model))
    assert float(loss_of(model)().detach()) < 0.9 * first
    assert torch.equal(model[0].linear.weight, frozen)
    assert opt.state_bytes()["probe"] <= max(m.a.nbytes + m.b.nbytes for m in (model[0], model[2])) + 128


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: spsa.HiZOO(p, alpha=1.0, probe="snapshot"), "alpha"),
        (lambda p: spsa.ConMeZO(p, directions=2, probe="snapshot"), "directions"),
        (lambda p: spsa.LOZO(p, rank=9, probe="snapshot"), "rank"),
        (lambda p: spsa.LOZO(p, interval=0, probe="snapshot"), "interval"),
        (lambda p: spsa.LOZO(p, keep=0.5, probe="snapshot"), "low rank"),
        (lambda p: spsa.FedKSeed(p, seeds=0, probe="snapshot"), "seeds"),
        (lambda p: spsa.HiZOO(p, comm=object(), probe="snapshot"), "comm"),
        (lambda p: spsa.HiZOO([q.bfloat16() for q in p], probe="snapshot"), "masters='float32'"),
    ],
)
def test_bad_settings_are_named(make: Callable[[list[Tensor]], Any], match: str) -> None:
    with pytest.raises(lt.LowtideError, match=match):
        make([torch.zeros(3, 3)])
