# SPDX-License-Identifier: Apache-2.0
"""A small model and batches of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def make() -> Callable[..., nn.Module]:
    """A two-layer LLaMA of 48 features, the same at each call."""
    transformers = pytest.importorskip("transformers", reason="builds the model (pip install lowtide[demo])")

    def build(tied: bool = False) -> nn.Module:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=tied, use_cache=False,
        )  # fmt: skip
        model: nn.Module = transformers.LlamaForCausalLM(config).eval()
        return model

    return build


@pytest.fixture
def batches() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(64, (2, 16), generator=generator) for _ in range(3)]
    return [{"input_ids": ids, "labels": ids} for ids in tokens]
