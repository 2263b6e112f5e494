# SPDX-License-Identifier: Apache-2.0
"""What can only be seen within a step: how much of a gradient its subspace holds, and what rounding made of an update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowtide.optim import weights as weight_store
from lowtide.optim.bases import Basis
from lowtide.optim.norms import channel_energy, total


@dataclass(frozen=True)
class Energy:
    """Of the gradient of one matrix in the step with this (1-based) number: squared norms within the subspace and in all."""

    step: int
    captured: float
    whole: float


@dataclass(frozen=True)
class Rounding:
    """Of the sampled elements of one low-bit weight in the step with this (1-based) number.

    Attributes:
        stalled, sampled: elements whose code the step left as it was, and all.
        signal, noise: squared norms of the weight before it was rounded, and of what rounding changed; None: not measured.
    """

    step: int
    stalled: int
    sampled: int
    signal: float | None = None
    noise: float | None = None


@dataclass
class Meter:
    """Measures the steps of one optimizer while it is there; by id of the parameter, the last step's alone.

    Attributes:
        measures: whether energies and roundings are wanted.
        elements: rows of a low-bit weight are looked at until there are as many elements; None: all of them.
    """

    measures_energy: bool = True
    measures_rounding: bool = True
    elements: int | None = 1 << 14
    energies: dict[int, Energy] = field(default_factory=dict)
    roundings: dict[int, Rounding] = field(default_factory=dict)

    def energy(self, param_id: int, step: int, basis: Basis, grad: Tensor, r: Tensor) -> None:
        """Note the energy of G (m x n) and of R = down(G): one read of G."""
        if not (self.measures_energy and basis.orthonormal):
            return
        grad = grad.reshape(grad.shape[0], -1)
        whole = total(channel_energy(grad, "right")) if grad.numel() else 0.0
        captured = total(channel_energy(r, "right")) if r.numel() else 0.0
        if math.isfinite(whole) and math.isfinite(captured):
            self.energies[param_id] = Energy(step, captured, whole)
        else:
            self.energies.pop(param_id, None)

    @contextlib.contextmanager
    def rounding(
        self,
        params: Sequence[Tensor],
        param_ids: Sequence[int],
        step: int,
        update: tuple[Tensor, float, float] | None = None,
    ) -> Iterator[None]:
        """Around a change of weights: compare the codes of sampled rows.

        ``update`` = (u, alpha, decay) is what packed weights are to become, ``w * decay + alpha * u``.
        """
        if not self.measures_rounding:
            yield
            return
        before = {
            i: _Sample(p, self.elements, update) for i, p in zip(param_ids, params, strict=True) if low_bit(p)
        }
        yield
        for i, sample in before.items():
            self.roundings[i] = sample.compare(step)


def low_bit(p: Tensor) -> bool:
    """Whether a weight is rounded when it is stored: packed or bf16."""
    return weight_store.is_quantized(p) or p.dtype == torch.bfloat16


class _Sample:
    """Some rows of a weight before a step."""

    def __init__(self, p: Tensor, elements: int | None, update: tuple[Tensor, float, float] | None) -> None:
        self._p = p
        self._quantized = weight_store.is_quantized(p)
        shape = weight_store.shape(p)
        rows, cols = (shape[0], shape[1:].numel()) if len(shape) > 1 else (shape.numel(), 1)
        count = rows if elements is None else min(rows, max(1, elements // max(1, cols)))
        self._rows = torch.arange(count, device=p.device) * rows // max(1, count)
        self._shape = (rows, cols)
        self._codes = self._stored()
        self._ideal: Tensor | None = None
        if self._quantized and update is not None:
            u, alpha, decay = update
            u = u.detach().reshape(rows, cols).index_select(0, self._rows).double()
            self._ideal = self._values().mul_(decay).add_(u, alpha=alpha)

    def _stored(self) -> Tensor:
        if weight_store.is_quantized(self._p):
            codes = self._p.quant.codes.index_select(0, self._rows)
            if self._p.quant.bits == 4:  # a code an element
                codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
            return codes[:, : self._shape[1]]
        bits = (
            self._p.detach().view(torch.int16) if self._p.numel() else self._p.new_empty(0, dtype=torch.int16)
        )
        return bits.reshape(self._shape).index_select(0, self._rows)

    def _values(self) -> Tensor:
        """float64."""
        from lowtide import ops

        assert weight_store.is_quantized(self._p)
        q: Any = self._p.quant
        zero = None if q.zero is None else q.zero.index_select(0, self._rows)
        return ops.dequantize_group(
            q.codes.index_select(0, self._rows), q.scale.index_select(0, self._rows), zero,
            bits=q.bits, group=q.group, cols=self._shape[1],
        ).double()  # fmt: skip

    def compare(self, step: int) -> Rounding:
        stalled = int((self._stored() == self._codes).sum())
        if self._ideal is None:
            return Rounding(step, stalled, self._codes.numel())
        signal = float(self._ideal.square().sum())
        noise = float((self._values() - self._ideal).square().sum())
        return Rounding(step, stalled, self._codes.numel(), signal, noise)
