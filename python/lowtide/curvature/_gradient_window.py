# SPDX-License-Identifier: Apache-2.0
"""The last m gradients of a tensor in a ring buffer of float64, float32, bfloat16 or INT8, and products with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError, LowtideValueError

KINDS = ("fp64", "fp32", "bf16", "int8")
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
#: Columns that share a scale of INT8 codes.
GROUP = 256
#: Columns of a product that are added up in float32; sums of these are taken in double.
_CHUNK = 4096


@dataclass(frozen=True)
class WindowStore:
    """How the rows of a window (m, n) are kept; plain tensors in a dict: ``window``, or ``window.codes`` and ``window.scale``.

    Attributes:
        size: m, the gradients that are kept.
        kind: ``"fp64"``, ``"fp32"``, ``"bf16"``, or ``"int8"``: symmetric codes in groups of 256, stochastically rounded, so
            that a row is the gradient plus noise of mean zero; 1.016 bytes an element.
    """

    size: int
    kind: str = "fp32"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise LowtideValueError(f"ngrads must be an integer >= 1, got {self.size!r}")
        if self.kind not in KINDS:
            raise LowtideValueError(f"window must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def create(self, state: dict[str, Any], numel: int) -> None:
        """Add a window of zeros."""
        if self.kind != "int8":
            state["window"] = torch.zeros((self.size, numel), dtype=_DTYPES[self.kind])
            return
        state["window.codes"] = torch.full((self.size, numel), 128, dtype=torch.uint8)
        state["window.scale"] = torch.zeros((self.size, -(-numel // GROUP)), dtype=torch.float32)

    def write(
        self, state: dict[str, Any], row: int, g: Tensor | None, *, seed: int, step: int, param: int
    ) -> None:
        """Overwrite a row by the flat gradient ``g`` (finite), or by zeros."""
        if self.kind != "int8":
            if g is None:
                state["window"][row].zero_()
            else:
                state["window"][row].copy_(g)
            return
        codes, scale = state["window.codes"][row], state["window.scale"][row]
        if codes.numel() == 0:
            return
        if g is None:
            codes.fill_(128)
            scale.zero_()
            return
        from lowtide import ops

        ops.quantize_group_list_(
            [g.float().reshape(1, -1)], [codes[None]], [scale[None]], None, bits=8, group=GROUP,
            rounding="stochastic", seed=seed, step=step, slot=1, params=[param],
        )  # fmt: skip

    def row(self, state: dict[str, Any], row: int) -> Tensor:
        """A row as it is kept, flat, in float32 (float64)."""
        for _, part in self.chunks(state, rows=slice(row, row + 1), width=1 << 62):
            return part[0]
        return torch.zeros(0)

    def dots(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """``G x`` for a flat vector, float64 ``(m,)``."""
        if x.numel() == 0:
            return torch.zeros(self.size, dtype=torch.float64)
        from lowtide import ops

        if self.kind == "fp64":
            product: Tensor = state["window"] @ x.double()
            return product
        if self.kind == "int8":
            return ops.gemv(self._packed(state), x.float()).double()
        total = torch.zeros(self.size, dtype=torch.float64)
        x = x.float()
        for at in range(0, x.numel(), _CHUNK):
            part = state["window"][:, at : at + _CHUNK].contiguous()
            total += ops.matmul(x[None, at : at + _CHUNK].contiguous(), part, tb=True)[0].double()
        return total

    def combine(self, state: dict[str, Any], c: Tensor) -> Tensor:
        """``G' c`` for ``(m,)`` coefficients, flat, float32 (float64 of such a window)."""
        from lowtide import ops

        if self.kind == "fp64":
            combined: Tensor = state["window"].T @ c
            return combined
        window = state["window"] if self.kind != "int8" else self._packed(state)
        if window.shape[1] == 0:
            return torch.zeros(0)
        return ops.matmul(c.float()[None], window)[0]

    def chunks(
        self, state: dict[str, Any], rows: slice | None = None, width: int = _CHUNK
    ) -> Iterator[tuple[int, Tensor]]:
        """First column and decoded columns ``(m, width)`` of the window, or of some rows, piece by piece."""
        rows = rows or slice(None)
        if self.kind != "int8":
            window = state["window"][rows]
            for at in range(0, window.shape[1], width):
                part = window[:, at : at + width]
                yield at, part if self.kind == "fp64" else part.float()
            return
        from lowtide import ops

        width -= width % GROUP
        codes, scale = state["window.codes"][rows], state["window.scale"][rows]
        for at in range(0, codes.shape[1], width):
            some = codes[:, at : at + width].contiguous()
            scales = scale[:, at // GROUP : -(-(at + some.shape[1]) // GROUP)].contiguous()
            yield at, ops.dequantize_group(some, scales, None, bits=8, group=GROUP, cols=some.shape[1])

    def _packed(self, state: dict[str, Any]) -> Any:
        from lowtide.ops.matmul import Packed

        codes = state["window.codes"]
        return Packed(
            codes=codes, scale=state["window.scale"], zero=None, bits=8, group=GROUP, shape=tuple(codes.shape)
        )


def factor(gram: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of ``gram + ridge I`` (float64); of a little more where rounding made that indefinite.

    Raises:
        LowtideRuntimeError: the Gram matrix is not finite.
    """
    eye = torch.eye(gram.shape[0], dtype=torch.float64)
    largest = float(gram.diagonal().max()) if gram.numel() else 0.0
    for jitter in (0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3):
        lower: Tensor
        lower, info = torch.linalg.cholesky_ex(gram + (ridge + jitter * largest) * eye)
        if not int(info):
            return lower
    raise LowtideRuntimeError(
        "the Gram matrix of the gradients is not positive: one of them was not finite; call reset()"
    )


def solve(lower: Tensor, y: Tensor) -> Tensor:
    """``(L L')^-1 y`` for ``(m,)``."""
    return torch.cholesky_solve(y[:, None], lower)[:, 0]
