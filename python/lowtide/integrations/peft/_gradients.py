# SPDX-License-Identifier: Apache-2.0
"""Mean gradients of frozen weights over a few batches, a handful of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError

Loss = Callable[[Any, Any], Tensor]


def model_loss(model: Any, batch: Any) -> Tensor:
    """The loss that a transformers model returns for a batch with labels: ``model(**batch).loss``."""
    loss: Tensor = model(**batch).loss
    return loss


def mean_gradients(
    model: nn.Module,
    weights: Sequence[tuple[str, nn.Parameter]],
    batches: Iterable[Any],
    loss: Loss,
    *,
    per_pass: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the mean over ``batches`` of each weight's gradient, float32 on the CPU, of the weight's shape.

    Each gradient is added to its sum and freed during the backward pass, as soon as it is there. Only these weights
    require grad meanwhile; flags and gradients that were there are put back. The model computes in the mode it is in.

    Args:
        model: passed to ``loss``.
        weights: names and parameters, each once.
        batches: at least one. A list, or another iterable that can be gone through once per pass.
        loss: ``loss(model, batch)`` gives a scalar.
        per_pass: so many gradients are summed in one pass over the batches, and those sums are what is in memory;
            ``None``: all of them in one pass.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, no batch, a loss that is no finite scalar or does not depend on a
            weight, a gradient that is not finite.
    """
    if per_pass is not None and (not isinstance(per_pass, int) or isinstance(per_pass, bool) or per_pass < 1):
        raise LowtideValueError(f"per_pass must be an integer >= 1 or None, got {per_pass!r}")
    if not callable(loss):
        raise LowtideTypeError(f"loss must be a function of model and batch, got {type(loss).__name__}")
    size = per_pass or max(1, len(weights))
    if size < len(weights) and iter(batches) is batches:
        raise LowtideTypeError(
            f"batches must be a list, got {type(batches).__name__}: {len(weights)} weights with per_pass={per_pass} go "
            "through them more than once"
        )
    for start in range(0, len(weights), size):
        sums = _sums(model, weights[start : start + size], batches, loss)
        for name in list(sums):
            yield name, sums.pop(name)


def _sums(
    model: nn.Module, weights: Sequence[tuple[str, nn.Parameter]], batches: Iterable[Any], loss: Loss
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[[Tensor], None]:
        def hook(p: Tensor) -> None:
            if p.grad is not None:
                grad = p.grad.detach().to("cpu", torch.float32)
                # A copy: the first gradient may be a view of what autograd holds.
                sums[name] = sums[name].add_(grad) if name in sums else grad.clone()
            p.grad = None

        return hook

    count = 0
    with ExitStack() as stack:
        stack.enter_context(_only_these([p for _, p in weights], model))
        for name, p in weights:
            handle = p.register_post_accumulate_grad_hook(hook_of(name))  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        for batch in batches:
            with torch.enable_grad():
                value = loss(model, batch)
                if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
                    what = (
                        f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                    )
                    raise LowtideTypeError(f"loss must give a scalar tensor, got {what}")
                if not bool(value.detach().isfinite()):
                    raise LowtideValueError(f"loss is {value.item()} on batch {count}; leave that batch out")
                if not value.requires_grad:
                    raise LowtideValueError("loss depends on none of the weights; do not detach it")
                value.backward()  # type: ignore[no-untyped-call]
            count += 1
    if count == 0:
        raise LowtideValueError("batches must hold at least one batch, got none")
    for name, _ in weights:
        if name not in sums:
            raise LowtideValueError(f"loss does not depend on {name}; leave it out of target_modules")
        if not bool(sums[name].isfinite().all()):
            raise LowtideRuntimeError(f"the gradient of {name} is not finite; use float32 weights")
        sums[name] /= count
    return sums


@contextmanager
def _only_these(wanted: Sequence[nn.Parameter], model: nn.Module) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    grads = [(p, p.grad) for p in wanted]
    chosen = {id(p) for p in wanted}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in chosen)
        for p, _ in grads:
            p.grad = None
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for p, grad in grads:
            p.grad = grad


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model alone; PEFT makes adapters trainable on the way out, so their flags are put back."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
