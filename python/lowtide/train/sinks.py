# SPDX-License-Identifier: Apache-2.0
"""Where a run's metrics go beside metrics.jsonl."""

from __future__ import annotations

import hashlib
import importlib
import json
from typing import TYPE_CHECKING, Any

from lowtide.errors import LowtideImportError
from lowtide.train.errors import ConfigError

if TYPE_CHECKING:
    from lowtide.integrations.loggers import Many
    from lowtide.train.config import FinetuneConfig
    from lowtide.train.workspace import Workspace

_PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def check_sinks(names: tuple[str, ...]) -> None:
    """Refuse before the run what would fail at its first step. Raises ConfigError."""
    for name in names:
        try:
            importlib.import_module(_PACKAGES[name])
        except ImportError as error:
            raise ConfigError(f"log: {name} is not installed; run: pip install 'lowtide[loggers]'") from error


def open_sinks(config: FinetuneConfig, workspace: Workspace, identity: dict[str, str], step: int) -> Many:
    """The sinks that ``config.log`` names, for a run that goes on after ``step``."""
    from lowtide.integrations.loggers import Many, TensorBoard, WandB

    sinks: list[Any] = []
    try:
        for name in config.log:
            if name == "tensorboard":
                sinks.append(TensorBoard(workspace.path / "tensorboard", resume_step=step))
            else:
                about = json.dumps([config.frozen(), identity, str(workspace.path.resolve())], sort_keys=True)
                key = hashlib.sha256(about.encode()).hexdigest()[:16]  # one run however often it is resumed
                where, what = workspace.path, config.to_dict()
                sinks.append(WandB(name=where.name, config=what, folder=where, id=key))
    except LowtideImportError:
        Many(*sinks).close()
        raise
    return Many(*sinks)
