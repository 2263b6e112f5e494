# SPDX-License-Identifier: Apache-2.0
"""Models and optimizers that FSDP2 shards, saved by torch.distributed.checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]

#: Rows of the first layer: shards of whole blocks; shards that share a block (73 x 64 elements) and are not as many on each.
WIDTHS = (128, 73)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "APOLLO", "FRUGAL"])
def test_resumes_where_it_stopped(gang: Run, name: str, width: int, tmp_path: Path) -> None:
    gang("checkpoints", "resume", name, width, str(tmp_path))


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "AdamW4bit"])
def test_two_processes_into_one(gang: Run, name: str, tmp_path: Path) -> None:
    gang("checkpoints", "reshard", name, 128, str(tmp_path))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit"])
def test_gathered_dictionaries(gang: Run, name: str, width: int) -> None:
    gang("checkpoints", "gathered", name, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_one_process_into_two(gang: Run, width: int) -> None:
    gang("checkpoints", "unsharded_into_shards", "AdamW8bit", width)


@pytest.mark.parametrize("name", ["AdamW8bit", "APOLLO"])
def test_state_is_plain(gang: Run, name: str) -> None:
    gang("checkpoints", "plain_state", name)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "AdamW4bit"])
def test_fully_shard_has_the_bits_of_one_process(gang: Run, name: str, width: int) -> None:
    gang("checkpoints", "whole_bits", name, width)
