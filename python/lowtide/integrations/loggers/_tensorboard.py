# SPDX-License-Identifier: Apache-2.0
"""TensorBoard, through torch's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowtide.errors import LowtideImportError, LowtideRuntimeError
from lowtide.integrations.loggers._sink import Closing, check_step, flatten, plain


class TensorBoard(Closing):
    """Event files that ``tensorboard --logdir FOLDER`` shows. Needs ``pip install 'lowtide[loggers]'``.

    Args:
        folder: where they go; made if missing.
        resume_step: TensorBoard drops what an earlier process logged after this step.
        **options: of :class:`torch.utils.tensorboard.SummaryWriter`.

    Numbers and booleans become scalars, strings become texts, lists and None are left out.
    """

    def __init__(self, folder: str | Path, resume_step: int | None = None, **options: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LowtideImportError(
                "the TensorBoard sink needs torch and tensorboard: pip install 'lowtide[loggers]'"
            ) from error
        if resume_step is not None:
            options.setdefault("purge_step", resume_step + 1)
        self._writer: Any = SummaryWriter(str(Path(folder).expanduser()), **options)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log ``a/b`` for nested values."""
        if self._writer is None:
            raise LowtideRuntimeError("this TensorBoard sink is closed; log before close()")
        step = check_step(step)
        for name, value in flatten(plain(values)).items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            elif isinstance(value, (bool, int, float)):
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
