# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases, offline unless one asks for more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideValueError
from lowtide.integrations.loggers._sink import Closing, check_step, flatten, plain

_MODES = ("offline", "online", "disabled")


class WandB(Closing):
    """A run of Weights & Biases. Needs ``pip install 'lowtide[loggers]'``.

    Args:
        project: its project.
        mode: ``"offline"`` writes to ``folder``/wandb and opens no connection (``wandb sync`` uploads it later), whatever
            ``WANDB_MODE`` says: until :meth:`close`, W&B's own telemetry, which it sends even then, is off
            (``WANDB_ERROR_REPORTING=false``). ``"online"`` needs an account; ``"disabled"`` does nothing.
        name: of the run. config: settings, a mapping. folder: where files go, made if missing.
        **options: of :func:`wandb.init`, e.g. ``id="..." , resume="must"``.

    Neither the console nor the git state nor the machine's load are recorded unless ``options["settings"]`` asks for them.
    """

    def __init__(
        self,
        project: str = "lowtide",
        mode: str = "offline",
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        folder: str | Path = ".",
        **options: Any,
    ) -> None:
        if mode not in _MODES:
            raise LowtideValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        try:
            import wandb
        except ImportError as error:
            raise LowtideImportError("the W&B sink needs wandb: pip install 'lowtide[loggers]'") from error
        where = Path(folder).expanduser()
        where.mkdir(parents=True, exist_ok=True)
        if "settings" not in options:
            options["settings"] = wandb.Settings(
                console="off", disable_git=True, save_code=False, silent=True, x_disable_stats=True
            )
        self._run: Any = None
        self._environment = contextlib.ExitStack()
        if mode != "online":
            self._environment.enter_context(_variable("WANDB_ERROR_REPORTING", "false"))
        try:
            start: Any = wandb.init  # its types differ from version to version
            self._run = start(
                project=project, mode=mode, name=name, config=dict(config or {}), dir=str(where), **options
            )
        except BaseException:
            self._environment.close()
            raise
        #: Where an offline run lies, for ``wandb sync``.
        self.folder = Path(self._run.dir).parent if mode != "disabled" else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log ``a/b`` for nested values; W&B ignores steps that go back."""
        if self._run is None:
            raise LowtideRuntimeError("this W&B sink is closed; log before close()")
        flat = {k: v for k, v in flatten(plain(values)).items() if v is not None}
        self._run.log(flat, step=check_step(step))

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            try:
                self._run.finish()
            finally:
                self._run = None
                self._environment.close()


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
