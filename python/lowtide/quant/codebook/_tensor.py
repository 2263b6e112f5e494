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
from lowtide.quant.codebook._kmeans import assign, check_k, kmeans
from lowtide.quant.codebook._pack import WIDTHS, pack, row_bytes, unpack, width_for

_QUANTILES = 32
_RESTARTS = 8
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
        book: (books * k, dim) float16 (or float32, bfloat16) codewords, book after book.
        row_scale: float32 (rows, 1) factor of each row, or ``None``.
        row_book: uint8 (rows,), the book of each row, or ``None`` for a single one.
        shape: shape of the tensor. bits: 1, 2, 4, 8 or 16, the width of an index. books: how many there are.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what was quantized, and what :meth:`dequantize` returns.
    """

    codes: Tensor
    book: Tensor
    row_scale: Tensor | None
    row_book: Tensor | None
    shape: tuple[int, ...]
    bits: int
    dtype: str = "float32"
    books: int = 1

    @property
    def k(self) -> int:
        """Codewords in a book."""
        return self.book.shape[0] // self.books

    @property
    def dim(self) -> int:
        """Weights in a codeword."""
        return self.book.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of indices, codewords, row factors and book numbers."""
        parts = (self.codes, self.book, self.row_scale, self.row_book)
        return sum(t.nbytes for t in parts if t is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over elements, everything included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))

    def indices(self) -> Tensor:
        """The codeword of each sub-vector within its row's book, int64 (rows, ceil(cols / dim))."""
        return unpack(self.codes, self.bits, -(-self.shape[-1] // self.dim))

    def dequantize(self, dtype: str | None = None) -> Tensor:
        """The values in their original shape, as ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        target: torch.dtype = getattr(torch, choice(dtype or self.dtype, "dtype", FLOATS))
        index = self.indices()
        if self.row_book is not None:
            index = index + self.k * self.row_book.long()[:, None]
        w = self.book.float()[index].reshape(self.codes.shape[0], -1)[:, : self.shape[-1]]
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
        for name in ("codes", "book", "row_scale", "row_book"):
            part = getattr(self, name)
            if not isinstance(part, Tensor) and not (part is None and name.startswith("row")):
                raise LowtideTypeError(f"{name} must be a torch tensor, got {type(part).__name__}")
        book, rows = self.book, math.prod(self.shape[:-1])
        if isinstance(self.books, bool) or not isinstance(self.books, int) or not 1 <= self.books <= 256:
            raise LowtideValueError(f"books must be an integer between 1 and 256, got {self.books!r}")
        if book.dim() == 2 and book.shape[0] % self.books:
            raise LowtideValueError(f"book must hold {self.books} books of one size; the state is damaged")
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
        if index.numel() and int(index.max()) >= self.k:
            raise LowtideValueError(f"codes point beyond the {self.k} codewords; the state is damaged")
        r = self.row_book
        if (r is None) != (self.books == 1) or (
            r is not None
            and not (r.dtype == torch.uint8 and tuple(r.shape) == (rows,) and bool((r < self.books).all()))
        ):
            raise LowtideValueError(
                f"row_book must be uint8 ({rows},) below {self.books}; the state is damaged"
            )
        s = self.row_scale
        if s is not None and not (
            s.dtype == torch.float32 and tuple(s.shape) == (rows, 1) and bool((s.isfinite() & (s >= 0)).all())
        ):
            raise LowtideValueError(
                f"row_scale must be float32 ({rows}, 1), finite and >= 0; the state is damaged"
            )

    def __repr__(self) -> str:
        return (
            f"Codebook(shape={self.shape}, {self.books} x {self.k} codewords of {self.dim}, "
            f"{self.bits_per_weight:.3f} bits a weight)"
        )


def fit(
    w: Tensor,
    k: int,
    *,
    dim: int = 1,
    books: int = 1,
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
        books: at most 256; rows of similar distribution share one (8 bits a row), as in JLCM (arXiv 2309.17361, section
            3.1). Similar: k-means on 32 quantiles of each row, that is by the 2-Wasserstein distance.
        row_scale: divide each row by its root mean square first (32 bits a row).
        weight: importance of each element, of the shape of ``w`` and >= 0 (such as squared gradients); that of a
            codeword is the mean over its elements.
        iterations: Lloyd steps. book_dtype: of the stored codewords; indices are chosen with the stored ones.
        seed, param: address of the seeding noise in :mod:`lowtide.random`.
    """
    check_matrix(w)
    check_k(k)
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
    importance = None
    if weight is not None:
        if not isinstance(weight, Tensor) or weight.shape != w.shape:
            raise LowtideValueError(f"weight must have the shape of w, {tuple(w.shape)}")
        importance = weight.detach().float().reshape(flat.shape)
    group = _row_groups(flat, books, seed, param)
    bits = width_for(k)
    stored = torch.zeros(books * k, dim, dtype=book_dtype, device=w.device)
    index = torch.zeros(flat.shape[0], -(-flat.shape[1] // dim), dtype=torch.int64, device=w.device)
    for b in range(books):
        mine = slice(None) if group is None else group == b
        points = subvectors(flat[mine], dim)
        if not points.numel():
            continue
        share = None if importance is None else subvectors(importance[mine], dim).mean(1)
        book, _ = kmeans(points, k, weight=share, iterations=iterations, seed=seed, param=param)
        stored[b * k : (b + 1) * k] = book.to(book_dtype)
        if not bool(stored.isfinite().all()):
            raise LowtideValueError(
                "w is beyond the range of float16; pass book_dtype=torch.float32 or row_scale=True"
            )
        near, _ = assign(points, stored[b * k : (b + 1) * k].float())
        index[mine] = near.reshape(-1, index.shape[1])
    row_book = None if group is None else group.to(torch.uint8)
    shape = tuple(int(d) for d in w.shape)
    return Codebook(pack(index, bits), stored, scale, row_book, shape, bits, name, books)


def _row_groups(rows: Tensor, books: int, seed: int, param: int) -> Tensor | None:
    """The book of each row, int64, or ``None`` for a single one."""
    if isinstance(books, bool) or not isinstance(books, int) or not 1 <= books <= min(256, rows.shape[0]):
        raise LowtideValueError(
            f"books must be an integer between 1 and {min(256, rows.shape[0])} (256, and the rows of w), got {books!r}"
        )
    if books == 1:
        return None
    # The k-th quantile of a row at (k + 1/2) / 32: an equal share of its mass each.
    at = ((torch.arange(_QUANTILES, device=rows.device) + 0.5) * rows.shape[1] / _QUANTILES).long()
    profile = rows.sort(dim=1).values[:, at]
    # Few points and few groups: one unlucky start costs a book, several starts cost nothing.
    tries = [kmeans(profile, books, seed=(seed + i) % (1 << 63), param=param) for i in range(_RESTARTS)]
    centres, _ = min(tries, key=lambda t: t[1][-1])
    return assign(profile, centres)[0]
