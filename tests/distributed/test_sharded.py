# SPDX-License-Identifier: Apache-2.0
"""Optimizers on parameters that FSDP2 shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]

ELEMENTWISE = (
    "AdamW", "AdamW8bit", "AdamW4bit", "AdaBelief8bit", "DiffGrad8bit", "Lion8bit", "SGD8bit", "SGD", "SignSGD", "Signum",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_shards_step_with_the_bits_of_the_whole(gang: Run, name: str, dtype: str) -> None:
    gang("sharded", "elementwise", name, dtype)


LOW_RANK = (
    "APOLLO", "APOLLO rademacher", "APOLLO hadamard", "APOLLO tensor", "APOLLOMini", "FRUGAL", "FRUGAL hadamard",
    "FRUGAL random", "Fira's residual", "GaLore's, 8 bits", "rotated", "carried over",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["right", "left", pytest.param("std", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LOW_RANK)
def test_seeded_subspaces_of_shards(gang: Run, name: str, side: str, dtype: str) -> None:
    gang("sharded", "low_rank", name, side, dtype)


@pytest.mark.parametrize("case", ["refusals", "nonfinite_raise", "meshes", "measured"])
def test_shards(gang: Run, case: str) -> None:
    gang("sharded", case)
