# SPDX-License-Identifier: Apache-2.0
"""transformers.Trainer with our optimizers: accumulation, clipping, a schedule, a checkpoint that goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lowtide as lt

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")


class Tokens(torch.utils.data.Dataset):
    """32 sequences of 12 tokens."""

    def __init__(self) -> None:
        self.ids = torch.randint(60, (32, 12), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=60,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def arguments(folder: Path, steps: int, **options: Any) -> Any:
    return transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, max_grad_norm=0.5,
        gradient_accumulation_steps=2, lr_scheduler_type="cosine", use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_steps=1, seed=3, **options,
    )  # fmt: skip


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def optimizer(model: Any, kind: str) -> Any:
    return getattr(lt.optim, kind)(lt.optim.param_groups(model, rank=4, update_proj_gap=2), lr=1e-2)


def test_an_instance_trains_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = make_model()
    trainer = transformers.Trainer(
        whole,
        arguments(tmp_path / "a", 4),
        train_dataset=Tokens(),
        optimizers=(optimizer(whole, "GaLoreAdamW8bit"), None),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert len({log["learning_rate"] for log in logs}) > 2
    assert all(log["grad_norm"] > 0 for log in logs)
    assert not same(whole, make_model())

    # Interrupted after two steps of the same schedule, then continued in another process's place.
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                control.should_save = control.should_training_stop = True

    first = make_model()
    transformers.Trainer(
        first, arguments(tmp_path / "b", 4), train_dataset=Tokens(), optimizers=(optimizer(first, "GaLoreAdamW8bit"), None),
        callbacks=[Stop()],
    ).train()  # fmt: skip
    second = make_model()
    transformers.Trainer(
        second,
        arguments(tmp_path / "b", 4),
        train_dataset=Tokens(),
        optimizers=(optimizer(second, "GaLoreAdamW8bit"), None),
    ).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert same(whole, second)


def test_a_class_and_its_arguments(tmp_path: Path) -> None:
    model = make_model()
    transformers.Trainer(
        model, arguments(tmp_path, 3), train_dataset=Tokens(),
        optimizer_cls_and_kwargs=(lt.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.95)}),
    ).train()  # fmt: skip
    theirs = make_model()
    transformers.Trainer(
        theirs, arguments(tmp_path, 3), train_dataset=Tokens(),
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.95)}),
    ).train()  # fmt: skip
    for a, b in zip(weights(model), weights(theirs), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_layerwise_updates_accumulate_and_clip_as_the_trainer_does(tmp_path: Path) -> None:
    """The Trainer's own clipping has nothing left to clip then: the handle does it."""
    plain, model = make_model(), make_model()
    transformers.Trainer(
        plain, arguments(tmp_path, 3), train_dataset=Tokens(), optimizers=(optimizer(plain, "APOLLO"), None)
    ).train()
    handle = lt.optim.in_backward(optimizer(model, "APOLLO"), model, accumulate=2, max_grad_norm=0.5)
    transformers.Trainer(
        model, arguments(tmp_path, 3), train_dataset=Tokens(), optimizers=(handle, None)
    ).train()
    for a, b, start in zip(weights(plain), weights(model), weights(make_model()), strict=True):
        assert float((a - b).norm()) <= 1e-4 * float((a - start).norm())
