# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a run go: JSON lines, TensorBoard, Weights & Biases, or several of them.

>>> import tempfile, lowtide as lt
>>> from lowtide.integrations import loggers
>>> path = tempfile.mkdtemp() + "/metrics.jsonl"
>>> with loggers.Many(loggers.JSONL(path)) as sink:
...     sink.log(1, {"loss": 2.5, "bytes": {"states": 4096}})
>>> open(path).read()
'{"step": 1, "loss": 2.5, "bytes": {"states": 4096}}\\n'
"""

from __future__ import annotations

from lowtide.integrations.loggers._jsonl import JSONL
from lowtide.integrations.loggers._sink import Many, Sink, flatten
from lowtide.integrations.loggers._tensorboard import TensorBoard
from lowtide.integrations.loggers._wandb import WandB

__all__ = ["JSONL", "Many", "Sink", "TensorBoard", "WandB", "flatten"]
