# SPDX-License-Identifier: Apache-2.0
"""A weight as indices into a codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._dense_sparse import check_matrix
from lowtide.quant._format import FLOATS, choice
from lowtide.quant.codebook._kmeans import assign, kmeans
from lowtide.quant.codebook._pack import WIDTHS, pack, row_bytes, unpack, width_for

_BOOKS = (torch.float32, torch.float16, torch.bfloat16)


def subvectors(w: Tensor, dim: int) -> Tensor:
    """(..., cols) as (rows * ceil(cols / dim), dim); a short last one of a row is filled up with zeros."""
    flat = w.reshape(-1, w.shape[-1])
    return torch.nn.functional.pad(flat, (0, -w.shape[-1] % dim)).reshape(-1, dim)


@dataclass(frozen=True, eq=False)
class Codebook:
    """A tensor as packed indices of codewords of ``dim`` neighbours in a row.

    Attributes:
        codes: uint8, (rows, bytes of a row): ceil(cols / dim) indices of ``bits`` bits.
        book: (k, dim) float16 (or float32, bfloat16) codewords.
        row_scale: float32 (rows, 1) factor of each row, or ``None``.
        shape: shape of the tensor. bits: 1, 2, 4, 8 or 16, the width of an index.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what was quantized, and what :meth:`dequantize` returns.
    """

    codes: Tensor
    book: Tensor
    row_scale: Tensor | None
    shape: tuple[int, ...]
    bits: int
    dtype: str = "float32"

    @property
    def dim(self) -> int:
        """Weights in a codeword."""
        return self.book.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of indices, codewords and row factors."""
        return sum(t.nbytes for t in (self.codes, self.book, self.row_scale) if t is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over elements, codewords and row factors included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))

    def indices(self) -> Tensor:
        """int64 (rows, ceil(cols / dim))."""
        return unpack(self.codes, self.bits, -(-self.shape[-1] // self.dim))

    def dequantize(self, dtype: str | None = None) -> Tensor:
        """The values in their original shape, as ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        target: torch.dtype = getattr(torch, choice(dtype or self.dtype, "dtype", FLOATS))
        w = self.book.float()[self.indices()].reshape(self.codes.shape[0], -1)[:, : self.shape[-1]]
        if self.row_scale is not None:
            w = w * self.row_scale
        return w.to(target).reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Tensors, integers and strings only: safe for ``torch.load(weights_only=True)``."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Codebook:
        """The inverse of :meth:`to_dict`; everything is checked, for the dictionary may come from a file."""
        names = {f.name for f in fields(cls)}
        if set(state) != names:
            raise LowtideValueError(
                f"state must have the keys {', '.join(sorted(names))}, got {sorted(map(str, state))}"
            )
        shape = state["shape"]
        if (
            not isinstance(shape, (tuple, list))
            or not shape
            or not all(isinstance(d, int) and d >= 0 for d in shape)
        ):
            raise LowtideValueError(f"shape must hold integers >= 0, got {shape!r}")
        self = cls(**{**state, "shape": tuple(shape)})
        self._check()
        return self

    def _check(self) -> None:
        if self.bits not in WIDTHS:
            raise LowtideValueError(f"bits must be one of {', '.join(map(str, WIDTHS))}, got {self.bits!r}")
        choice(self.dtype, "dtype", FLOATS)
        for name, part in (("codes", self.codes), ("book", self.book), ("row_scale", self.row_scale)):
            if not isinstance(part, Tensor) and not (part is None and name == "row_scale"):
                raise LowtideTypeError(f"{name} must be a torch tensor, got {type(part).__name__}")
        book, rows = self.book, math.prod(self.shape[:-1])
        if book.dtype not in _BOOKS or book.dim() != 2 or not book.numel() or not bool(book.isfinite().all()):
            raise LowtideValueError(
                "book must be finite floating point codewords (k, dim); the state is damaged"
            )
        want = (rows, row_bytes(-(-self.shape[-1] // book.shape[1]), self.bits))
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != want:
            raise LowtideValueError(
                f"codes must be uint8 {want}, got {self.codes.dtype} {tuple(self.codes.shape)}"
            )
        index = self.indices()
        if index.numel() and int(index.max()) >= book.shape[0]:
            raise LowtideValueError(f"codes point beyond the {book.shape[0]} codewords; the state is damaged")
        s = self.row_scale
        if s is not None and not (
            s.dtype == torch.float32 and tuple(s.shape) == (rows, 1) and bool((s.isfinite() & (s >= 0)).all())
        ):
            raise LowtideValueError(
                f"row_scale must be float32 ({rows}, 1), finite and >= 0; the state is damaged"
            )

    def __repr__(self) -> str:
        return (
            f"Codebook(shape={self.shape}, {self.book.shape[0]} codewords of {self.dim}, "
            f"{self.bits_per_weight:.3f} bits a weight)"
        )


def fit(
    w: Tensor,
    k: int,
    *,
    dim: int = 1,
    row_scale: bool = False,
    weight: Tensor | None = None,
    iterations: int = 25,
    book_dtype: torch.dtype = torch.float16,
    seed: int = 0,
    param: int = 0,
) -> Codebook:
    """Learn ``k`` codewords of ``dim`` neighbouring weights by k-means and map ``w`` to the nearest ones.

    Args:
        w: float32, bfloat16 or float16, (..., cols), finite; a row that ``dim`` does not divide ends in a padded codeword.
        k: codewords, up to 65536. Indices take 1, 2, 4, 8 or 16 bits.
        row_scale: divide each row by its root mean square first (32 bits a row).
        weight: importance of each element, of the shape of ``w`` and >= 0 (such as squared gradients); that of a
            codeword is the mean over its elements.
        iterations: Lloyd steps. book_dtype: of the stored codewords; indices are chosen with the stored ones.
        seed, param: address of the seeding noise in :mod:`lowtide.random`.
    """
    check_matrix(w)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise LowtideValueError(f"dim must be an integer >= 1, got {dim!r}")
    if book_dtype not in _BOOKS:
        raise LowtideTypeError(f"book_dtype must be float32, float16 or bfloat16, got {book_dtype}")
    name = str(w.dtype).removeprefix("torch.")
    choice(name, "the dtype of w", FLOATS)
    if not w.numel():
        raise LowtideValueError(f"w must have an element at least, got shape {tuple(w.shape)}")
    flat = w.detach().float().reshape(-1, w.shape[-1])
    scale = None
    if row_scale:
        scale = flat.double().square().mean(1, keepdim=True).sqrt().float()
        flat = torch.where(scale > 0, flat / scale.clamp_min(torch.finfo(torch.float32).tiny), 0)
    points = subvectors(flat, dim)
    importance = None
    if weight is not None:
        if not isinstance(weight, Tensor) or weight.shape != w.shape:
            raise LowtideValueError(f"weight must have the shape of w, {tuple(w.shape)}")
        importance = subvectors(weight.detach().float().reshape(flat.shape), dim).mean(1)
    book, _ = kmeans(points, k, weight=importance, iterations=iterations, seed=seed, param=param)
    stored = book.to(book_dtype)
    if not bool(stored.isfinite().all()):
        raise LowtideValueError(
            "w is beyond the range of float16; pass book_dtype=torch.float32 or row_scale=True"
        )
    index, _ = assign(points, stored.float())
    bits = width_for(k)
    codes = pack(index.reshape(flat.shape[0], -1), bits)
    return Codebook(codes, stored, scale, tuple(int(d) for d in w.shape), bits, name)
