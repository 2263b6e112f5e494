# SPDX-License-Identifier: Apache-2.0
"""quantize_model_."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant import Linear, model_bytes, quantize_model_


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(96, 200), nn.Linear(200, 96, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 96)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(96, 50, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


IDS = torch.arange(20).reshape(2, 10)


@pytest.mark.parametrize(("weights", "loss_of_precision"), [("int8", 0.01), ("int4", 0.15), ("nf4", 0.15)])
def test_the_model_is_smaller_and_says_the_same(weights: str, loss_of_precision: float) -> None:
    model = Model(tied=True)
    before, dense = model(IDS), model_bytes(model)
    assert quantize_model_(model, weights=weights, group=64) is model
    assert [type(b.up) for b in model.blocks] == [Linear, Linear]
    assert type(model.lm_head) is nn.Linear
    small = 4 * (50 * 96 + 2 * 200)
    codes = 4 * 96 * 200 // (1 if weights == "int8" else 2)
    scales = (4 if weights == "nf4" else 5) * 2 * (200 * 2 + 96 * 4)
    if weights != "int8":
        codes += 2 * (96 * 4)  # 200 columns end in a block of 8 codes, which takes 8 bytes
    assert model_bytes(model) == small + codes + scales < dense
    after = model(IDS)
    assert (after - before).norm() < loss_of_precision * before.norm()
    after.sum().backward()
    assert all((b.up.weight.quant.main_grad is None) == (weights == "nf4") for b in model.blocks)
    assert model.embed.weight.grad is not None


def test_skip_takes_full_names_last_parts_and_enclosing_modules() -> None:
    def dense(skip) -> list[str]:
        model = quantize_model_(Model(), group=64, skip=skip)
        return [n for n, m in model.named_modules() if type(m) is nn.Linear]

    assert dense(("lm_head",)) == ["lm_head"]
    assert dense(()) == []
    assert dense("down") == ["blocks.0.down", "blocks.1.down"]
    assert dense(["blocks.0", "lm_head"]) == ["blocks.0.up", "blocks.0.down", "lm_head"]
    assert dense(["blocks.1.up"]) == ["blocks.1.up"]


def test_tied_weights_are_refused_and_nothing_changes() -> None:
    model = Model(tied=True)
    with pytest.raises(lt.LowtideValueError, match=r"lm_head.weight is tied to embed.weight"):
        quantize_model_(model, group=64, skip=())
    assert not any(isinstance(m, Linear) for m in model.modules())


def test_a_layer_used_under_two_names_stays_one_layer() -> None:
    model = nn.Module()
    model.a = nn.Linear(64, 64)
    model.b = model.a
    quantize_model_(model, group=64)
    assert isinstance(model.a, Linear)
    assert model.b is model.a
    other = nn.Module()
    other.a, other.b = model.a, nn.Linear(4, 4)
    quantize_model_(other, group=32)
    assert other.a is model.a


def test_frozen_layers_stay_frozen_and_subclasses_dense() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 8), "b": nn.Linear(64, 8), "mha": nn.MultiheadAttention(64, 2)})
    model["a"].weight.requires_grad_(False)
    quantize_model_(model, group=64)
    assert not model["a"].weight.quant.trainable
    assert model["b"].weight.quant.trainable
    assert not isinstance(model["mha"].out_proj, Linear)
    model["mha"](torch.randn(3, 1, 64), torch.randn(3, 1, 64), torch.randn(3, 1, 64))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"weights": "int2"}, "weights must be one of"),
        ({"weights": "nf4", "scheme": "symmetric"}, "scheme is for integers"),
        ({"group": 100}, "multiple of 32"),
        ({"scheme": "dynamic"}, "scheme must be one of"),
        ({"skip": ("blocks", "lm_head")}, r"no nn.Linear to quantize"),
    ],
)
def test_bad_arguments_are_named(kwargs, words: str) -> None:
    model = Model()
    with pytest.raises(lt.LowtideError, match=words):
        quantize_model_(model, **kwargs)
    assert not any(isinstance(m, Linear) for m in model.modules())


def test_models_that_cannot_be_quantized_stay_as_they_were() -> None:
    model = Model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(lt.LowtideValueError, match=r"lm_head.weight has non-finite"):
        quantize_model_(model, group=64, skip=())
    with pytest.raises(lt.LowtideTypeError, match="must be float32, bfloat16 or float16"):
        quantize_model_(Model().double(), group=64)
    with pytest.raises(lt.LowtideTypeError, match="from_linear"):
        quantize_model_(nn.Linear(3, 3))
    with pytest.raises(lt.LowtideTypeError, match=r"nn\.Module"):
        quantize_model_("model")
    with torch.device("meta"):
        meta = Model()
    with pytest.raises(lt.LowtideValueError, match="meta device"):
        quantize_model_(meta, group=64)
    assert not any(isinstance(m, Linear) for m in model.modules())
