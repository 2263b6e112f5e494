# SPDX-License-Identifier: Apache-2.0
"""Every kind of optimizer under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]

KINDS = (
    "AdamW", "AdamW8bit", "AdamW4bit", "Adafactor", "AdamMini", "GaLoreAdamW", "QGaLoreAdamW", "FiraAdamW", "APOLLO",
    "APOLLOMini", "DCTAdamW", "LDAdam", "FRUGAL", "Flora", "GRASSAdamW",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_replicas_are_equal_and_resume(gang: Run, name: str, dtype: str) -> None:
    gang("replicas", "resumed", name, dtype)


@pytest.mark.parametrize("case", ["packed_weights", "spsa"])
def test_replicas(gang: Run, case: str) -> None:
    gang("replicas", case)


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "AdamW4bit", "Lion8bit"])
def test_zero_redundancy_optimizer(gang: Run, name: str) -> None:
    gang("replicas", "zero_redundancy", name)


@pytest.mark.parametrize("name", KINDS)
def test_checkpoints_load_in_place(gang: Run, name: str, tmp_path: Path) -> None:
    gang("replicas", "checkpointed", name, str(tmp_path))
