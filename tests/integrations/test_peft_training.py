# SPDX-License-Identifier: Apache-2.0
"""PEFT's adapters under our optimizers: zeroth order, packed bases, LoRA-GA with low-bit states, OSF; saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowtide as lt

peft = pytest.importorskip("peft", reason="pip install lowtide[peft]")


def lora(model: nn.Module, **options: Any) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def train(model: Any, optimizer: Any, batches: list[dict[str, Any]], rounds: int) -> list[float]:
    """The mean loss of each round."""
    means = []
    for _ in range(rounds):
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


def test_mezo_moves_the_adapters_alone(
    make: Callable[..., nn.Module], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = lora(make()).eval()
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    opt = lt.spsa.MeZO(model.named_parameters(), lr=0.02, eps=1e-2, directions=8, module=model)
    assert len(opt.manifest.entries) == 8
    assert all("lora_" in e.name for e in opt.manifest.entries)
    with torch.no_grad():
        before = model(**batches[0]).loss.item()
        for _ in range(30):
            opt.step(lambda: model(**batches[0]).loss)
        assert model(**batches[0]).loss.item() < before - 1e-3
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    # Beside the model: the largest module that is perturbed, a factor of one layer.
    assert opt.state_bytes()["probe"] <= 4 * 48 * 4 + 64

    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    ids = batches[0]["input_ids"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_a_packed_base_under_adapters_that_train(
    weights: str, make: Callable[..., nn.Module], batches: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = lora(make())
    lt.quant.quantize_model_(model, weights=weights, group=32)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, lt.quant.Linear)
    assert type(layer.lora_A["default"]) is nn.Linear
    assert not any(p.quant.trainable for p in model.parameters() if lt.quant.is_quant_weight(p))
    assert len(trained(model)) == 8
    packed = layer.base_layer.weight.clone()
    opt = lt.optim.AdamW8bit(trained(model), lr=1e-2, min_8bit_size=0)
    losses = train(model, opt, batches, 6)
    assert losses[-1] < losses[0] - 0.1
    assert torch.equal(layer.base_layer.weight, packed)
    assert layer.base_layer.weight.grad is None

    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    lt.quant.quantize_model_(loaded, weights=weights, group=32)
    ids = batches[0]["input_ids"]
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
        lambda: peft.MissConfig(r=4, target_modules=["q_proj"], init_weights="bat"),
    ],
)
def test_adapters_that_read_the_weight_refuse_a_packed_base(
    config: Callable[[], Any], make: Callable[..., nn.Module]
) -> None:
    model = peft.get_peft_model(make(), config())
    with pytest.raises(lt.LowtideValueError, match=r"reads its weight.*q_proj'\s+to skip"):
        lt.quant.quantize_model_(model, weights="int8")
    assert not any(lt.quant.is_quant_weight(p) for p in model.parameters())
    lt.quant.quantize_model_(model, weights="int8", skip=("lm_head", "q_proj"))


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit"])
def test_lora_ga_then_a_packed_base_and_low_bit_states(
    name: str, make: Callable[..., nn.Module], batches: list[dict[str, Any]]
) -> None:
    model = lora(make())
    lt.integrations.peft.lora_ga_(model, batches)
    dense = model(**batches[0]).loss.item()
    lt.quant.quantize_model_(model, weights="int8", group=32)
    assert model(**batches[0]).loss.item() == pytest.approx(dense, rel=1e-2)
    options = {"min_8bit_size": 0} if name == "AdamW8bit" else {}
    losses = train(model, getattr(lt.optim, name)(trained(model), lr=3e-3, **options), batches, 8)
    assert losses[-1] < losses[0] - 0.05


def test_osf_of_peft_stays_orthogonal_under_adam(
    make: Callable[..., nn.Module], batches: list[dict[str, Any]]
) -> None:
    def overlap(constrained: bool) -> float:
        model = peft.get_peft_model(make(), peft.OSFConfig(target_modules=["q_proj", "k_proj", "down_proj"]))
        factors = [p for n, p in model.named_parameters() if "osf_svd_params" in n]
        constraint = lt.integrations.peft.osf_constraint(model) if constrained else None
        opt = lt.optim.AdamW(factors, lr=1e-2, constraint=constraint)
        losses = train(model, opt, batches, 4)
        assert losses[-1] < losses[0]
        worst = 0.0
        for layer in model.modules():
            if hasattr(layer, "osf_svd_params"):
                w = layer.get_base_layer().weight.double()
                u, _, v = torch.linalg.svd(w, full_matrices=False)
                k = w.shape[0] // 2 if w.shape[0] < w.shape[1] else w.shape[1] // 2
                low = layer.osf_svd_params["default"]
                worst = max(worst, float((u[:, :k].T @ low["U_low"].detach().double()).abs().max()))
                worst = max(worst, float((low["V_low"].detach().double() @ v[:k].T).abs().max()))
        return worst

    assert overlap(True) < 1e-5
    assert overlap(False) > 1e-2


def test_osf_arguments_are_named(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(lt.LowtideTypeError, match="must be a PeftModel"):
        lt.integrations.peft.osf_constraint(make())
    with pytest.raises(lt.LowtideValueError, match="no OSF adapter"):
        lt.integrations.peft.osf_constraint(lora(make()))
