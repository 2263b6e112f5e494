# SPDX-License-Identifier: Apache-2.0
"""Running statistics of normalisation layers, kept as they are while a loss is evaluated at other weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStats:
    """Remembers the running statistics of each normalisation layer that runs, and puts them back.

    Layers are noticed by a hook that all modules of the process share while :meth:`watch` is in force; those of a
    compiled model, which hooks do not see, are named by ``model``.

    Args:
        model: its layers are remembered at once; None: each at its first call.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._handle: Any = None

    def watch(self) -> None:
        """From now on remember statistics before they change."""
        self.restore()
        for module in [] if self._model is None else self._model.modules():
            self._note(module)
        self._handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: self._note(module)
        )

    def _note(self, module: nn.Module) -> None:
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            for buffer in (module.running_mean, module.running_var, module.num_batches_tracked):
                if buffer is not None and id(buffer) not in self._saved:
                    self._saved[id(buffer)] = (buffer, buffer.clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was remembered, and stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for buffer, value in self._saved.values():
            buffer.copy_(value)
        self._saved.clear()

    def __enter__(self) -> RunningStats:
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
