# SPDX-License-Identifier: Apache-2.0
"""A LLaMA of a few thousand weights, tokens for it, and Trainers that are interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate (pip install lowtide[demo])")


class Tokens(torch.utils.data.Dataset):
    """24 sequences of 12 tokens."""

    def __init__(self) -> None:
        self.ids = torch.randint(60, (24, 12), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


class Stop(transformers.TrainerCallback):
    """Saves after two steps and ends the run."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            control.should_save = control.should_training_stop = True


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def stop() -> type[Stop]:
    return Stop


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """One layer of 32 features, the same at each call."""

    def build(**options: Any) -> Any:
        torch.manual_seed(0)
        settings = {"tie_word_embeddings": True, **options}
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=60, pad_token_id=0,
            attention_bias=True, **settings,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    return build


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., Any]:
    """Four steps of two batches of two, clipped, on a cosine."""

    def build(folder: str = "out", **options: Any) -> Any:
        settings = {
            "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_grad_norm": 0.5, "weight_decay": 0.1,
            "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "use_cpu": True, "report_to": [], "save_strategy": "no",
            "disable_tqdm": True, "logging_steps": 1, "seed": 3, **options,
        }  # fmt: skip
        return transformers.TrainingArguments(str(tmp_path / folder), **settings)

    return build
