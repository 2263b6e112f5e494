# SPDX-License-Identifier: Apache-2.0
"""LoRA-GA and LoRA-SB on SmolLM2-135M: the function, and where the first step leads."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import lowtide as lt

peft = pytest.importorskip("peft", reason="adapters are PEFT's (pip install lowtide[peft])")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.assets,
    pytest.mark.skipif(
        os.environ.get("LOWTIDE_TEST_OFFLINE") == "1", reason="LOWTIDE_TEST_OFFLINE=1: no downloads"
    ),
]
LAYERS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Any]]:
    transformers = pytest.importorskip("transformers", reason="loads the model (pip install lowtide[demo])")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(lt.assets.fetch("smollm2-135m"))
    text = lt.assets.fetch("shakespeare").read_text(encoding="utf-8")
    rows = [tokenizer(text[at : at + 800], return_tensors="pt").input_ids[:, :64] for at in (30_000, 900_000)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def adapted(**options: Any) -> Any:
    from lowtide.train.loader import load_model

    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules=LAYERS, **options)
    return peft.get_peft_model(load_model(lt.assets.fetch("smollm2-135m")).eval(), config)


def mean_loss(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    total: torch.Tensor = sum(model(**b).loss for b in batches) / len(batches)  # type: ignore[assignment]
    return total


def after_a_step(model: Any, batches: list[dict[str, Any]], size: float) -> float:
    """The loss after a gradient step on A and B that moves the weights of all layers by ``size`` in norm."""
    mean_loss(model, batches).backward()
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    with torch.no_grad():
        pairs = [(m.lora_A.default.weight, m.lora_B.default.weight, m.scaling["default"]) for m in layers]
        first = [s * (b @ a.grad + b.grad @ a) for a, b, s in pairs]
        lr = size / float(sum(x.square().sum() for x in first)) ** 0.5
        for a, b, _ in pairs:
            a -= lr * a.grad
            b -= lr * b.grad
        return float(mean_loss(model, batches))


def test_lora_ga_starts_along_the_gradient(batches: list[dict[str, Any]]) -> None:
    plain = adapted(lora_alpha=16)
    with torch.no_grad():
        before, logits = float(mean_loss(plain, batches)), plain(batches[0]["input_ids"]).logits
    model = adapted(lora_alpha=16)
    report = lt.integrations.peft.lora_ga_(model, batches, scale="unit", per_pass=20)
    assert len(report.layers) == 60
    with torch.no_grad():
        torch.testing.assert_close(model(batches[0]["input_ids"]).logits, logits, rtol=0, atol=2e-3)
    # Sixteen directions of a gradient of two rows of text; LoRA's eight are random ones.
    assert min(report.energy) > 0.5
    drops = [before - after_a_step(m, batches, 0.05) for m in (plain, model)]
    assert drops[1] > 1.5 * drops[0] > 0


def test_lora_sb_starts_lower(batches: list[dict[str, Any]]) -> None:
    model = adapted(lora_alpha=8)
    with torch.no_grad():
        before = float(mean_loss(model, batches))
    lt.integrations.peft.lora_sb_(model, batches, lr=1e-4)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 60 * 8**2
    with torch.no_grad():
        assert float(mean_loss(model, batches)) < before - 0.01
