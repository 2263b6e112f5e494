# SPDX-License-Identifier: Apache-2.0
"""Updating each parameter as soon as its gradient is there, so that only one gradient lives at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError
from lowtide.optim import weights as weight_store
from lowtide.optim.engine import Composed


class InBackward:
    """Handle of :func:`in_backward`: looks like an optimizer to a training loop and a scheduler.

    Attributes:
        optimizer: the optimizer that does the updates; give *it* to learning-rate schedulers.
        peak_gradient_bytes: most gradient bytes seen alive at once since :meth:`zero_grad`.
    """

    def __init__(self, optimizer: Composed) -> None:
        self.optimizer = optimizer
        self.peak_gradient_bytes = 0
        self._handles: list[Any] = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                if weight_store.is_quantized(p):
                    p.quant.grad_hook = self._on_gradient
                else:
                    self._handles.append(p.register_post_accumulate_grad_hook(self._on_gradient))

    def _on_gradient(self, p: Tensor) -> None:
        grad = weight_store.gradient(p)
        if grad is None:
            return
        self.peak_gradient_bytes = max(self.peak_gradient_bytes, grad.nbytes)
        self.optimizer.update([p])
        weight_store.release(p)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: change ``group["lr"]`` before the backward pass it should apply to."""
        return self.optimizer.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Does nothing but call ``closure``: the updates happened during its backward pass."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients that are left over (there are none after a complete backward pass)."""
        for group in self.param_groups:
            for p in group["params"]:
                weight_store.release(p)
        self.peak_gradient_bytes = 0

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state."""
        self.optimizer.load_state_dict(state_dict)

    def state_bytes(self) -> dict[str, int]:
        """Bytes by kind; gradients are the most that lived at once."""
        return {**self.optimizer.state_bytes(), "gradients": self.peak_gradient_bytes}

    @property
    def skipped_blocks(self) -> int:
        """See :attr:`Composed.skipped_blocks`."""
        return self.optimizer.skipped_blocks

    def close(self) -> None:
        """Remove the hooks; gradients accumulate again as usual."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for group in self.param_groups:
            for p in group["params"]:
                if weight_store.is_quantized(p):
                    p.quant.grad_hook = None


def in_backward(opt_factory: Callable[[nn.Module], Composed] | Composed, model: nn.Module) -> InBackward:
    """Update parameters inside the backward pass and free each gradient at once.

    Args:
        opt_factory: called with ``model``, returns an optimizer of :mod:`lowtide.optim`; or such an optimizer.
        model: the module whose parameters it trains.

    Returns:
        A handle with the methods of an optimizer. One backward pass is one step: gradients are not accumulated over
        micro-batches, and a global gradient norm does not exist.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Linear(8, 4)
    >>> opt = lt.optim.in_backward(lambda m: lt.optim.AdamW(m.parameters(), lr=1e-3), model)
    >>> model(torch.ones(2, 8)).sum().backward(); opt.step()
    >>> model.weight.grad is None
    True
    """
    optimizer = opt_factory if isinstance(opt_factory, Composed) else opt_factory(model)
    if not isinstance(optimizer, Composed):
        raise LowtideTypeError(
            f"opt_factory must return an optimizer of lowtide.optim, got {type(optimizer).__name__}"
        )
    return InBackward(optimizer)
