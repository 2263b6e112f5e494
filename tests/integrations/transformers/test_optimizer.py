# SPDX-License-Identifier: Apache-2.0
"""Trainer runs with lowtide's optimizers: schedule, accumulation, clipping, and checkpoints that go on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lowtide as lt

transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate (pip install lowtide[demo])")

Make = Callable[..., Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw4bit": {"min_4bit_size": 64},
    "fira": {"rank": 4, "update_proj_gap": 2},
    "qgalore": {"rank": 4, "update_proj_gap": 2},
    "qgalore-int8": {"rank": 4, "update_proj_gap": 2},
    "galore_adamw_layerwise": {"rank": 4, "update_proj_gap": 2},
    "adafactor": {},
}


def weights(model: Any) -> list[torch.Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def prepare(model: Any, kind: str) -> Any:
    return lt.integrations.transformers.prepare_model(model, group=32) if kind.endswith("int8") else model


def trainer(model: Any, args: Any, data: Any, kind: str, callbacks: Any = None, **options: Any) -> Any:
    pair = lt.integrations.transformers.optimizer_cls_and_kwargs(
        model, args, method=kind.removesuffix("-int8"), **{**OPTIONS.get(kind, {}), **options}
    )
    return transformers.Trainer(
        model, args, train_dataset=data, optimizer_cls_and_kwargs=pair, callbacks=callbacks
    )


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_model: Make, arguments: Make, tokens: Any, stop: Any, kind: str, tmp_path: Path
) -> None:
    whole = prepare(make_model(), kind)
    start = weights(whole)
    run = trainer(whole, arguments("a"), tokens, kind)
    run.train()
    rates = [log["learning_rate"] for log in run.state.log_history if "learning_rate" in log]
    assert len(set(rates)) == 4
    assert any(not torch.equal(a, b) for a, b in zip(start, weights(whole), strict=True))

    trainer(prepare(make_model(), kind), arguments("b"), tokens, kind, [stop()]).train()
    saved = torch.load(tmp_path / "b" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert saved["state"]
    second = prepare(make_model(), kind)
    trainer(second, arguments("b"), tokens, kind).train(
        resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2")
    )
    assert same(whole, second)


def test_layerwise_equals_plain(make_model: Make, arguments: Make, tokens: Any) -> None:
    plain, layerwise = make_model(), make_model()
    trainer(plain, arguments("a", max_grad_norm=0.0), tokens, "adafactor").train()
    trainer(layerwise, arguments("b", max_grad_norm=0.0), tokens, "adafactor", layerwise=True).train()
    assert same(plain, layerwise)
    clipped, start = make_model(), make_model()
    trainer(clipped, arguments("c"), tokens, "adafactor", layerwise=True).train()
    plain = make_model()
    trainer(plain, arguments("d"), tokens, "adafactor").train()
    for a, b, w in zip(weights(plain), weights(clipped), weights(start), strict=True):
        assert float((a - b).norm()) <= 1e-4 * float((a - w).norm())  # the norm is summed in another order


@pytest.mark.parametrize("layerwise", [False, True])
def test_packed_weights_are_clipped_with_the_others(
    make_model: Make, arguments: Make, tokens: Any, layerwise: bool
) -> None:
    """One norm over dense and packed gradients."""
    seen: list[float] = []

    class Norms(transformers.TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
            seen.append(optimizer.optimizer.grad_norm)

    model = prepare(make_model(), "qgalore-int8")
    args = arguments("a", max_steps=1, gradient_accumulation_steps=1, max_grad_norm=1e-3)
    run = trainer(
        model, args, tokens, "qgalore-int8", [Norms()] if layerwise else [], layerwise=layerwise
    )  # fmt: skip
    run.train()
    if not layerwise:
        seen = [log["grad_norm"] for log in run.state.log_history if "grad_norm" in log]
    other = prepare(make_model(), "qgalore-int8")
    batch = next(iter(trainer(other, arguments("c"), tokens, "qgalore-int8").get_train_dataloader()))
    other(**batch).loss.backward()
    grads = [p.grad for p in other.parameters() if p.grad is not None]
    assert len(grads) == len(list(other.parameters()))
    assert seen == [pytest.approx(float(torch.nn.utils.get_total_norm(grads)), rel=1e-5)]


def test_weight_decay_spares_norms_and_biases(make_model: Make, arguments: Make) -> None:
    _, kwargs = lt.integrations.transformers.optimizer_cls_and_kwargs(
        make_model(), arguments(), method="fira"
    )
    decays = {name: g["weight_decay"] for g in kwargs["params"] for name in g["param_names"]}
    assert {name for name, decay in decays.items() if decay == 0.0} == {
        name for name in decays if "bias" in name or "norm" in name
    }
    assert set(decays.values()) == {0.0, 0.1}
    ids = {name: i for i, (name, _) in enumerate(make_model().named_parameters())}
    assert {
        n: i for g in kwargs["params"] for n, i in zip(g["param_names"], g["param_ids"], strict=True)
    } == ids


def test_adamw_equals_the_trainers_own(make_model: Make, arguments: Make, tokens: Any) -> None:
    ours, theirs = make_model(), make_model()
    args = arguments("a", optim="adamw_torch", adam_beta2=0.95)
    pair = lt.integrations.transformers.optimizer_cls_and_kwargs(ours, args)
    transformers.Trainer(ours, args, train_dataset=tokens, optimizer_cls_and_kwargs=pair).train()
    args = arguments("b", optim="adamw_torch", adam_beta2=0.95)
    transformers.Trainer(theirs, args, train_dataset=tokens).train()
    # All weights together: Adam makes a step of the rounding error that is the gradient of a key's bias.
    a, b = (torch.cat([w.flatten() for w in weights(model)]) for model in (ours, theirs))
    assert float((a - b).norm()) <= 1e-5 * float(b.norm())


def test_restored_weights_load_in_transformers(
    make_model: Make, arguments: Make, tokens: Any, tmp_path: Path
) -> None:
    tools = lt.integrations.transformers
    model = prepare(make_model(), "qgalore-int8")
    assert model.config.quantization_config["quant_method"] == "lowtide"
    trainer(model, arguments("a"), tokens, "qgalore-int8").train()
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(lt.LowtideRuntimeError, match="would take for ordinary ones"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "packed")
    batch = {"input_ids": tokens.ids[:2]}
    want = model.eval()(**batch).logits
    assert tools.restore_model(model) is model
    torch.testing.assert_close(model(**batch).logits, want, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "plain")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert not hasattr(again.config, "quantization_config")
