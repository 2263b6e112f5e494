# SPDX-License-Identifier: Apache-2.0
"""A Krylov basis in full precision, bfloat16 or INT8, and classical Gram-Schmidt against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.ops import quant as _codec
from lowtide.ops._cuda import native
from lowtide.ops.curvature_krylov import curvature_lanczos_step_, curvature_project_

BASIS_DTYPES = ("fp32", "bf16", "int8")
#: Share of a vector's norm that storing it changes: 2^-9 uniform; steps of 1/127 of the largest of 256, about three
#: standard deviations, with the variance of stochastic rounding.
ROUNDING = {"fp32": 0.0, "bf16": 1.2e-3, "int8": 1e-2}
GROUP = 256
#: Columns that are decoded, multiplied and stored at a time: a multiple of GROUP.
_TILE = 1 << 15
#: Daniel, Gragg, Kaufman, Stewart 1976: a pass that leaves less than this share of the norm is repeated.
_DGKS = 0.5**0.5
#: Of the streams of rounding noise; slot 0 is that of probes.
_SLOT = 1


def check_basis_dtype(basis_dtype: str) -> None:
    """Refuse an unknown storage by name."""
    if basis_dtype not in BASIS_DTYPES:
        raise LowtideValueError(
            f"basis_dtype must be one of {', '.join(BASIS_DTYPES)}, got {basis_dtype!r}; "
            "bf16 halves the memory of the basis, int8 takes a quarter"
        )


@dataclass(frozen=True)
class Projection:
    """What :meth:`KrylovBasis.project_` took out of a vector.

    Attributes:
        coefficients: ``Q w``, float64 ``(rows,)``, all passes together.
        norm: of what is left of ``w``.
        passes: 1 or 2.
    """

    coefficients: Tensor
    norm: float
    passes: int


class KrylovBasis:
    """Up to ``capacity`` vectors of ``n`` numbers, one a row.

    Memory: ``capacity * n`` numbers of 4 bytes (8 where ``dtype`` is float64), 2 (bf16) or 1.016 (int8: groups of 256
    with a float32 scale, rounded stochastically, so that rounding errors of different rows are not correlated).

    Args:
        n: numbers in a vector.
        capacity: most rows.
        dtype: of the vectors that go in and come out: float32 or float64.
        store: ``fp32`` (which means ``dtype``), ``bf16`` or ``int8``.
        seed: addresses the noise of stochastic rounding.
        device: where rows lie.
    """

    def __init__(
        self,
        n: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        store: str = "fp32",
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        check_basis_dtype(store)
        self.n, self.rows, self.store, self.dtype, self.seed = n, 0, store, dtype, seed
        self._written = 0  # vectors ever stored: addresses of rounding noise are not used twice
        kind = {"fp32": dtype, "bf16": torch.bfloat16, "int8": torch.uint8}[store]
        self._data = torch.empty((capacity, n), dtype=kind, device=device)
        groups = (n + GROUP - 1) // GROUP if store == "int8" else 0
        self._native = dtype == torch.float32 and native(self._data.device)
        self._scale = torch.empty((capacity, groups), dtype=torch.float32, device=device)

    @property
    def capacity(self) -> int:
        """Most rows."""
        return self._data.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, used or not."""
        return sum(t.numel() * t.element_size() for t in (self._data, self._scale))

    def append(self, v: Tensor) -> None:
        """Store a vector as the next row."""
        self._write(self.rows, 0, v.view(1, -1))
        self.rows += 1
        self._written += 1

    def row(self, i: int) -> Tensor:
        """Row ``i`` as stored, decoded to ``dtype``."""
        return self._read(i, i + 1, 0, self.n)[0]

    def project_(self, w: Tensor) -> Projection:
        """``w -= Q' (Q w)``, a second time where the first was not enough (CGS2).

        On a CPU in float32 a native kernel reads the basis twice, and a third time only if it saw more than 1e-4 of
        ``w`` left along it; elsewhere the DGKS test decides, which guesses that from the norm.
        """
        if self._native:
            scale = self._scale[: self.rows] if self.store == "int8" else None
            found = curvature_project_(w, self._data[: self.rows], scale)
            return Projection(found[0], found[2], found[3])
        before = _norm(w)
        total = self._pass(w)
        after, passes = _norm(w), 1
        if after < _DGKS * before:
            total += self._pass(w)
            after, passes = _norm(w), 2
        return Projection(total, after, passes)

    def combine(self, coefficients: Tensor) -> Tensor:
        """``coefficients @ Q``: float64 ``(k, rows)`` in, ``(k, n)`` of ``dtype`` out."""
        out = torch.empty((coefficients.shape[0], self.n), dtype=self.dtype, device=self._data.device)
        c = coefficients.to(out.device, self.dtype)
        for begin in range(0, self.n, _TILE):
            end = min(self.n, begin + _TILE)
            torch.mm(c, self._read(0, self.rows, begin, end), out=out[:, begin:end])
        return out

    def rotate_(self, coefficients: Tensor) -> None:
        """Replace the rows by ``coefficients @ Q``, a tile of columns at a time: no second basis is held."""
        count = coefficients.shape[0]
        c = coefficients.to(self._data.device, self.dtype)
        for begin in range(0, self.n, _TILE):
            end = min(self.n, begin + _TILE)
            self._write(0, begin, c @ self._read(0, self.rows, begin, end))
        self.rows = count
        self._written += count

    def _pass(self, w: Tensor) -> Tensor:
        if self.store == "fp32":
            q = self._data[: self.rows]
            c = q @ w
            w -= c @ q
            return c.double().cpu()
        coefficients = torch.zeros(self.rows, dtype=torch.float64)
        taken = torch.zeros_like(w)
        for i in range(self.rows):
            q = self.row(i)
            coefficients[i] = q @ w
            taken.add_(q, alpha=float(coefficients[i]))
        w -= taken
        return coefficients

    def _read(self, first: int, last: int, begin: int, end: int) -> Tensor:
        """Rows [first, last) of columns [begin, end), decoded; ``begin`` starts a group."""
        part = self._data[first:last, begin:end]
        if self.store != "int8":
            return part.to(self.dtype)
        scale = self._scale[first:last, begin // GROUP : (end + GROUP - 1) // GROUP]
        values = part.float().sub_(128)
        if (end - begin) % GROUP == 0:
            values.view(last - first, -1, GROUP).mul_(scale[..., None])
        else:
            values.mul_(scale.repeat_interleave(GROUP, dim=1)[:, : end - begin])
        return values.to(self.dtype)

    def _write(self, first: int, begin: int, values: Tensor) -> None:
        """Rows from ``first`` on and columns from ``begin`` on, encoded; ``begin`` starts a group."""
        last, end = first + values.shape[0], begin + values.shape[1]
        if self.store != "int8":
            self._data[first:last, begin:end] = values
            return
        groups = slice(begin // GROUP, (end + GROUP - 1) // GROUP)
        for i, row in enumerate(values):
            codes, scale, _ = _codec.quantize_group(
                row.float().cpu().view(1, -1),
                bits=8,
                group=GROUP,
                rounding="stochastic",
                seed=self.seed,
                step=self._written + i,
                slot=_SLOT,
                offset=begin,
            )
            self._data[first + i, begin:end] = codes.view(-1)
            self._scale[first + i, groups] = scale.view(-1)


def three_term_(w: Tensor, q: Tensor, previous: Tensor | None, beta: float) -> tuple[float, float]:
    """``w -= beta previous; alpha = <w, q>; w -= alpha q``: ``alpha`` and the norm of ``w``.

    With vectors that were not rounded: what a quantized basis is left to take out of ``w`` is small, and so are its errors.
    """
    if w.dtype == torch.float32 and native(w.device):
        return curvature_lanczos_step_(w, q, previous, beta)
    if previous is not None:
        w.sub_(previous, alpha=beta)
    alpha = float((w.double() * q.double()).sum()) if w.dtype == torch.float32 else float(w @ q)
    w.sub_(q, alpha=alpha)
    return alpha, _norm(w)


def _norm(w: Tensor) -> float:
    return float(torch.linalg.vector_norm(w, dtype=torch.float64))
