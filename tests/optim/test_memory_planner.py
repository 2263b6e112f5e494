# SPDX-License-Identifier: Apache-2.0
"""What lt.optim.memory counts is what is allocated: states of every optimizer, gradients that live at once, activations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.optim.memory import METHODS, SHORT_NAMES, factory, optimizers

CONFIG = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 4,
}  # fmt: skip


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(30, 96),
        nn.Linear(96, 128),
        nn.LayerNorm(128),
        nn.Linear(128, 65, bias=False),
        nn.Linear(65, 65),
    ).to(dtype)


def step(model: nn.Module, opt: Any, t: int = 0) -> None:
    g = torch.Generator().manual_seed(t)
    loss = (model(torch.randint(30, (20,), generator=g)).float() - 1.0).square().mean()
    loss.backward(create_graph=getattr(opt, "curvature_due", False))
    if hasattr(opt, "correct"):  # as if the loss had no curvature
        opt.correct({p: torch.zeros_like(p) for p in model.parameters()})
    opt.step()


def kind_of(method: str) -> Any:
    return getattr(lt.optim, SHORT_NAMES[method])


def groups(model: nn.Module, low_rank: bool, rank: float) -> Any:
    return lt.optim.param_groups(model, rank=rank) if low_rank else list(model.parameters())


@pytest.mark.parametrize("name", sorted(optimizers()))
@pytest.mark.parametrize("rank", [8, 0.25])
def test_every_optimizer_plans_what_it_allocates(name: str, rank: float) -> None:
    """A new preset is here by being exported. Nothing may grow after the first steps either."""
    model = make_model()
    kind, (_, make) = optimizers()[name], factory(name)
    low_rank = make([nn.Parameter(torch.zeros(1))])._low_rank
    weights = "fp32" if name == "QGaLoreAdamW" else None
    report = lt.optim.memory(model, name, rank=rank, weights=weights)
    assert lt.optim.memory(model, kind, rank=rank, weights=weights).total == report.total
    opt = make(groups(model, low_rank, rank))
    for t in range(2):
        opt.zero_grad()
        step(model, opt, t)
    measured = opt.state_bytes()
    for what in ("weights", "gradients", "states", "basis"):
        assert getattr(report, what) == measured[what], what
    assert (report.basis + report.states < 8 * report.parameters) or not low_rank or name == "LDAdam"


@pytest.mark.parametrize("method", METHODS)
def test_short_names_are_of_optimizers(method: str) -> None:
    assert lt.optim.memory("llama-60m", method).total > 0


def test_modules_count_as_they_are() -> None:
    model = make_model(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    report = lt.optim.memory(model, "adamw8bit")
    opt = lt.optim.AdamW8bit([p for p in model.parameters() if p.requires_grad])
    step(model, opt)
    measured = opt.state_bytes()
    assert (report.gradients, report.states) == (measured["gradients"], measured["states"])
    assert report.weights == sum(p.nbytes for p in model.parameters())
    packed = make_model()
    lt.quant.quantize_model_(packed, weights="int4", group=32)
    opt = lt.optim.AdamW8bit([*packed.parameters()])
    report = lt.optim.memory(packed, "adamw8bit")
    step(packed, opt)
    assert report.weights == opt.state_bytes()["weights"]
    assert report.states == opt.state_bytes()["states"]


@pytest.mark.parametrize("method", ["adamw", "galore", "qgalore", "apollo"])
def test_gradients_that_live_at_once(method: str) -> None:
    """Of three backward passes the second holds most: everything is kept, and another gradient arrives."""
    model = make_model()
    kind = kind_of(method)

    def make(m: nn.Module) -> Any:
        return kind(groups(m, method != "adamw", 8))

    for accumulate, kept in ((1, "one"), (3, "accumulated")):
        handle = lt.optim.in_backward(make, model, accumulate=accumulate, refresh_from="first")
        for t in range(2 * accumulate):
            (
                model(torch.randint(30, (20,), generator=torch.Generator().manual_seed(t))) - 1.0
            ).square().mean().backward()
        handle.step()
        want = lt.optim.memory(model, method, rank=8, weights="fp32", gradients=kept).gradients
        assert handle.state_bytes()["gradients"] == want
        handle.close()


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of what the forward pass saves, parameters and buffers apart; shared storages once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(input_ids=x, labels=x).loss
    assert loss.requires_grad
    return sum(saved.values())


def llama(dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{
            "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": True, **sizes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_key_value_heads": 4, "num_hidden_layers": 2},
        {"vocab_size": 4000, "hidden_size": 64, "head_dim": 32},
    ],
)
def test_activations_are_what_transformers_saves(dtype: torch.dtype, sizes: dict[str, int]) -> None:
    """Within 1 %: labels and rotary tables are left out."""
    model = llama(dtype, **sizes)
    got = lt.optim.memory(model, "adamw", batch=3, seq=50, activations="full").activations
    measured = saved_bytes(model, torch.randint(model.config.vocab_size, (3, 50)))
    assert got == pytest.approx(measured, rel=0.01)


def test_checkpointed_activations() -> None:
    """After the forward pass: inputs of layers and the head; then a layer at a time instead of the head."""
    model = llama()
    full, some = (
        lt.optim.memory(model, "adamw", batch=3, seq=50, activations=a).activations
        for a in ("full", "checkpointed")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its name of transformers 4
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    measured = saved_bytes(model, torch.randint(500, (3, 50)))
    inputs = 4 * 3 * 50 * 4 * 128
    head = measured - inputs
    layer = (full - head) / 4
    assert some == pytest.approx(inputs + max(head, layer), rel=0.01)
    assert some < full / 2


@pytest.mark.parametrize("method", ["adamw8bit", "galore8bit", "qgalore", "fira", "apollo-mini"])
def test_a_language_model_takes_what_was_planned(method: str) -> None:
    """A LLaMA of transformers, planned from its config, within 5 %; in fact to the byte."""
    model = llama()
    report = lt.optim.memory(model.config, method, rank=16)
    if method == "qgalore":
        lt.quant.quantize_model_(model, weights="int8", group=256, skip=("lm_head",))
    opt = kind_of(method)(groups(model, method != "adamw8bit", 16))
    x = torch.randint(500, (2, 20))
    model(input_ids=x, labels=x).loss.backward()
    measured = opt.state_bytes()
    opt.step()
    measured = {**opt.state_bytes(), "gradients": measured["gradients"]}
    for what in ("weights", "gradients", "states", "basis"):
        assert getattr(report, what) == measured[what], what


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("method", ["adamw8bit", "qgalore"])
def test_smollm2_takes_what_was_planned(method: str) -> None:
    transformers = pytest.importorskip("transformers")
    from lowtide.assets import fetch

    model = transformers.AutoModelForCausalLM.from_pretrained(fetch("smollm2-135m"), dtype=torch.float32)
    report = lt.optim.memory(model.config, method, rank=64)
    if method == "qgalore":
        lt.quant.quantize_model_(model, weights="int8", group=256, skip=("lm_head",))
    opt = kind_of(method)(groups(model, method == "qgalore", 64))
    x = torch.arange(16)[None]
    model(input_ids=x, labels=x).loss.backward()
    opt.step()
    measured = opt.state_bytes()
    for what in ("weights", "states", "basis"):
        assert getattr(report, what) == pytest.approx(measured[what], rel=0.05), what


def test_configs(tmp_path: Path) -> None:
    assert lt.optim.memory("llama-3b", "adamw").parameters == pytest.approx(3.43e9, rel=0.01)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert lt.optim.memory(tmp_path, "sgd") == lt.optim.memory(CONFIG, "sgd")


@pytest.mark.parametrize("budget", [3, 6, 12, 40])
def test_fit_proposes_what_fits(budget: int) -> None:
    proposals = lt.optim.fit("llama-1b", budget * 10**9, batch=8, seq=512)
    assert proposals
    assert all(p.fits == (p.report.total <= 0.9e9 * budget) for p in proposals)
    assert len({(p.method, p.weights, p.rank) for p in proposals}) == len(proposals)
    for p in proposals:
        again = lt.optim.memory(
            "llama-1b", p.method, rank=p.rank or 1, weights=p.weights, batch=-(-8 // p.accumulate), seq=512,
            activations="checkpointed" if p.checkpointing else "full",
            gradients="all" if not p.in_backward else "accumulated" if p.accumulate > 1 else "one",
        )  # fmt: skip
        assert again == p.report
    if budget == 40:
        first = proposals[0]
        assert (first.method, first.checkpointing, first.in_backward) == ("adamw", False, True)
    if budget == 3:
        assert [p.fits for p in proposals] == [False]


def test_fit_has_more_to_say_the_more_there_is() -> None:
    counts = [len(lt.optim.fit("llama-1b", b * 10**9, batch=4, seq=512)) for b in (6, 10, 20, 60)]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lt.optim.memory("llama-60m", "adamw", gradients="some"), "gradients"),
        (lambda: lt.optim.memory("llama-60m", "adamw", weights="fp8"), "weights"),
        (lambda: lt.optim.memory("llama-60m", "adamw", activations="half"), "activations"),
        (lambda: lt.optim.memory("llama-60m", "adamw", activations="full", seq=4), "batch"),
        (lambda: lt.optim.memory("llama-60m", "adamw", activations="full", batch=2, seq=0), "seq"),
        (lambda: lt.optim.memory(make_model(), "adamw", activations="full", batch=2, seq=2), "LLaMA"),
        (lambda: lt.optim.memory("llama-60m", "AdamWW"), "method"),
        (lambda: lt.optim.memory("llama-60m", 3), "method"),
        (lambda: lt.optim.memory("llama-60m", torch.optim.SGD), "method"),
        (lambda: lt.optim.memory({"hidden_size": 0}, "adamw"), "config"),
        (lambda: lt.optim.memory("llama-60m", "galore", rank=0), "rank"),
        (lambda: lt.optim.fit("llama-60m", 0), "budget"),
        (lambda: lt.optim.fit("llama-60m", 10**9, batch=0), "batch"),
        (lambda: lt.optim.fit(make_model(), 10**9), "LLaMA"),
    ],
)
def test_bad_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{",
        '{"hidden_size": "x"}',
        "[" * 100000,
        '{"hidden_size": 1e999}',
        json.dumps({**CONFIG, "num_hidden_layers": 10**12}),
    ],
)
def test_hostile_configs_are_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(lt.LowtideError, match="config"):
        lt.optim.memory(path, "adamw")
