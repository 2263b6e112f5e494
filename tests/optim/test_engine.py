# SPDX-License-Identifier: Apache-2.0
"""The contract every preset keeps: one battery over the registry."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.optim import Composed

PRESETS: dict[str, Callable[..., Composed]] = {
    "adamw": lambda m, **k: lt.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0, **k),
    "adamw8bit": lambda m, **k: lt.optim.AdamW8bit(
        m.parameters(), lr=1e-2, weight_decay=0.0, min_8bit_size=0, **k
    ),
    "adamw4bit": lambda m, **k: lt.optim.AdamW4bit(
        m.parameters(), lr=1e-2, weight_decay=0.0, min_4bit_size=0, **k
    ),
    "adabelief": lambda m, **k: lt.optim.AdaBelief(m.parameters(), lr=1e-2, **k),
    "adabelief8bit": lambda m, **k: lt.optim.AdaBelief8bit(m.parameters(), lr=1e-2, min_8bit_size=0, **k),
    "lion": lambda m, **k: lt.optim.Lion(m.parameters(), lr=2e-3, **k),
    "lion8bit": lambda m, **k: lt.optim.Lion8bit(m.parameters(), lr=2e-3, min_8bit_size=0, **k),
    "sgd": lambda m, **k: lt.optim.SGD(m.parameters(), lr=0.3, nesterov=True, **k),
    "sgd8bit": lambda m, **k: lt.optim.SGD8bit(m.parameters(), lr=0.3, min_8bit_size=0, **k),
    "sign_sgd": lambda m, **k: lt.optim.SignSGD(m.parameters(), lr=2e-3, **k),
    "diffgrad8bit": lambda m, **k: lt.optim.DiffGrad8bit(m.parameters(), lr=1e-2, min_8bit_size=0, **k),
    "adamp_low_rank": lambda m, **k: lt.optim.AdamP(groups(m), lr=1e-2, delta=2.0, **k),
    "galore_adafactor": lambda m, **k: lt.optim.GaLoreAdafactor(groups(m), lr=1e-2, beta1=0.9, **k),
    "lion8bit_low_rank": lambda m, **k: lt.optim.Lion8bit(groups(m), lr=2e-3, min_8bit_size=0, **k),
    "galore": lambda m, **k: lt.optim.GaLoreAdamW(groups(m), lr=1e-2, **k),
    "galore8bit": lambda m, **k: lt.optim.GaLoreAdamW8bit(groups(m), lr=1e-2, **k),
    "qgalore": lambda m, **k: lt.optim.QGaLoreAdamW(groups(m), lr=1e-2, **k),
    "fira": lambda m, **k: lt.optim.FiraAdamW(groups(m), lr=1e-2, **k),
    "fira_compat": lambda m, **k: lt.optim.FiraAdamW(groups(m), lr=1e-2, compat="fira", **k),
    "frugal": lambda m, **k: lt.optim.FRUGAL(groups(m), lr=2e-3, weight_decay=0.0, **k),
    "frugal_random": lambda m, **k: lt.optim.FRUGAL(
        groups(m), lr=2e-3, weight_decay=0.0, subspace="random", residual_lr_scale=0.5, **k
    ),
    "frugal_svd_sgd": lambda m, **k: lt.optim.FRUGAL(
        groups(m), lr=1e-2, weight_decay=0.0, subspace="svd", residual="sgd", residual_lr_scale=10.0, **k
    ),
    "frugal_blocks": lambda m, **k: lt.optim.FRUGAL(
        groups(m), lr=2e-3, weight_decay=0.0, subspace="blocks", density=0.6, **k
    ),
    "frugal_hadamard": lambda m, **k: lt.optim.FRUGAL(
        groups(m), lr=2e-3, weight_decay=0.0, subspace="hadamard", **k
    ),
    "apollo": lambda m, **k: lt.optim.APOLLO(groups(m), lr=1e-2, **k),
    "apollo_hadamard": lambda m, **k: lt.optim.APOLLO(groups(m), lr=1e-2, proj="hadamard", **k),
    "apollo_svd": lambda m, **k: lt.optim.APOLLO(groups(m), lr=1e-2, proj="svd", **k),
    "apollo_mini": lambda m, **k: lt.optim.APOLLOMini(groups(m), lr=1e-2, **k),
    "ldadam": lambda m, **k: lt.optim.LDAdam(every_step(m), lr=1e-2, **k),
    "ldadam_int8_error": lambda m, **k: lt.optim.LDAdam(every_step(m), lr=1e-2, error_feedback="int8", **k),
    "dct": lambda m, **k: lt.optim.DCTAdamW(every_step(m), lr=1e-2, weight_decay=0.0, **k),
    "grass": lambda m, **k: lt.optim.GRASSAdamW(groups(m), lr=1e-2, **k),
    "gradnormlorp": lambda m, **k: lt.optim.GradNormLoRP(groups(m), lr=1e-2, **k),
    "subtrack": lambda m, **k: lt.optim.SubTrack(groups(m), lr=1e-2, **k),
    "lotus": lambda m, **k: lt.optim.LotusAdamW(groups(m), lr=1e-2, **k),
    "flora": lambda m, **k: lt.optim.Flora(
        lt.optim.param_groups(m, rank=32, update_proj_gap=7), lr=1e-2, **k
    ),
}


def groups(model: nn.Module) -> list[dict]:
    return lt.optim.param_groups(model, rank=8, update_proj_gap=4, scale=1.0)


def every_step(model: nn.Module) -> list[dict]:
    return lt.optim.param_groups(model, rank=8)


def make_model(seed: int = 0, quantized: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(65, 96), nn.Tanh(), nn.LayerNorm(96), nn.Linear(96, 33, bias=False)).to(
        dtype
    )
    if quantized:
        lt.quant.quantize_model_(model, weights="int8", group=64)
    return model


def batch(t: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + t)
    x = torch.randn(16, 65, generator=g)
    return x.to(dtype), (x[:, :33].sin() + 0.1).to(dtype)


def train(model: nn.Module, opt, steps: range, dtype: torch.dtype = torch.float32) -> list[float]:
    losses = []
    for t in steps:
        x, y = batch(t, dtype)
        opt.zero_grad()
        loss = (model(x) - y).float().square().mean()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> Callable[..., Composed]:
    return PRESETS[request.param]


@pytest.fixture(params=["fp32", "bf16", "int8"])
def setup(request: pytest.FixtureRequest) -> tuple[bool, torch.dtype]:
    return request.param == "int8", torch.bfloat16 if request.param == "bf16" else torch.float32


def test_learns(preset, setup) -> None:
    model = make_model(quantized=setup[0], dtype=setup[1])
    losses = train(model, preset(model), range(80), setup[1])
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_resume_is_bit_for_bit(preset, setup) -> None:
    whole = make_model(quantized=setup[0], dtype=setup[1])
    opt = preset(whole)
    train(whole, opt, range(13), setup[1])
    first = make_model(quantized=setup[0], dtype=setup[1])
    opt1 = preset(first)
    train(first, opt1, range(6), setup[1])
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "opt": opt1.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = make_model(seed=5, quantized=setup[0], dtype=setup[1])
    second.load_state_dict(saved["model"])
    opt2 = preset(second)
    opt2.load_state_dict(saved["opt"])
    train(second, opt2, range(6, 13), setup[1])
    assert same(tensors(whole), tensors(second))
    a, b = opt.state_dict()["state"], opt2.state_dict()["state"]
    for key in a:
        for name, value in a[key].items():
            assert (
                torch.equal(value, b[key][name]) if isinstance(value, torch.Tensor) else value == b[key][name]
            ), name


def test_in_backward_equals_step_and_frees_gradients(preset, setup) -> None:
    a, b = (make_model(quantized=setup[0], dtype=setup[1]) for _ in range(2))
    train(a, preset(a), range(7), setup[1])
    handle = lt.optim.in_backward(preset, b)
    train(b, handle, range(7), setup[1])
    assert same(tensors(a), tensors(b))
    assert handle.optimizer.state_bytes()["gradients"] == 0
    largest = max(96 * 65, 33 * 96) * (2 if setup[1] == torch.bfloat16 else 4)
    assert handle.state_bytes()["gradients"] == largest


def test_zero_gradients_move_nothing(preset, setup) -> None:
    model = make_model(quantized=setup[0], dtype=setup[1])
    opt = preset(model)
    before = tensors(model)
    for _ in range(10):
        opt.zero_grad()
        (sum(p.sum() for p in [model(torch.zeros(2, 65, dtype=setup[1]))]) * 0.0).backward()
        opt.step()
    assert same(before, tensors(model))


def test_thread_count_does_not_change_a_bit(preset, setup) -> None:
    """Gradients are fixed here: torch's own matmuls may differ between thread counts."""
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            model = make_model(quantized=setup[0], dtype=setup[1])
            opt = preset(model)
            torch.set_num_threads(1)
            for t in range(5):
                train_grads(model, t, setup[1])
                torch.set_num_threads(threads)
                opt.step()
                torch.set_num_threads(1)
                opt.zero_grad()
            results.append(tensors(model))
    finally:
        torch.set_num_threads(before)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def train_grads(model: nn.Module, t: int, dtype: torch.dtype) -> None:
    x, y = batch(t, dtype)
    (model(x) - y).float().square().mean().backward()


def test_nonfinite_gradients_are_skipped_counted_and_said(preset) -> None:
    model = make_model()
    opt = preset(model)
    train(model, opt, range(3))
    train_grads(model, 3, torch.float32)
    model[0].weight.grad[3, 4] = float("nan")
    with pytest.warns(RuntimeWarning, match="skipped_blocks"):
        opt.step()
    assert opt.skipped_blocks > 0
    assert all(bool(v.isfinite().all()) for v in tensors(model).values())
    opt.zero_grad()
    assert all(torch.isfinite(torch.tensor(train(model, opt, range(4, 7)))))


def test_nonfinite_raise_changes_nothing(preset) -> None:
    model = make_model()
    opt = preset(model, nonfinite="raise")
    train(model, opt, range(3))
    before = tensors(model)
    train_grads(model, 3, torch.float32)
    model[3].weight.grad[0, 0] = float("inf")
    with pytest.raises(lt.LowtideError, match="nothing was changed"):
        opt.step()
    assert same(before, tensors(model))


def test_state_holds_only_plain_values(preset) -> None:
    model = make_model()
    opt = preset(model)
    train(model, opt, range(6))
    for entry in opt.state_dict()["state"].values():
        assert all(isinstance(v, (torch.Tensor, int, float, str)) for v in entry.values())


def test_state_of_other_settings_is_refused(preset) -> None:
    model = make_model()
    opt = preset(model)
    train(model, opt, range(2))
    saved = opt.state_dict()
    other = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.LayerNorm(96), nn.Linear(96, 33, bias=False))
    fresh = preset(other)
    with pytest.raises(lt.LowtideValueError, match="saved state"):
        fresh.load_state_dict(saved)
    assert not fresh.state


def test_bytes_of_the_stores() -> None:
    model = nn.Sequential(nn.Linear(512, 768, bias=False))
    sizes = {}
    for name in ("adamw", "adamw8bit", "adamw4bit", "lion8bit", "sgd", "galore", "qgalore"):
        m = nn.Sequential(nn.Linear(512, 768, bias=False))
        opt = PRESETS[name](m)
        m(torch.ones(1, 512)).sum().backward()
        opt.step()
        sizes[name] = opt.state_bytes()
    n = 512 * 768
    assert sizes["adamw"]["states"] == 8 * n
    assert sizes["adamw8bit"]["states"] == 2 * (n + 4 * n // 256)
    assert sizes["adamw4bit"]["states"] == 2 * (n // 2 + 4 * n // 128)
    assert sizes["lion8bit"]["states"] == n + 4 * n // 256
    assert sizes["sgd"]["states"] == 4 * n
    assert sizes["galore"]["states"] == 8 * 8 * 768
    assert sizes["galore"]["basis"] == 4 * 8 * 512
    # Half a byte an element, with one fp32 scale and one zero point a group of 256.
    assert sizes["qgalore"]["basis"] == 8 * 512 // 2 + 8 * 2 * 5
    assert model[0].weight.nbytes == sizes["adamw"]["weights"]


FULL_RANK = {
    "adamw": lt.optim.AdamW,
    "adamw8bit": lt.optim.AdamW8bit,
    "adamw4bit": lt.optim.AdamW4bit,
    "adabelief": lt.optim.AdaBelief,
    "adabelief8bit": lt.optim.AdaBelief8bit,
    "lion": lt.optim.Lion,
    "lion8bit": lt.optim.Lion8bit,
    "sgd": lt.optim.SGD,
    "sgd8bit": lt.optim.SGD8bit,
}
LOW_RANK = {
    "galore": lt.optim.GaLoreAdamW,
    "galore8bit": lt.optim.GaLoreAdamW8bit,
    "qgalore": lt.optim.QGaLoreAdamW,
    "fira": lt.optim.FiraAdamW,
    "frugal": lt.optim.FRUGAL,
    "apollo": lt.optim.APOLLO,
    "apollo-mini": lt.optim.APOLLOMini,
    "ldadam": lt.optim.LDAdam,
    "dct": lt.optim.DCTAdamW,
    "grass": lt.optim.GRASSAdamW,
    "gradnormlorp": lt.optim.GradNormLoRP,
    "subtrack": lt.optim.SubTrack,
    "golore": lambda g: lt.optim.GoLoreAdamW(g, switch_step=0),
    "lotus": lt.optim.LotusAdamW,
    "flora": lt.optim.Flora,
}


@pytest.mark.parametrize("method", [*FULL_RANK, *LOW_RANK])
@pytest.mark.parametrize("rank", [16, 0.25])
def test_memory_predicts_what_is_allocated(method: str, rank: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 96), nn.Linear(96, 576), nn.LayerNorm(576), nn.Linear(576, 65))
    if method == "qgalore":
        lt.quant.quantize_model_(model, weights="int8", group=256)
    report = lt.optim.memory(model, method, rank=rank)

    def make() -> Composed:
        if method in FULL_RANK:
            return FULL_RANK[method](model.parameters())
        return LOW_RANK[method](lt.optim.param_groups(model, rank=rank))

    opt = make()
    model(torch.arange(300)).sum().backward()
    before = opt.state_bytes()
    opt.step()
    after = opt.state_bytes()
    assert report.weights == after["weights"]
    assert report.gradients == before["gradients"]
    assert report.basis == after["basis"]
    assert report.states == after["states"]


def test_lazy_refresh_doubles_the_gap_of_a_stable_subspace() -> None:
    w = nn.Parameter(torch.zeros(64, 256))
    opt = lt.optim.QGaLoreAdamW(
        [{"params": [w], "rank": 4, "update_proj_gap": 2, "scale": 1.0}], lr=1e-3, queue_size=3
    )
    u, v = torch.randn(64, 4), torch.randn(4, 256)
    for _ in range(40):
        w.grad = u @ v + 0.01 * torch.randn(64, 256)
        opt.step()
    state = opt.state[w]
    assert state["gap"] > 2
    assert state["refreshes"] < 20
    noisy = nn.Parameter(torch.zeros(64, 256))
    opt = lt.optim.QGaLoreAdamW(
        [{"params": [noisy], "rank": 4, "update_proj_gap": 2, "scale": 1.0}], lr=1e-3, queue_size=3
    )
    for _ in range(40):
        noisy.grad = torch.randn(64, 256)
        opt.step()
    assert opt.state[noisy]["gap"] == 2


def test_conv_weights_are_taken_as_matrices() -> None:
    conv = nn.Conv2d(8, 16, 3)
    opt = lt.optim.GaLoreAdamW([{"params": [conv.weight], "rank": 4}], lr=1e-2)
    conv(torch.ones(1, 8, 5, 5)).square().sum().backward()
    opt.step()
    assert opt.state[conv.weight]["exp_avg"].shape == (4, 72)


def test_scheduler_and_closure() -> None:
    model = make_model()
    opt = lt.optim.GaLoreAdamW(groups(model), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5**t)
    x, y = batch(0)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    assert float(opt.step(closure).detach()) > 0
    schedule.step()
    assert all(g["lr"] == 0.5 for g in opt.param_groups)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: lt.optim.AdamW(m.parameters(), lr=-1), "lr"),
        (lambda m: lt.optim.AdamW(m.parameters(), betas=(0.9, 1.0)), "betas"),
        (lambda m: lt.optim.AdamW(m.parameters(), weight_decay=float("nan")), "weight_decay"),
        (lambda m: lt.optim.GaLoreAdamW([{"params": list(m.parameters()), "rank": 0}]), "rank"),
        (
            lambda m: lt.optim.GaLoreAdamW([{"params": list(m.parameters()), "rank": 2, "proj_type": "up"}]),
            "proj_type",
        ),
        (
            lambda m: lt.optim.FiraAdamW([{**groups(m)[0], "alpha": 0.25}]),
            "'alpha' is not known.*called scale",
        ),
        (
            lambda m: lt.optim.AdamW([{"params": list(m.parameters()), "weight_deacy": 0.1}]),
            "did you mean 'weight_decay'",
        ),
        (lambda m: lt.optim.Lion([{"params": list(m.parameters()), "eps": 0.1}]), "'eps' is not known"),
        (lambda m: lt.optim.Lion(m.parameters(), betas=(0.9, -1)), "betas"),
        (lambda m: lt.optim.SGD(m.parameters(), momentum=1.0), "momentum"),
        (lambda m: lt.optim.SGD([{"params": list(m.parameters()), "dampening": 2.0}]), "dampening"),
        (lambda m: lt.optim.SGD(m.parameters(), momentum=0.0, nesterov=True), "nesterov"),
        (lambda m: lt.optim.AdaBelief8bit(m.parameters(), eps=-1.0), "eps"),
        (lambda m: lt.optim.AdamW4bit(m.parameters(), min_4bit_size=-1), "min_numel"),
        (lambda m: lt.optim.StateStore("fp8"), "state"),
        (lambda m: lt.optim.GaLoreAdamW(groups(m), compat="fira"), "compat"),
        (lambda m: lt.optim.QGaLoreAdamW(groups(m), proj_bits=3), "proj_bits"),
        (lambda m: lt.optim.param_groups(m, rank=0), "rank"),
        (lambda m: lt.optim.param_groups(m, target="nope"), "target"),
        (lambda m: lt.optim.param_groups(m, update_proj_gap=0), "update_proj_gap"),
        (lambda m: lt.optim.AdamW(m.double().parameters()), "float32"),
        (lambda m: lt.optim.AdamW(m.parameters(), seed=-1), "seed"),
        (lambda m: lt.optim.in_backward(lambda n: torch.optim.SGD(n.parameters()), m), "opt_factory"),
        (lambda m: lt.optim.memory(m, "adam"), "method"),
        (lambda m: lt.optim.memory("no/such/dir", "adamw"), "model"),
    ],
)
def test_bad_arguments_are_named(make, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make(make_model())


def test_a_rank_beyond_the_matrix_is_clamped_and_said_once() -> None:
    weights = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    opt = lt.optim.GaLoreAdamW([{"params": weights, "rank": 128}], lr=1e-2)
    for p in weights:
        p.grad = torch.randn(4, 6)
    with pytest.warns(
        UserWarning, match=r"rank 128 is more than a weight of shape \(4, 6\) has.*rank 4"
    ) as said:
        opt.step()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()
    assert [opt.state[p]["rank"] for p in weights] == [4, 4]
