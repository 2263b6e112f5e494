# SPDX-License-Identifier: Apache-2.0
"""What all methods of this family share: layers, plain tensors by name, bytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.continual._layers import Forward, Layer, Patterns, find_layers, input_grams, unprotected
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.constraints import Constraint


class Memory(ABC):
    """Remembers, for each layer of a model, where its weight should not move any more.

    Attributes:
        tasks: how many were learned.
        layers: the protected layers by name.
    """

    def __init__(self, model: nn.Module, layers: Patterns = None, *, linear_only: bool = False) -> None:
        self.model = model
        self.layers: dict[str, Layer] = find_layers(model, layers, linear_only=linear_only)
        self.tasks = 0

    @abstractmethod
    def constraint(self) -> Constraint:
        """For the optimizer of the next task: ``lt.optim.AdamW(..., constraint=memory.constraint())``."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, by ``layer.what``."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        """Check ``tensors``, then take them; raises LowtideError before anything has changed."""

    def unprotected(self) -> list[str]:
        """Trainable parameters that nothing protects (biases, norms, embeddings): freeze them after the first task, or they
        forget as ever."""
        return unprotected(self.model, self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of :meth:`tensors`."""
        return sum(t.nbytes for t in self.tensors().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name, for safetensors or ``torch.save``."""
        return {"tasks": torch.tensor(self.tasks), **self.tensors()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state_dict` gave for a model of the same layers.

        Raises:
            LowtideValueError, LowtideTypeError: it does not fit; nothing was changed.
        """
        tensors = dict(state_dict)
        for name, t in tensors.items():
            if not isinstance(t, Tensor):
                raise LowtideTypeError(f"state_dict must hold tensors, got {type(t).__name__} for {name!r}")
            if t.is_floating_point() and not bool(t.isfinite().all()):
                raise LowtideValueError(f"state_dict[{name!r}] holds inf or NaN")
        tasks = tensors.pop("tasks", None)
        if tasks is None or tasks.numel() != 1 or tasks.is_floating_point() or int(tasks) < 0:
            raise LowtideValueError(
                "state_dict must hold 'tasks', a number >= 0; was it written by this class?"
            )
        for name in tensors:
            if name.rpartition(".")[0] not in self.layers:
                raise LowtideValueError(
                    f"state_dict has {name!r}, but no such layer is protected here; build it with the same layers="
                )
        self._restore({k: t.detach().clone() for k, t in tensors.items()}, int(tasks))

    def _grams(self, batches: Iterable[Any], forward: Forward | None) -> dict[str, tuple[Tensor, int]]:
        return input_grams(self.model, self.layers, batches, forward)


def spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a d x d Gram matrix, largest first and none below zero, and eigenvectors as rows, float64."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp_min(0.0), vectors.T.flip(0)


def extended(basis: Tensor, more: Tensor) -> Tensor:
    """``basis`` (k x d, orthonormal rows) followed by what is new in ``more``, orthonormal to it; float32."""
    b = basis.double()
    for _ in range(2):  # twice is enough: what one pass leaves of the old directions, the second removes
        more = more - more @ b.T @ b
        more = torch.linalg.qr(more.T).Q.T
    return torch.cat([b, more]).float()


def check_share(value: float, name: str) -> None:
    """Refuse what is no share of energy."""
    if not (isinstance(value, (int, float)) and 0.0 < value <= 1.0):
        raise LowtideValueError(f"{name} must be in (0, 1], got {value!r}")


def check_finite(value: float, name: str, least: float) -> None:
    """Refuse what is not a finite number >= ``least``."""
    if not (isinstance(value, (int, float)) and least <= value < math.inf):
        raise LowtideValueError(f"{name} must be a finite number >= {least:g}, got {value!r}")
