# SPDX-License-Identifier: Apache-2.0
"""The error of a quantized weight against the weight it came from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_recording = False
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightError:
    """Energies of a weight and of its error.

    Attributes:
        signal: sum of squares of the reference.
        noise: sum of squares of the difference.
        largest: largest absolute difference.
        worst: (row, group) with the lowest ratio of signal to noise; ``None`` if every group is exact.
        worst_sqnr: that ratio in dB; -inf for a group of zeros that did not stay zero.
    """

    signal: float
    noise: float
    largest: float
    worst: tuple[int, int] | None
    worst_sqnr: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, 10 log10(signal / noise), in dB; inf if exact."""
        return decibels(self.signal, self.noise)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise)."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@torch.no_grad()
def weight_error(reference: Tensor, quantized: Tensor, group: int) -> WeightError:
    """Compare two tensors (..., cols) in groups along the last dimension, in float64 and a million elements at a time."""
    cols = reference.shape[-1]
    rows = math.prod(reference.shape[:-1])
    a, b = reference.detach().reshape(rows, cols), quantized.detach().reshape(rows, cols)
    signal = noise = largest = 0.0
    worst: tuple[int, int] | None = None
    worst_ratio = math.inf
    step = max(1, _CHUNK // max(1, cols))
    pad = (0, -cols % group)
    for at in range(0, rows if cols else 0, step):
        w = a[at : at + step].double()
        e = w - b[at : at + step].double()
        largest = max(largest, float(e.abs().max()))
        n = torch.nn.functional.pad(e.square(), pad).reshape(len(w), -1, group).sum(-1)
        s = torch.nn.functional.pad(w.square(), pad).reshape(len(w), -1, group).sum(-1)
        signal, noise = signal + float(s.sum()), noise + float(n.sum())
        ratio = torch.where(n > 0, s / n, torch.inf)
        low = int(ratio.argmin())
        if float(ratio.view(-1)[low]) < worst_ratio:
            worst_ratio = float(ratio.view(-1)[low])
            worst = (at + low // ratio.shape[1], low % ratio.shape[1])
    worst_sqnr = math.inf if worst is None else decibels(worst_ratio, 1.0)
    return WeightError(signal, noise, largest, worst, worst_sqnr)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """While it lasts, quantized layers remember their error: :func:`report` needs no reference model then.

    It costs one decoding of each layer, and nothing afterwards but five numbers. They tell the error at the moment of
    quantizing; training the weights in place does not change them.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    >>> with lt.quant.recording():
    ...     model = lt.quant.quantize_model_(model, weights="int8", group=64)
    >>> lt.quant.report(model).layers[0].error.sqnr > 35
    True
    """
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def note(layer: torch.nn.Module, reference: Tensor) -> None:
    """Called where a layer is quantized: remember its error if someone is recording."""
    if _recording:
        quantized = layer.dequantize()  # type: ignore[operator]
        layer.weight_error = weight_error(reference, quantized, layer.group)  # type: ignore[assignment, arg-type]
