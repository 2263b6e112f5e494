# SPDX-License-Identifier: Apache-2.0
"""The formats on SmolLM2-135M, against plain INT4 of more bits.

Its weights were themselves dequantized from 4-bit groups of 32 with a minimum (Q4_1). No format here can know
that grid: scales of 64 and more weights, and symmetric ones, do not hold it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant import codebook, gwq, outliers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.assets,
    pytest.mark.skipif(
        os.environ.get("LOWTIDE_TEST_OFFLINE") == "1", reason="LOWTIDE_TEST_OFFLINE=1: no downloads"
    ),
]


@pytest.fixture(scope="module")
def calibrated() -> tuple[nn.Module, dict[str, torch.Tensor], Callable[[nn.Module], float], int]:
    """The model, its gradients on 256 tokens of one play, and its loss on parts of four others."""
    transformers = pytest.importorskip("transformers", reason="loads the model (pip install lowtide[demo])")
    from lowtide.train.loader import load_model

    folder = lt.assets.fetch("smollm2-135m")
    model = load_model(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    text = lt.assets.fetch("shakespeare").read_text(encoding="utf-8")

    def tokens(at: int) -> torch.Tensor:
        return tokenizer(text[at : at + 2000], return_tensors="pt").input_ids[:, :256]

    ids = tokens(20_000)
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {n: m.weight.grad.clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    model.zero_grad()
    held_out = torch.cat([tokens(at) for at in (500_000, 1_500_000, 2_500_000, 3_500_000)])

    @torch.no_grad()
    def loss(m: nn.Module) -> float:
        return float(m(input_ids=held_out, labels=held_out).loss)

    return model, grads, loss, sum(g.numel() for n, g in grads.items() if n != "lm_head")


def plain_bits(q: lt.quant.Quantized) -> float:
    return 8 * q.nbytes / q.dequantize().numel()


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.29.mlp.up_proj"])
def test_layers(calibrated: Any, name: str) -> None:
    model, grads, _, _ = calibrated
    w, g = model.get_submodule(name).weight.detach(), grads[name]

    def error(h: torch.Tensor, weight: torch.Tensor | float = 1.0) -> float:
        return float(((w - h).double().square() * weight).sum())

    plain = lt.quant.quantize(w, 4, 64)
    aside = outliers.quantize(w, group=128)
    assert aside.bits_per_weight < plain_bits(plain)
    assert error(aside.dequantize()) < error(plain.dequantize())

    q = gwq.quantize(w, g, group=256)
    more = lt.quant.quantize(w, 4, 32)
    assert q.bits_per_weight < plain_bits(more)
    # Measured 0.44 and 0.16: the loss's sensitivity sits in a few weights of these layers.
    assert error(q.dequantize(), g.square()) < 0.6 * error(more.dequantize(), g.square())

    book = codebook.fit(w, 256, dim=2, iterations=8)
    assert book.bits_per_weight < plain_bits(plain)
    assert error(book.dequantize()) < error(plain.dequantize())


def test_held_out_loss_of_the_whole_model(calibrated: Any) -> None:
    """Measured: fp32 3.826, plain 4.250 at 4.50 bits, gwq 4.149 at 4.52, one threshold 4.131, outliers 4.165 at 4.32."""
    model, grads, loss, count = calibrated
    losses = {"fp32": loss(model)}
    for name, pack in (
        (
            "plain",
            lambda m: lt.quant.quantize_model_(m, "int4", group=64, scheme="symmetric", headroom=False),
        ),
        ("gwq", lambda m: gwq.quantize_model_(m, group=256, grads=grads)),
        ("gwq, one threshold", lambda m: gwq.quantize_model_(m, group=256, grads=grads, scope="model")),
        ("outliers", lambda m: outliers.quantize_model_(m, group=256)),
    ):
        packed = pack(copy.deepcopy(model))
        losses[name] = loss(packed)
        if name != "plain":
            layers = [m for m in packed.modules() if isinstance(m, lt.quant.OutlierLinear)]
            assert 8 * sum(m.weight.nbytes for m in layers) / count < 4.53  # plain: 4.50
    assert losses["fp32"] < losses["gwq, one threshold"] < losses["gwq"] < losses["plain"] - 0.05
    assert losses["outliers"] < losses["plain"] - 0.05
