# SPDX-License-Identifier: Apache-2.0
"""Runs without gradients: the optimizers of `lowtide.spsa` behind the calls that the training loop makes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from lowtide.train.config import FinetuneConfig
    from lowtide.train.methods import Method


class ZerothOrderUpdater:
    """The counterpart of `methods.Updater` whose step evaluates the loss twice and leaves no gradient.

    `config.eps` is the distance of the two probes, `config.grad_clip` the largest slope that counts. The run's log is `log`:
    `lowtide replay MODEL LOG` makes the trained weights from it.
    """

    def __init__(self, model: nn.Module, config: FinetuneConfig, method: Method, log: Path) -> None:
        import lowtide.spsa

        kind: Any = getattr(lowtide.spsa, method.optimizer)
        options: dict[str, Any] = {"weight_decay": config.weight_decay, "seed": config.seed, "log": log}
        self._log, self._rewound = log, False
        if config.eps is not None:
            options["eps"] = config.eps
        if config.grad_clip is not None:
            options["clip"] = config.grad_clip
        if method.optimizer == "QZO":
            self._optimizer: Any = kind(model, config.peak_lr, **options)
        else:
            self._optimizer = kind(model.named_parameters(), config.peak_lr, module=model, **options)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def minimize(self, closure: Callable[[], Any]) -> float:
        """One step; returns the mean of the two losses. A loss that is not finite moves nothing."""
        if not self._rewound:
            self._rewind()
        return float(self._optimizer.step(closure))

    def _rewind(self) -> None:
        """After a crash the log is ahead of the last checkpoint; its steps will be made again."""
        from lowtide.spsa.log import truncate

        if self._log.exists():
            truncate(self._log, self._optimizer.t)
        self._rewound = True

    def close(self) -> None:
        """Close the log."""
        self._optimizer.close()

    def state_bytes(self) -> dict[str, int]:
        """Bytes beside the weights: the buffer that perturbed weights lie in."""
        return {"states": 0, "basis": 0, "probe": int(self._optimizer.state_bytes()["probe"])}

    def measured(self, due: bool) -> contextlib.AbstractContextManager[object]:
        """Nothing is to be measured: the log has the slopes."""
        return contextlib.nullcontext()

    def statistics(self) -> dict[str, Any]:
        """There are neither subspaces nor rounded weights."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, a few KB of plain values. The log is flushed: it must not end before a checkpoint."""
        log = self._optimizer.run_log
        if log is not None and log.writer is not None:
            log.writer.flush()
        state: dict[str, Any] = self._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state of `state_dict`."""
        self._optimizer.load_state_dict(state)
