# SPDX-License-Identifier: Apache-2.0
"""Directional derivatives from losses: which probes a step makes and what is committed of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa._masters import Address
from lowtide.spsa._method import Method
from lowtide.spsa._probes import Probe

#: What a closure returned, as per-sample losses in double; one number counts as one sample.
Losses = Tensor


def to_losses(value: Any) -> Losses:
    """Check what a closure returned: a number, a tensor with one element, or per-sample losses (1-D).

    Raises:
        LowtideTypeError, LowtideValueError: anything else.
    """
    if isinstance(value, (int, float)):
        return torch.tensor([float(value)], dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise LowtideTypeError(
            f"closure must return a number or a tensor of losses, got {type(value).__name__}"
        )
    if not value.dtype.is_floating_point:
        raise LowtideTypeError(f"closure must return floating-point losses, got {value.dtype}")
    if value.ndim > 1 or value.numel() == 0:
        raise LowtideValueError(
            f"closure must return a scalar loss or per-sample losses (1-D, not empty), got shape {tuple(value.shape)}"
        )
    if value.dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"closure returned a {value.dtype} loss: differences of two probes are a few of its last bits. Compute the loss "
            "in float32: F.cross_entropy(logits.float(), targets)",
            RuntimeWarning,
            stacklevel=2,
        )
    return value.detach().reshape(-1).double().cpu()


def mean(losses: Losses) -> float:
    """The mean in double; order of summation fixed."""
    return math.fsum(losses.tolist()) / losses.numel()


@dataclass
class Measured:
    """One step's derivatives: values by slot of the commit, and the mean of all losses seen."""

    values: dict[int, float]
    loss: float
    spread: list[float]


class _Noise:
    """Runs every probe of a step under the same torch random state: dropout and sampling are common noise."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = [(d, torch.cuda.get_rng_state(d)) for d in devices if d.type == "cuda"]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)


#: From per-sample losses of two probes and the distance between them to a derivative.
Reduce = Callable[[Losses, Losses, float], float]


def difference(plus: Losses, minus: Losses, distance: float) -> float:
    """Mean loss there minus mean loss here, over the distance."""
    return (mean(plus) - mean(minus)) / distance


def measure(
    probe: Probe,
    closure: Callable[[], Any],
    method: Method,
    eps: float,
    slots: Sequence[tuple[int, Address]],
    reduce: Reduce = difference,
) -> Measured:
    """Evaluate the directions of a step.

    Args:
        probe: between ``begin`` and ``end``.
        closure: called at each probe, without gradients.
        method: says which estimator.
        eps: distance of the probes.
        slots: (slot, address of its direction).
        reduce: what is made of two probes.

    Returns:
        Values for each slot; those of non-finite losses are non-finite.
    """
    devices = list({t.device for t in probe.live})
    noise = _Noise(devices)
    seen: list[float] = []

    def losses(at: float, address: Address) -> Losses:
        noise.restore()
        result = to_losses(probe.evaluate(closure, at, address))
        seen.append(mean(result))
        return result

    values: dict[int, float] = {}
    base: Losses | None = None
    if slots and (method.estimator != "central" or method.kind == "hizoo"):
        base = losses(0.0, slots[0][1])
    for slot, address in slots:
        plus = losses(eps, address)
        if method.estimator != "central":
            assert base is not None
            values[slot] = reduce(plus, base, eps)
            continue
        minus = losses(-eps, address)
        if method.kind != "hizoo":
            values[slot] = reduce(plus, minus, 2.0 * eps)
            continue
        assert base is not None
        values[2 * slot] = reduce(plus, minus, 2.0 * eps)
        values[2 * slot + 1] = abs(mean(plus) + mean(minus) - 2.0 * mean(base)) / (2.0 * eps * eps)
    loss = math.fsum(seen) / len(seen) if seen else math.nan
    return Measured(values, loss, seen)
