# SPDX-License-Identifier: Apache-2.0
"""SPSA as an optimizer: the update's formula, estimators, groups, schedulers, saved states."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.spsa import SPSA, Commit, Hyper, Manifest, Method, SeedWindow

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.linspace(-2, 2, 64 * 8).reshape(64, 8).sin()
Y = (X[:, :1] * X[:, 1:2]).tanh()


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    dtype = next(model.parameters()).dtype
    return lambda: (model(X.to(dtype)).float() - Y).square().mean()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def z_of(p: Tensor, seed: int, step: int, param: int, dist: str = "rademacher", slot: int = 0) -> Tensor:
    return lt.random.sample(p.shape, seed=seed, step=step, slot=slot, param=param, dist=dist, like="torch")


@pytest.mark.parametrize("dist", ["rademacher", "gaussian"])
def test_steps_are_those_of_a_plain_mezo_loop(dist: str) -> None:
    """MeZO's algorithm 1 with the same z: equal but for the rounding of +1, -2, +1 that it adds."""
    model, twin = network(), network()
    lr, eps, decay = 1e-2, 1e-3, 0.1
    opt = SPSA(model.named_parameters(), lr, eps, dist=dist, weight_decay=decay, seed=11, module=model)
    closure, twin_loss = loss_of(model), loss_of(twin)
    for t in range(20):
        opt.step(closure)
        with torch.no_grad():
            zs = [z_of(p, 11, t, i, dist) for i, p in enumerate(twin.parameters())]
            seen = []
            for move in (eps, -2 * eps):
                for p, z in zip(twin.parameters(), zs, strict=True):
                    p.add_(z, alpha=move)
                seen.append(float(twin_loss()))
            g = (seen[0] - seen[1]) / (2 * eps)
            for p, z in zip(twin.parameters(), zs, strict=True):
                p.add_(z, alpha=eps)
                p.sub_(lr * (g * z + (decay * p if p.ndim >= 2 else 0.0)))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert float(((p - q).norm() / q.norm()).detach()) < 1e-4
    # The formula alone, on the committed values: nothing but the last bits may differ.
    reference = network()
    replayed = SPSA(
        reference.named_parameters(), lr, eps, dist=dist, weight_decay=decay, seed=11, module=reference
    )
    plain = network()
    for t in range(20):
        g = math.sin(t)
        code = replayed.schedule.codec.encode(g)
        replayed.apply(Commit(t, 1, ((0, code),)))
        with torch.no_grad():
            for i, p in enumerate(plain.parameters()):
                z = z_of(p, 11, t, i, dist)
                p.copy_(p * (1 - lr * decay if p.ndim >= 2 else 1.0) - lr * g * z)
    for p, q in zip(reference.parameters(), plain.parameters(), strict=True):
        assert float((p - q).detach().abs().max()) <= 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "central"},
        {"estimator": "forward", "directions": 4},
        {"estimator": "fzoo", "directions": 8, "lr": 2e-3},
        {"momentum": SeedWindow(8, 0.8)},
        {"codec": "log8", "directions": 2},
        {"codec": "sign1", "lr": 2e-3},
        {"dist": "gaussian", "clip": 1.0},
        {"scale": "norm"},
        {"keep": 0.5},
    ],
    ids=str,
)
def test_learns(options: dict[str, Any]) -> None:
    model = network()
    opt = SPSA(model.named_parameters(), **{"lr": 5e-3, **options}, module=model)
    closure = loss_of(model)
    first = float(closure().detach())
    for _ in range(150):
        opt.step(closure)
    assert float(closure().detach()) < 0.6 * first


def test_moments_of_the_estimate() -> None:
    """E g z = grad, and E |g z|^2 = d |grad|^2 for Rademacher, within five standard errors of 4000 draws."""
    d, n = 24, 4000
    p = nn.Parameter(torch.linspace(-1, 1, d))
    grad = torch.linspace(0.5, 2, d).double()
    opt = SPSA([p], lr=0.0, eps=0.25, directions=n, probe="snapshot")
    values: list[float] = []
    encode = opt._encode
    opt._encode = lambda m: (values.extend(m.values.values()), encode(m))[1]  # type: ignore[assignment,func-returns-value]
    opt.step(lambda: p.double() @ grad)
    z = torch.stack([z_of(p, 0, 0, 0, slot=s) for s in range(n)]).double()
    estimates = torch.tensor(values).double()[:, None] * z
    error = (estimates.mean(0) - grad) / (estimates.std(0) / n**0.5)
    assert float(error.abs().max()) < 5.0
    squares = estimates.square().sum(1)
    want = d * float(grad.square().sum())
    assert abs(float(squares.mean()) - want) < 5.0 * float(squares.std()) / n**0.5


def test_fzoo_divides_by_the_spread() -> None:
    p = nn.Parameter(torch.zeros(3))
    opt = SPSA([p], lr=0.5, eps=0.5, directions=4, estimator="fzoo", probe="snapshot", seed=2)
    slope = torch.tensor([1.0, 2.0, 4.0])
    opt.step(lambda: p @ slope)
    z = torch.stack([z_of(p, 2, 0, 0, slot=s) for s in range(4)])
    delta = z @ slope
    want = -0.5 * (delta / delta.std(unbiased=False)) @ z / 4
    assert torch.allclose(p.detach(), want, atol=1e-6)
    flat = nn.Parameter(torch.ones(3))
    SPSA([flat], lr=0.5, directions=4, estimator="fzoo", probe="snapshot").step(lambda: flat.sum() * 0.0)
    assert torch.equal(flat.detach(), torch.ones(3))
    with pytest.raises(lt.LowtideValueError, match="directions"):
        SPSA([flat], estimator="fzoo", probe="snapshot")


def test_momentum_is_the_weighted_mean_of_the_window() -> None:
    p = nn.Parameter(torch.zeros(40))
    slope = torch.linspace(-1, 1, 40)
    opt = SPSA([p], lr=0.1, eps=0.5, momentum=SeedWindow(3, 0.5), probe="snapshot", seed=9)
    want = torch.zeros(40)
    history: list[Tensor] = []
    for t in range(6):
        opt.step(lambda: p @ slope)
        z = z_of(p, 9, t, 0)
        history = [*history, float(z @ slope) * z][-3:]
        weights = [0.5 ** (len(history) - 1 - i) for i in range(len(history))]
        want -= 0.1 * sum(w * h for w, h in zip(weights, history, strict=True)) / sum(weights)
    assert torch.allclose(p.detach(), want, atol=1e-5)


def test_layer_scale_mask_and_floor() -> None:
    a, b, c = (nn.Parameter(torch.linspace(-1, 1, 33)) for _ in range(3))
    groups = [{"params": [a], "scale": 3.0}, {"params": [b], "keep": 0.25}, {"params": [c], "floor": -0.5}]
    before = a.detach().clone()
    opt = SPSA(groups, lr=0.25, eps=0.5, probe="snapshot", seed=4)
    assert [e.scale for e in opt.manifest] == [3.0, 1.0, 1.0]
    opt.step(lambda: a.sum())
    g = float(3.0 * z_of(a, 4, 0, 0).sum())
    assert torch.allclose(a.detach(), before - 0.25 * 3.0 * g * z_of(a, 4, 0, 0), atol=1e-4)
    moved = b.detach() != before
    assert int(moved.sum()) == 9
    assert float(before[moved].abs().max()) < float(before[~moved].abs().min())
    assert float(c.detach().min()) == -0.5


def test_groups_schedulers_and_frozen_parameters() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    groups = [
        {"params": list(model[0].named_parameters())},
        {"params": [("out.w", model[2].weight), ("out.b", model[2].bias)], "lr": 0.0},
    ]
    before = copy.deepcopy(model)
    opt = SPSA(groups, lr=1e-2, module=model)
    assert [e.name for e in opt.manifest] == ["weight", "out.w", "out.b"]
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, [lambda t: float(t < 1), lambda t: 1.0])
    opt.step(loss_of(model))
    schedule.step()
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[0].bias, before[0].bias)
    assert torch.equal(model[2].weight, before[2].weight)
    held = model[0].weight.detach().clone()
    opt.step(loss_of(model))
    assert torch.equal(model[0].weight, held)


def test_resume_equals_uninterrupted() -> None:
    def make(model: nn.Module) -> SPSA:
        return SPSA(
            model.named_parameters(), lr=5e-3, module=model, codec="log8", directions=3, seed=3,
            momentum=SeedWindow(4, 0.9), keep=0.7,
        )  # fmt: skip

    model = network()
    opt = make(model)
    for _ in range(20):
        opt.step(loss_of(model))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    assert len(file.getvalue()) < 20_000
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(1)
    other.load_state_dict(saved["model"])
    resumed = make(other)
    resumed.load_state_dict(saved["opt"])
    for _ in range(20):
        opt.step(loss_of(model))
        resumed.step(loss_of(other))
    assert same(model, other)
    stranger = SPSA(other.named_parameters(), module=other, seed=4)
    with pytest.raises(lt.LowtideValueError, match="seed"):
        stranger.load_state_dict(saved["opt"])


def test_nonfinite_losses_contribute_nothing() -> None:
    model = network()
    before = copy.deepcopy(model)
    opt = SPSA(model.named_parameters(), lr=1e-2, weight_decay=0.1, directions=2, module=model)
    opt.step(lambda: loss_of(model)() * math.nan)
    assert (opt.skipped, opt.t) == (2, 1)
    assert same(model, before)
    strict = SPSA(model.named_parameters(), module=model, nonfinite="raise")
    with pytest.raises(lt.LowtideRuntimeError, match="NaN or infinite"):
        strict.step(lambda: loss_of(model)() * math.inf)
    assert strict.t == 0


def test_losses_of_every_allowed_form() -> None:
    p = nn.Parameter(torch.zeros(5))
    results = []
    for form in (float, lambda x: x, lambda x: x.double(), lambda x: x.expand(3), lambda x: x[None]):
        opt = SPSA([p], lr=0.0, eps=0.5, probe="snapshot")
        results.append(opt.step(lambda form=form: form(p.square().sum())))
    assert results == [1.25] * 5
    opt = SPSA([p], lr=0.0, eps=0.5, probe="snapshot")
    with pytest.warns(RuntimeWarning, match="float32"):
        opt.step(lambda: p.square().sum().bfloat16())
    for bad in ("text", None, torch.zeros(2, 2), torch.zeros(0), torch.tensor(1)):
        with pytest.raises(lt.LowtideError, match="closure must return"):
            opt.step(lambda bad=bad: bad)
    with pytest.raises(lt.LowtideTypeError, match="closure must be given"):
        opt.step()


@pytest.mark.parametrize(("threads", "steps"), [(1, 500), (2, 30)])
def test_replicas_of_two_dtypes_stay_bit_equal(
    threads: int, steps: int, request: pytest.FixtureRequest
) -> None:
    """One probes in float32, the other in bfloat16, by turns they commit: their float32 masters stay equal."""
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(threads)
    one, two = network(), network(dtype=torch.bfloat16)
    start = {n: p.detach().clone() for n, p in one.named_parameters()}
    settings: dict[str, Any] = {"lr": 5e-3, "seed": 8, "codec": "log8", "momentum": SeedWindow(3, 0.5)}
    a = SPSA(one.named_parameters(), module=one, **settings)
    b = SPSA(two.named_parameters(), module=two, masters=start, **settings)
    hyper = a.hyper()
    for t in range(steps):
        source, model = (a, one) if t % 2 else (b, two)
        codes = source._encode(source._measure(loss_of(model), [0]))
        commit = Commit(t, 1, tuple(codes.items()))
        a.apply(commit, hyper)
        b.apply(commit, hyper)
    assert all(torch.equal(x, y) for x, y in zip(a.masters.tensors, b.masters.tensors, strict=True))
    assert all(
        torch.equal(p.detach(), m.bfloat16())
        for p, m in zip(two.parameters(), b.masters.tensors, strict=True)
    )
    assert float(loss_of(two)().detach()) < float(loss_of(network())().detach())


def test_bf16_masters_are_rounded_stochastically() -> None:
    p = nn.Parameter(torch.ones(20000, dtype=torch.bfloat16))
    opt = SPSA([p], lr=1.0, probe="snapshot", seed=1)
    for t in range(4):  # steps of an eighth of the distance between two bfloat16 numbers
        opt.apply(Commit(t, 1, ((0, opt.schedule.codec.encode(2.0**-10)),)))
    moved = p.detach().float() - 1.0
    z = sum(z_of(p, 1, t, 0) for t in range(4)) * -(2.0**-10)
    error = (moved - z).double()
    assert float(error.mean().abs()) < 5.0 * float(error.std()) / 20000**0.5
    assert int((moved != 0).sum()) > 1000


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": -1.0}, "lr"),
        ({"eps": 0.0}, "eps"),
        ({"directions": 0}, "directions"),
        ({"dist": "uniform"}, "dist"),
        ({"estimator": "best"}, "estimator"),
        ({"probe": "magic"}, "probe"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"clip": -1.0}, "clip"),
        ({"rounding": "nearest"}, "rounding"),
        ({"seed": -1}, "seed"),
        ({"codec": "zip"}, "codec"),
        ({"masters": "int8"}, "masters"),
        ({"nonfinite": "hide"}, "nonfinite"),
        ({"keep": 0.0}, "keep"),
        ({"scale": "big"}, "scale"),
        ({"floor": math.inf}, "floor"),
    ],
    ids=str,
)
def test_bad_settings_are_named(options: dict[str, Any], match: str) -> None:
    model = network()
    with pytest.raises(lt.LowtideError, match=match):
        SPSA(model.named_parameters(), module=model, **options)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(lt.LowtideValueError, match="nothing to train"):
        SPSA([nn.Parameter(torch.zeros(3), requires_grad=False)], probe="snapshot")
    with pytest.raises(lt.LowtideTypeError, match="float64"):
        SPSA([nn.Parameter(torch.zeros(3, dtype=torch.float64))], probe="snapshot")
    with pytest.raises(lt.LowtideValueError, match="contiguous"):
        SPSA([nn.Parameter(torch.zeros(3, 4).T)], probe="snapshot")
    with pytest.raises(lt.LowtideValueError, match="unknown group keys"):
        SPSA([{"params": [nn.Parameter(torch.zeros(3))], "rank": 3}], probe="snapshot")


def test_json_of_manifest_and_method() -> None:
    opt = SPSA(network().named_parameters(), probe="snapshot", keep=0.3, floor=-2.0, scale="norm")
    again = Manifest.from_json(opt.manifest.to_json())
    assert again == opt.manifest
    assert again.digest == opt.manifest.digest
    assert len(again.digest) == 32
    assert Method.from_json(opt.method.to_json()) == opt.method
    text = opt.manifest.to_json()
    for bad in ("", "{}", "[1]", "[" * 100_000, text.replace("float32", "float99"), text.replace('"decay":true', '"decay":1'),
                text.replace('"group":0', '"group":-1'), text.replace('"scale":', '"scale":1e999,"x":'), text + " x"):  # fmt: skip
        with pytest.raises(lt.LowtideError, match="manifest"):
            Manifest.from_json(bad)
    for bad in ("", "{}", '{"dist":1}', "[" * 3000):
        with pytest.raises(lt.LowtideError, match="method"):
            Method.from_json(bad)
    with pytest.raises(lt.LowtideValueError, match="lr"):
        Hyper((math.nan,), (0.0,))


def test_awkward_sizes() -> None:
    params = [nn.Parameter(torch.zeros(s)) for s in ((), (0,), (1,), (63,), (65,), (2, 3, 5), (1025,))]
    opt = SPSA(params, lr=1e-2, probe="snapshot")
    for _ in range(3):
        opt.step(lambda: sum((p - 1).square().sum() for p in params))
    assert all(bool(np.isfinite(p.detach().numpy()).all()) for p in params)
    assert all(bool((p.detach() != 0).any()) for p in params if p.numel())


def test_digest_of_the_masters() -> None:
    opt = SPSA(network().named_parameters(), probe="snapshot")
    before = opt.masters.digest()
    assert len(before) == 16
    with torch.no_grad():
        opt.masters.tensors[0].view(torch.int32)[3, 5] ^= 1
    assert opt.masters.digest() != before
    with torch.no_grad():
        opt.masters.tensors[0].view(torch.int32)[3, 5] ^= 1
    assert opt.masters.digest() == before
