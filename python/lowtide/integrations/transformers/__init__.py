# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with lowtide: optimizers, packed weights, training without gradients, run directories.

Needs ``pip install 'lowtide[demo]'``. See docs/integrations/transformers.md.
"""

from __future__ import annotations

import importlib.util

from lowtide.errors import LowtideImportError

try:
    import transformers  # noqa: F401

    if importlib.util.find_spec("accelerate") is None:
        raise ImportError("accelerate")
except ImportError as error:
    raise LowtideImportError(
        "lowtide.integrations.transformers needs transformers and accelerate: pip install 'lowtide[demo]'"
    ) from error

from lowtide.integrations.transformers._checkpoint import last_checkpoint
from lowtide.integrations.transformers._optimizer import LayerwiseOptimizer, optimizer_cls_and_kwargs
from lowtide.integrations.transformers._run import RunCallback
from lowtide.integrations.transformers._weights import prepare_model, restore_model
from lowtide.integrations.transformers._zeroth_order import ZOOptimizer, ZOTrainer

__all__ = [
    "LayerwiseOptimizer",
    "RunCallback",
    "ZOOptimizer",
    "ZOTrainer",
    "last_checkpoint",
    "optimizer_cls_and_kwargs",
    "prepare_model",
    "restore_model",
]
