# SPDX-License-Identifier: Apache-2.0
"""LoRA-SB on PEFT adapters: where it starts, what a step does, what is trained, files."""

from __future__ import annotations

import copy
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
RANK, LR = 4, 1e-3
NAME = "base_model.model.model.layers.1.mlp.down_proj"


def adapted(model: nn.Module, **options: Any) -> Any:
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "down_proj"], **options}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def sb(make: Make, batches: Batches, *, config: dict[str, Any] | None = None, **options: Any) -> Any:
    return lt.integrations.peft.lora_sb_(adapted(make(), **(config or {})), batches, lr=LR, **options)


def logits(model: Any, batches: Batches) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=batches[0]["input_ids"]).logits
    return out


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def train(model: Any, batches: Batches, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("alpha", [RANK, 3 * RANK])
@pytest.mark.parametrize("update", ["sign", "gradient"])
def test_it_starts_at_the_first_step_of_full_fine_tuning(
    make: Make, batches: Batches, alpha: int, update: str
) -> None:
    model = sb(make, batches, config={"lora_alpha": alpha}, update=update, svd="exact")
    plain = make()
    for batch in batches:
        (plain(**batch).loss / len(batches)).backward()
    for name, layer in model.named_modules():
        if not isinstance(layer, peft.tuners.lora.LoraLayer):
            continue
        weight = plain.get_submodule(name.removeprefix("base_model.model.")).weight
        step = -LR * (weight.grad.sign() if update == "sign" else weight.grad)
        u, s, vh = torch.linalg.svd(step)
        best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        # 1e-5 of the step: float32, and a gap between neighbouring singular values that the gradients leave.
        torch.testing.assert_close(layer.get_delta_weight("default"), best, rtol=0, atol=1e-4 * float(s[0]))
        with torch.no_grad():
            weight += best
    torch.testing.assert_close(logits(model, batches), logits(plain, batches), rtol=0, atol=1e-4)
    with torch.no_grad():
        losses = [sum(float(m(**b).loss) for b in batches) for m in (make(), model)]
    assert losses[1] < losses[0]


def test_the_randomized_factors_capture_nearly_as_much(make: Make, batches: Batches) -> None:
    norms = []
    for svd in ("exact", "randomized"):
        layer = sb(make, batches, svd=svd).get_submodule(NAME)
        norms.append(float(layer.get_delta_weight("default").norm()))
        B, A = layer.lora_B.default.basis, layer.lora_A.default.weight
        torch.testing.assert_close(B.T @ B, torch.eye(RANK), rtol=0, atol=1e-5)
        torch.testing.assert_close(A @ A.T, torch.eye(RANK), rtol=0, atol=1e-5)
    assert 0.97 * norms[0] < norms[1] < 1.0001 * norms[0]


@pytest.mark.parametrize("alpha", [RANK, 3 * RANK, 1])
def test_a_step_is_the_projected_step_of_full_fine_tuning(make: Make, batches: Batches, alpha: int) -> None:
    model = sb(make, batches, config={"lora_alpha": alpha})
    layer = model.get_submodule(NAME)
    B, A = layer.lora_B.default.basis, layer.lora_A.default.weight
    before = layer.get_delta_weight("default").detach()
    merged = copy.deepcopy(model).merge_and_unload()
    merged.requires_grad_(True)
    merged(**batches[0]).loss.backward()
    G = merged.get_submodule(NAME.removeprefix("base_model.model.")).weight.grad
    model(**batches[0]).loss.backward()
    torch.optim.SGD([layer.lora_B.default.latent], lr=0.5).step()
    moved = layer.get_delta_weight("default").detach() - before
    want = -0.5 * B @ (B.T @ G @ A.T) @ A
    torch.testing.assert_close(moved, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_only_r_is_trained(make: Make, batches: Batches) -> None:
    model = sb(make, batches)
    with model.disable_adapter():  # PEFT makes adapters trainable on the way out
        logits(model, batches)
    model.set_adapter("default")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all(n.endswith("lora_B.default.latent") and p.shape == (RANK, RANK) for n, p in trained.items())
    fixed = {
        n: t.clone()
        for n, t in model.state_dict().items()
        if not n.endswith(("latent", "lora_B.default.weight"))
    }
    train(model, batches, optimizer_of(model))
    after = model.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in fixed.items())


def test_peft_merges_and_loads_a_plain_adapter(make: Make, batches: Batches, tmp_path: Path) -> None:
    model = sb(make, batches, config={"lora_alpha": 2 * RANK})
    train(model, batches, optimizer_of(model))
    model.save_pretrained(tmp_path)
    want = logits(model, batches)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    assert type(loaded.get_submodule(NAME).lora_B.default) is nn.Linear
    # B R is rounded to float32 before it meets A x.
    torch.testing.assert_close(logits(loaded, batches), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        logits(copy.deepcopy(model).merge_and_unload(), batches), want, rtol=0, atol=1e-5
    )


def test_training_goes_on_bit_for_bit(make: Make, batches: Batches, tmp_path: Path) -> None:
    model = sb(make, batches, config={"lora_alpha": 2 * RANK})
    optimizer = optimizer_of(model)
    train(model, batches, optimizer)
    model.save_pretrained(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, batches, optimizer)

    again = peft.PeftModel.from_pretrained(make(), tmp_path, is_trainable=True).eval()
    assert lt.integrations.peft.restore_lora_sb_(again, tmp_path) is again
    optimizer = optimizer_of(again)
    optimizer.load_state_dict(saved)
    train(again, batches, optimizer)
    assert torch.equal(logits(again, batches), logits(model, batches))
    state, want = again.state_dict(), model.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(t, want[n]) for n, t in state.items())


def test_state_dicts_go_round(make: Make, batches: Batches) -> None:
    model, other = sb(make, batches), sb(make, batches[:1])
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, batches), logits(model, batches))
    plain = {k: v for k, v in model.state_dict().items() if "latent" not in k and "basis" not in k}
    with pytest.raises(RuntimeError, match="plain LoRA adapter and this one is LoRA-SB's"):
        other.load_state_dict(plain)


def test_bad_input_changes_nothing(make: Make, batches: Batches, tmp_path: Path) -> None:
    tool = lt.integrations.peft
    model = adapted(make())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for options, words in (
        ({"lr": 0.0}, "lr must be a number > 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be a number > 0"),
        ({"lr": LR, "update": "adam"}, "update must be 'sign' or 'gradient'"),
        ({"lr": LR, "svd": "fast"}, "svd must be"),
        ({"lr": LR, "seed": -1}, "seed must be"),
    ):
        with pytest.raises(lt.LowtideError) as error:
            tool.lora_sb_(model, batches, **options)
        assert words in str(error.value)
    for config, words in (
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "bias in its adapter"),
        ({"lora_alpha": 0}, "scaling of 0"),
        ({"r": 49}, "r must be at most 48"),
    ):
        with pytest.raises(lt.LowtideValueError, match=words):
            sb(make, batches, config=config)
    with pytest.raises(lt.LowtideRuntimeError, match="there is no file"):
        tool.restore_lora_sb_(model, tmp_path)
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(lt.LowtideValueError, match="has no LoRA-SB factors"):
        tool.restore_lora_sb_(model, tmp_path / "plain")
    trained = sb(make, batches)
    trained.save_pretrained(tmp_path / "sb")
    with pytest.raises(lt.LowtideValueError, match="do not multiply to the adapter's weight"):
        tool.restore_lora_sb_(model, tmp_path / "sb")
    with pytest.raises(lt.LowtideValueError, match=r"takes \(48, 2\) and \(2, 2\)"):
        tool.restore_lora_sb_(adapted(make(), r=2), tmp_path / "sb")
    with pytest.raises(lt.LowtideValueError, match="is a FixedLinear already"):
        tool.restore_lora_sb_(trained, tmp_path / "sb")
    file = tmp_path / "sb" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(lt.LowtideRuntimeError, match="it is damaged"):
        tool.restore_lora_sb_(model, tmp_path / "sb")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(lt.LowtideValueError, match="lora_B is not zero"):
        tool.lora_sb_(trained, batches, lr=LR)
