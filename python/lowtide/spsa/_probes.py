# SPDX-License-Identifier: Apache-2.0
"""Probes: how a model is evaluated at w + eps z. All but ``inplace_legacy`` only read the masters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from lowtide.spsa._masters import Address, Masters

T = TypeVar("T")


class Probe(ABC):
    """Evaluates a model beside its weights.

    Args:
        masters: the weights, in the manifest's order.
        live: the model's own tensors in the same order; their ``.data`` is what the model reads.
        module: the model, for probes that need its structure.
    """

    #: Whether a run with this probe can be logged and replayed.
    replayable = True

    def __init__(self, masters: Masters, live: Sequence[Tensor], module: nn.Module | None) -> None:
        self.masters, self.live, self.module = masters, list(live), module
        self.home: list[Tensor] = [t.detach() for t in self.live]

    def begin(self) -> None:
        """Called before the probes of a step."""
        self.home = [t.detach() for t in self.live]

    @abstractmethod
    def at(self, eps: float, address: Address) -> AbstractContextManager[None]:
        """Within this context the model's weights are master + eps s z, rounded to the model's dtype.

        ``eps`` 0 is the model as it is. Nested use is an error.
        """

    def evaluate(self, closure: Callable[[], T], eps: float, address: Address) -> T:
        """What ``closure`` returns there; may call it again where a first call taught it the model's structure."""
        with self.at(eps, address):
            return closure()

    def end(self) -> None:  # noqa: B027
        """Called after the probes of a step, also after an exception."""

    def nbytes(self) -> int:
        """Bytes held for probing."""
        return 0

    def restore(self) -> None:
        """Give the model its own tensors back."""
        for t, home in zip(self.live, self.home, strict=True):
            t.data = home


class Snapshot(Probe):
    """A perturbed copy of all weights: one more model in memory, works with any model."""

    def __init__(self, masters: Masters, live: Sequence[Tensor], module: nn.Module | None) -> None:
        super().__init__(masters, live, module)
        self._copy: list[Tensor] = []

    @contextmanager
    def at(self, eps: float, address: Address) -> Iterator[None]:
        """See :meth:`Probe.at`."""
        if eps == 0.0:
            yield
            return
        if not self._copy:
            self._copy = [torch.empty_like(t.detach()) for t in self.live]
        self.masters.perturb(self._copy, range(len(self._copy)), eps, address)
        try:
            for t, copy in zip(self.live, self._copy, strict=True):
                t.data = copy
            yield
        finally:
            self.restore()

    def nbytes(self) -> int:
        """Bytes of the copy."""
        return sum(t.nbytes for t in self._copy)


class InplaceLegacy(Probe):
    """MeZO's +1, -2, +1 in the weights themselves. No memory, and no way back to the same bits: rounding errors stay
    in the weights (1.5e-3 rms in 200 steps of bfloat16, twenty times what training changes), so such a run can be
    neither logged nor shared. For comparisons only."""

    replayable = False

    def __init__(self, masters: Masters, live: Sequence[Tensor], module: nn.Module | None) -> None:
        super().__init__(masters, live, module)
        self._offset = 0.0
        self._address: Address = (0, 0)

    def _move(self, eps: float, address: Address) -> None:
        if eps != 0.0:
            tensors = self.masters.tensors
            self.masters.perturb(tensors, range(len(tensors)), eps, address)

    @contextmanager
    def at(self, eps: float, address: Address) -> Iterator[None]:
        """See :meth:`Probe.at`; the weights stay perturbed until the next probe or :meth:`end`."""
        if address != self._address:
            self.end()
        self._move(eps - self._offset, address)
        self._offset, self._address = eps, address
        yield

    def end(self) -> None:
        """The last +1."""
        self._move(-self._offset, self._address)
        self._offset = 0.0
