# SPDX-License-Identifier: Apache-2.0
"""LoRA-GA on PEFT adapters: the function is unchanged, the factors are the paper's, files go round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

peft = pytest.importorskip("peft", reason="adapters are PEFT's (pip install lowtide[peft])")
Make = Callable[..., nn.Module]
Batches = list[dict[str, Any]]
RANK = 4


def adapted(model: nn.Module, **options: Any) -> Any:
    settings = {"r": RANK, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], **options}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def logits(model: Any, batches: Batches) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=batches[0]["input_ids"]).logits
    return out


def site(model: Any, name: str = "model.layers.1.mlp.down_proj") -> Any:
    return model.get_submodule(f"base_model.model.{name}")


def gradient(make: Make, batches: Batches, name: str = "model.layers.1.mlp.down_proj") -> Tensor:
    """The mean gradient of one weight, plainly."""
    model = make()
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    grad = model.get_submodule(name).weight.grad
    assert grad is not None
    return grad


def train(model: Any, batches: Batches, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr", "random"])
@pytest.mark.parametrize("scale", ["stable", "gd", "unit", "weightS"])
def test_the_function_is_unchanged(make: Make, batches: Batches, direction: str, scale: str) -> None:
    model = adapted(make())
    before = logits(model, batches)
    report = lt.integrations.peft.lora_ga_(model, batches, direction=direction, scale=scale)
    # W0 - s B A + s B A: two float32 roundings a weight, through two layers.
    torch.testing.assert_close(logits(model, batches), before, rtol=0, atol=1e-5)
    assert len(report.layers) == 4
    assert all(0 < e <= 1 + 1e-5 for e in report.energy)
    assert all(o > 1e-3 for o in report.offset)
    with model.disable_adapter():  # what moved is in the adapter
        assert float((logits(model, batches) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_the_factors_are_singular_vectors_of_the_mean_gradient(
    make: Make, batches: Batches, svd: str
) -> None:
    model = adapted(make(), use_rslora=True)  # s = 12 / 2
    original = site(model).get_base_layer().weight.detach().clone()
    lt.integrations.peft.lora_ga_(model, batches, svd=svd, gamma=9.0)
    u, _, vh = torch.linalg.svd(gradient(make, batches), full_matrices=False)
    layer = site(model)
    factor = 48**0.25 / 3
    A, B = layer.lora_A.default.weight / factor, layer.lora_B.default.weight / factor
    # Up to signs. Randomized: within 1e-2, for neighbours in a flat spectrum mix.
    tolerance = 1e-4 if svd == "exact" else 1e-2
    torch.testing.assert_close((A @ vh[:RANK].T).abs(), torch.eye(RANK), rtol=0, atol=tolerance)
    torch.testing.assert_close((u[:, RANK : 2 * RANK].T @ B).abs(), torch.eye(RANK), rtol=0, atol=tolerance)
    offset = 6.0 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(layer.get_base_layer().weight, original - offset)


def test_the_first_step_follows_full_fine_tuning(make: Make, batches: Batches) -> None:
    """The paper's theorem 3.1: dW = -lr s² (B Bᵀ G + G Aᵀ A), of which rank 2 r is best where B and A are disjoint."""
    G = gradient(make, batches)
    _, s, _ = torch.linalg.svd(G)
    best = float(s[: 2 * RANK].square().sum() / s.square().sum())
    shares = {}
    for method in ("ga", "zero"):
        model = adapted(make())
        if method == "ga":
            lt.integrations.peft.lora_ga_(model, batches, scale="unit", svd="exact")
        layer = site(model)
        A, B = (x.default.weight for x in (layer.lora_A, layer.lora_B))
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
        step = B.detach() @ A.grad + B.grad @ A.detach()
        shares[method] = float(torch.sum(step * G) ** 2 / (step.square().sum() * G.square().sum()))
    assert abs(shares["ga"] - best) < 1e-3
    assert shares["zero"] < 0.7 * best


def test_every_bit_is_the_same_in_small_passes(make: Make, batches: Batches) -> None:
    weights = []
    for per_pass in (None, 1, 3):
        model = adapted(make())
        lt.integrations.peft.lora_ga_(model, batches, per_pass=per_pass)
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
    for other in weights[1:]:
        assert all(torch.equal(w, other[n]) for n, w in weights[0].items())


def test_flags_gradients_and_mode_are_as_before(make: Make, batches: Batches) -> None:
    model = adapted(make()).train()
    model.requires_grad_(False)
    lora = site(model).lora_A.default.weight.requires_grad_(True)
    base = site(model).get_base_layer().weight
    base.grad = torch.ones_like(base)
    lt.integrations.peft.lora_ga_(model, batches)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        next(n for n, p in model.named_parameters() if p is lora)
    ]
    assert torch.equal(base.grad, torch.ones_like(base))
    assert model.training
    assert not site(model).disable_adapters


def test_saved_as_a_plain_lora_of_twice_the_rank(make: Make, batches: Batches, tmp_path: Path) -> None:
    model = adapted(make())
    lt.integrations.peft.lora_ga_(model, batches)
    model.save_pretrained(tmp_path / "initial")
    train(model, batches)
    model.save_pretrained(
        tmp_path / "final", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    trained = logits(model, batches)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path / "final").eval()
    assert site(loaded).r["default"] == 2 * RANK
    # One float32 rounding of W0 - s B A, and sums of twice as many terms.
    torch.testing.assert_close(logits(loaded, batches), trained, rtol=0, atol=1e-4)
    wrong = peft.PeftModel.from_pretrained(make(), tmp_path / "initial").eval()
    assert float((logits(wrong, batches) - logits(make(), batches)).abs().max()) > 1e-3  # why that is needed


def test_against_pefts_own(make: Make, batches: Batches) -> None:
    """peft's factors are ours but for the singular values in B, which are in neither the paper nor its code."""
    ours = adapted(make())
    lt.integrations.peft.lora_ga_(ours, batches, scale="unit", svd="exact")
    model = make()
    config = peft.LoraConfig(
        r=RANK, lora_alpha=12, target_modules=["q_proj", "down_proj"], init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=int(48**0.5)),
    )  # fmt: skip

    def backward() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    peft.tuners.lora.loraga.preprocess_loraga(model, config, backward)
    theirs = peft.get_peft_model(model, config)
    A, B = site(ours).lora_A.default.weight, site(ours).lora_B.default.weight
    C, D = site(theirs).lora_A.default.weight, site(theirs).lora_B.default.weight
    torch.testing.assert_close((A @ C.T).abs(), torch.eye(RANK), rtol=0, atol=1e-2)
    cosines = torch.nn.functional.normalize(B, dim=0).T @ torch.nn.functional.normalize(D, dim=0)
    torch.testing.assert_close(cosines.abs(), torch.eye(RANK), rtol=0, atol=1e-2)
    sizes = D.norm(dim=0)
    assert float(sizes[0] / sizes[-1]) > 1.05
    torch.testing.assert_close(B.norm(dim=0), torch.ones(RANK))


def test_bfloat16_adapters(make: Make, batches: Batches) -> None:
    model = adapted(make().bfloat16())
    before = logits(model, batches)
    lt.integrations.peft.lora_ga_(model, batches)
    assert float((logits(model, batches) - before).abs().max()) < 0.05  # one bfloat16 rounding of each weight


def test_bad_input_changes_nothing(make: Make, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    ga = lt.integrations.peft.lora_ga_
    model = adapted(make())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def infinite(model: Any, batch: Any) -> Tensor:
        return model(**batch).loss / 0  # type: ignore[no-any-return]

    def spoilt(model: Any, batch: Any) -> Tensor:
        loss: Tensor = model(**batch).loss
        loss.register_hook(lambda g: g * float("nan"))
        return loss

    for arguments, options, words in (
        ((make(), batches), {}, "must be a peft.PeftModel, got LlamaForCausalLM"),
        ((model, batches), {"direction": "BrAr"}, "direction must be one of ArB2r"),
        ((model, batches), {"scale": "big"}, "scale must be one of stable"),
        ((model, batches), {"gamma": 0}, "gamma must be a number > 0, got 0"),
        ((model, batches), {"svd": "fast"}, "svd must be"),
        ((model, batches), {"adapter": "other"}, "adapter must be one of 'default', got 'other'"),
        ((model, batches), {"per_pass": 0}, "per_pass must be an integer >= 1"),
        ((model, iter(batches)), {"per_pass": 1}, "batches must be a list"),
        ((model, []), {}, "batches must hold at least one batch"),
        ((model, batches, lambda m, b: m(**b).logits), {}, "loss must give a scalar tensor"),
        ((model, batches, infinite), {}, "loss is inf on batch 0"),
        ((model, batches, spoilt), {}, "is not finite"),
        ((model, batches, lambda m, b: m(**b).loss.detach()), {}, "loss depends on none of the weights"),
    ):
        with pytest.raises(lt.LowtideError) as error:
            ga(*arguments, **options)
        assert words in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())

    for config, words in (
        ({"r": 30}, "r must be at most 24 for"),
        ({"use_dora": True}, "variant such as DoRA"),
        ({"init_lora_weights": False}, "lora_B is not zero"),
        ({"target_modules": ["embed_tokens"]}, "only nn.Linear can be initialised"),
    ):
        with pytest.raises(lt.LowtideError, match=words):
            ga(adapted(make(), **config), batches)
    with pytest.raises(lt.LowtideValueError, match="shares its weight with"):
        ga(adapted(make(tied=True), target_modules=["lm_head"]), batches)
    with pytest.raises(lt.LowtideTypeError, match="needs LoRA"):
        ga(peft.get_peft_model(make(), peft.MissConfig(r=4, target_modules=["q_proj"])), batches)
    ga(model, batches)
    with pytest.raises(lt.LowtideValueError, match="make a fresh"):
        ga(model, batches)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(lt.LowtideImportError, match=r"pip install 'lowtide\[peft\]'"):
        ga(model, batches)
