# SPDX-License-Identifier: Apache-2.0
"""summary.json: what a run came to, from its metrics."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowtide.train.config import FinetuneConfig


def versions() -> dict[str, str]:
    """Of what the numbers of a run depend on."""
    import torch
    import transformers

    import lowtide

    return {
        "lowtide": lowtide.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def summarize(
    config: FinetuneConfig, records: Sequence[dict[str, Any]], *, status: str, step: int, **facts: Any
) -> dict[str, Any]:
    """The summary of a run: losses before and after, time, memory in bytes, settings and versions.

    `peak_rss` is the largest resident set while training (loading apart, where the kernel can tell);
    `bytes` is the largest counted size of each kind; `seconds_per_step` is the median.
    """
    import torch

    losses = [r["loss"] for r in records if "loss" in r]
    val = [r["val_loss"] for r in records if "val_loss" in r]
    seconds = [r["seconds"] for r in records if "seconds" in r]
    kinds: dict[str, int] = {}
    for record in records:
        for kind, count in record.get("bytes", {}).items():
            kinds[kind] = max(kinds.get(kind, 0), count)
    per_step = statistics.median(seconds) if seconds else None
    return {
        "status": status,
        "step": step,
        "steps": config.steps,
        "val_loss_before": val[0] if val else None,
        "val_loss_after": val[-1] if val else None,
        "train_loss_first": losses[0] if losses else None,
        "train_loss_last": losses[-1] if losses else None,
        "seconds_per_step": per_step,
        "tokens_per_second": config.batch_size * config.seq_len / per_step if per_step else None,
        "peak_rss": max((r["peak_rss"] for r in records if "peak_rss" in r), default=None),
        "bytes": kinds,
        **facts,
        "settings": {**config.to_dict(), "lr": config.peak_lr, "warmup": config.warmup_steps},
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
