# SPDX-License-Identifier: Apache-2.0
"""Where one backward pass ends and which parameters get their gradient in more than one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class BackwardPass:
    """Calls ``on_end`` once at the end of each backward pass in which :meth:`begin` was called.

    Reentrant activation checkpointing runs backward passes within one: only the outermost counts. An exception out of
    ``on_end`` comes out of ``backward()``.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.open = False
        self._on_end = on_end

    def begin(self) -> None:
        """To be called from a gradient hook; all calls but the first of a pass do nothing."""
        if not self.open:
            self.open = True
            _queue(self._end)

    def forget(self) -> None:
        """The pass was broken off by an exception: its end will not come."""
        self.open = False

    def _end(self) -> None:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            if self.open:
                self.open = False
                self._on_end()
            return

        # A pass within `node` of another: look again when that node is through.
        def through(*_: Any) -> None:
            handle.remove()
            _queue(self._end)

        handle = node.register_hook(through)


def _queue(callback: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def shared_parameters(model: nn.Module) -> set[int]:
    """Ids of parameters that more than one module holds, as a tied embedding and output head."""
    held: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            held[id(p)] = held.get(id(p), 0) + 1
    return {key for key, count in held.items() if count > 1}
