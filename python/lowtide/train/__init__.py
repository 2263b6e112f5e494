# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning runs that can be stopped, killed and continued bit for bit.

    from lowtide.train import Finetuner, FinetuneConfig

    config = FinetuneConfig(model="SmolLM2-135M", data="shakespeare.txt", out="run", method="qgalore", steps=200)
    summary = Finetuner(config).run()
    print(summary["val_loss_before"], summary["val_loss_after"], summary["peak_rss"])

The command `lowtide finetune` is this and nothing more. Needs torch and transformers (`pip install lowtide[demo]`),
imported when a run starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowtide.train.config import FinetuneConfig
from lowtide.train.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    ModelError,
    OutputError,
    missing_package,
)
from lowtide.train.methods import METHODS

if TYPE_CHECKING:
    from lowtide.train.finetuner import Finetuner as Finetuner

__all__ = [
    "METHODS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FinetuneConfig",
    "Finetuner",
    "ModelError",
    "OutputError",
]


def __getattr__(name: str) -> Any:
    if name == "Finetuner":  # the loop needs torch; settings and errors do not
        try:
            from lowtide.train.finetuner import Finetuner
        except ImportError as error:
            raise missing_package(error.name, "fine-tuning") from error
        return Finetuner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
