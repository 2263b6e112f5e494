# SPDX-License-Identifier: Apache-2.0
"""The space an operator acts on: the parameters' numbers in one flat vector, and probes that are addressed, not stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lowtide import ops
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.ops._cuda import native

#: What an operator takes as a vector: flat, or one tensor a parameter, in order or by name.
Vector = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and order of the tensors whose numbers make one vector.

    A tensor's position is its parameter id in the random streams, so a probe is a pure function of ``(seed, k)``
    and the layout, whatever the device, the batch order or the number of threads.

    Attributes:
        names: one for each tensor, no two alike.
        shapes: in the same order.
        dtype: of vectors, float32 or float64 (that of the parameters, where it is one of these; else float32).
        device: of vectors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> Layout:
        """The layout of named tensors, in their order."""
        pairs = list(named)
        if not pairs:
            raise LowtideValueError(
                "params is empty: name at least one tensor, or set requires_grad on what to differentiate"
            )
        dtypes = {p.dtype for _, p in pairs}
        return cls(
            tuple(name for name, _ in pairs),
            tuple(tuple(p.shape) for _, p in pairs),
            torch.float64 if dtypes == {torch.float64} else torch.float32,
            pairs[0][1].device,
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def n(self) -> int:
        """Number of elements of a vector."""
        return sum(self.sizes)

    def zeros(self) -> Tensor:
        """A vector of zeros, ``(n,)``."""
        return torch.zeros(self.n, dtype=self.dtype, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector ``(n,)``, each in its parameter's shape; they share its memory."""
        return [
            part.view(shape)
            for part, shape in zip(torch.split(flat, list(self.sizes)), self.shapes, strict=True)
        ]

    def flatten(self, vector: Vector, name: str = "v") -> Tensor:
        """``vector`` as a flat tensor ``(n,)`` of this layout's dtype; not a copy if it is one already."""
        if isinstance(vector, Tensor):
            if vector.shape != (self.n,):
                raise LowtideValueError(
                    f"{name} must have shape ({self.n},), one number for each parameter, got {tuple(vector.shape)}; "
                    "pass a list or dict of tensors shaped like the parameters otherwise"
                )
            return vector.detach().to(self.device, self.dtype).contiguous()
        parts = self._parts(vector, name)
        return torch.cat([p.detach().reshape(-1).to(self.device, self.dtype) for p in parts])

    def _parts(self, vector: Sequence[Tensor] | Mapping[str, Tensor], name: str) -> list[Tensor]:
        if isinstance(vector, Mapping):
            missing = [key for key in self.names if key not in vector]
            if missing or len(vector) != len(self.names):
                extra = [key for key in vector if key not in self.names]
                raise LowtideValueError(
                    f"{name} must name the operator's {len(self.names)} tensors; missing {missing[:3]}, unknown {extra[:3]}"
                )
            vector = [vector[key] for key in self.names]
        if not isinstance(vector, Sequence) or len(vector) != len(self.names):
            raise LowtideTypeError(
                f"{name} must be a flat tensor, or a list or dict of {len(self.names)} tensors, got {type(vector).__name__}"
            )
        for key, part, shape in zip(self.names, vector, self.shapes, strict=True):
            if tuple(part.shape) != shape:
                raise LowtideValueError(
                    f"{name}: the tensor of {key} must have shape {shape}, got {tuple(part.shape)}"
                )
        return list(vector)

    def like(self, flat: Tensor, vector: Vector) -> Vector:
        """A flat vector in the form that ``vector`` has: flat, list or dict."""
        if isinstance(vector, Tensor):
            return flat
        views = self.views(flat)
        return dict(zip(self.names, views, strict=True)) if isinstance(vector, Mapping) else views

    def probe(self, seed: int, k: int, out: Tensor | None = None) -> Tensor:
        """Probe ``k``: a vector of signs, element i of tensor t from the stream of ``(seed, step k, param t)``."""
        out = torch.empty(self.n, dtype=self.dtype, device=self.device) if out is None else out
        signs = out if self._drawn_in_place else torch.empty(self.n)
        ops.curvature_sign_fill_(self._parts_of(signs), 1.0, *self._address(seed, k))
        return out if signs is out else out.copy_(signs)

    def probe_dots(self, flat: Tensor, seed: int, k: int) -> Tensor:
        """``<z_t, flat_t>`` for each tensor t, float64 ``(len(names),)``; on a CPU and in float32 the probe is not stored."""
        if self._drawn_in_place:
            return ops.curvature_sign_dot(self._parts_of(flat), *self._address(seed, k))
        products = (self.probe(seed, k) * flat).cpu()
        return torch.stack([part.sum() for part in self._parts_of(products)])

    @property
    def _drawn_in_place(self) -> bool:
        return self.dtype == torch.float32 and native(self.device)

    def _parts_of(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, list(self.sizes))

    def _address(self, seed: int, k: int) -> tuple[int, int, int, range]:
        return seed, k, 0, range(len(self.sizes))
