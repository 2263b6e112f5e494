# SPDX-License-Identifier: Apache-2.0
"""Learning which codeword a sub-vector maps to, together with the codewords."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideValueError
from lowtide.quant._format import choice
from lowtide.quant.codebook._kmeans import _rows, check_points
from lowtide.quant.codebook._pack import pack
from lowtide.quant.codebook._tensor import Codebook, subvectors

_RULES = ("proximal", "plain")
#: Added to distances before they divide: a sub-vector may be a codeword.
_EPS = 1e-5
#: A logit that makes its ratio 1 and the others 0.
_CERTAIN = 1e4


def candidates(x: Tensor, book: Tensor, n: int = 2) -> tuple[Tensor, Tensor]:
    """The n nearest codewords of each point, nearest first: int64 (N, n), Euclidean distances float32 (N, n)."""
    x, book = check_points(x), check_points(book, "book")
    if x.shape[1] != book.shape[1]:
        raise LowtideValueError(f"book has codewords of {book.shape[1]} dimensions, x has {x.shape[1]}")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= book.shape[0]:
        raise LowtideValueError(
            f"n must be an integer between 1 and the {book.shape[0]} codewords, got {n!r}"
        )
    index = torch.empty(x.shape[0], n, dtype=torch.int64, device=x.device)
    distance = torch.empty(x.shape[0], n, device=x.device)
    rows = max(1, _rows(book.shape[0]) // x.shape[1])
    for at in range(0, x.shape[0], rows):
        part = x[at : at + rows]
        # Differences, not the expanded square: near codewords would cancel.
        d = (part[:, None] - book).square().sum(-1)
        near = d.topk(n, dim=1, largest=False, sorted=True)
        index[at : at + rows], distance[at : at + rows] = near.indices, near.values.sqrt()
    return index, distance


def _logits(distance: Tensor) -> Tensor:
    """log(d_n / (d_i + eps)), 0 for the last: their softmax goes as 1 / distance."""
    z = torch.log(distance[:, -1:].clamp_min(_EPS) / (distance + _EPS))
    z[:, -1] = 0
    return z


def _own_candidates(x: Tensor, book: Tensor, q: Codebook, n: int) -> tuple[Tensor, Tensor]:
    """:func:`candidates` of each sub-vector among the codewords of its row's book, counted over all books."""
    if q.row_book is None:
        return candidates(x, book, n)
    owner = q.row_book.repeat_interleave(x.shape[0] // len(q.row_book))
    index = torch.empty(x.shape[0], n, dtype=torch.int64, device=x.device)
    distance = torch.empty(x.shape[0], n, device=x.device)
    for b in sorted(set(q.row_book.tolist())):
        mine = owner == b
        near, distance[mine] = candidates(x[mine], book[b * q.k : (b + 1) * q.k], n)
        index[mine] = near + b * q.k
    return index, distance


class _Mapping(nn.Module):
    """Logits over candidate codewords, and the codewords: what both methods share."""

    candidate: Tensor

    def __init__(self, q: Codebook, w: Tensor, n: int) -> None:
        super().__init__()
        if not isinstance(q, Codebook):
            raise LowtideValueError(f"q must be a Codebook (see codebook.fit), got {type(q).__name__}")
        if tuple(w.shape) != q.shape:
            raise LowtideValueError(f"w must have the shape of q, {q.shape}, got {tuple(w.shape)}")
        self.shape, self.bits, self.dtype, self.books = q.shape, q.bits, q.dtype, q.books
        flat = w.detach().float().reshape(-1, w.shape[-1])
        if q.row_scale is not None:
            flat = torch.where(
                q.row_scale > 0, flat / q.row_scale.clamp_min(torch.finfo(torch.float32).tiny), 0
            )
        self.book_dtype = q.book.dtype
        book = q.book.detach().float()
        index, distance = _own_candidates(subvectors(flat, q.dim), book, q, n)
        self.book = nn.Parameter(book.clone())
        self.logits = nn.Parameter(_logits(distance))
        self.register_buffer("candidate", index)
        self.register_buffer("row_scale", q.row_scale)
        self.register_buffer("row_book", q.row_book)

    def _weight(self, sub: Tensor) -> Tensor:
        """(N, dim) sub-vectors as a tensor of the weight's shape."""
        rows = math.prod(self.shape[:-1])
        w = sub.reshape(rows, -1)[:, : self.shape[-1]]
        if isinstance(self.row_scale, Tensor):
            w = w * self.row_scale
        return w.reshape(self.shape)

    def indices(self) -> Tensor:
        """The codeword of the largest logit of each sub-vector, int64 (N,), counted over all books."""
        best = self.logits.detach().argmax(1, keepdim=True)
        return self.candidate.gather(1, best)[:, 0]

    @torch.no_grad()
    def harden(self) -> Codebook:
        """The codebook with every sub-vector at the codeword of its largest logit."""
        rows = math.prod(self.shape[:-1])
        k = self.book.shape[0] // self.books
        codes = pack((self.indices() % k).reshape(rows, -1), self.bits)
        scale = self.row_scale if isinstance(self.row_scale, Tensor) else None
        which = self.row_book if isinstance(self.row_book, Tensor) else None
        book = self.book.detach().to(self.book_dtype)
        return Codebook(codes, book, scale, which, self.shape, self.bits, self.dtype, self.books)


class CandidateMapping(_Mapping):
    """VQ4DiT (arXiv 2408.17131, section 3): a softmax over the n nearest codewords, made hard as it becomes certain.

    The weight is ``sum_i r_i C(a_i)`` with ``r = softmax(logits)``; at the start r goes as 1 / distance. Calibrate
    ``logits`` and ``book`` on ``lambda_d * (output error) + lambda_r * ratio_loss()``, call :meth:`freeze_` now and then,
    and :meth:`harden` at the end.

    Args:
        q: the starting codebook, from :func:`fit`. w: the weight it approximates. n: candidates (published code: 2).

    Attributes:
        book: parameter (k, dim). logits: parameter (N, n). candidate: int64 (N, n).
        certain: bool (N,), the sub-vectors that :meth:`freeze_` decided.
    """

    certain: Tensor

    def __init__(self, q: Codebook, w: Tensor, n: int = 2) -> None:
        super().__init__(q, w, n)
        self.register_buffer("certain", torch.zeros(len(self.logits), dtype=torch.bool))

    def ratios(self) -> Tensor:
        """r, (N, n): softmax of the logits; one-hot and without gradient where certain."""
        z = torch.where(self.certain[:, None], self.logits.detach(), self.logits)
        return torch.softmax(z, 1)

    def forward(self) -> Tensor:
        """The soft weight, in its shape."""
        r = self.ratios()
        sub = (r[..., None] * self.book[self.candidate]).sum(1)
        return self._weight(sub)

    def ratio_loss(self) -> Tensor:
        """``n mean(r (1 - r))`` over the sub-vectors that are not certain: 0 when every ratio is 0 or 1.

        This is the form of the published code; the paper's text of L_r is not known to us.
        """
        r = self.ratios()
        open_ = (~self.certain)[:, None]
        count = open_.sum() * r.shape[1]
        return r.shape[1] * (r * (1 - r) * open_).sum() / count.clamp_min(1)

    @torch.no_grad()
    def freeze_(self, above: float = 0.99) -> int:
        """Fix the sub-vectors that have a ratio above this; returns how many are fixed in all."""
        if not isinstance(above, (int, float)) or not 0.5 <= above < 1:
            raise LowtideValueError(f"above must be a number in [0.5, 1), got {above!r}")
        r, best = self.ratios().max(1)
        new = (r > above) & ~self.certain
        hard = torch.zeros_like(self.logits).scatter_(1, best[:, None], _CERTAIN)
        self.logits.copy_(torch.where(new[:, None], hard, self.logits))
        self.certain |= new
        return int(self.certain.sum())


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, book: Tensor, logits: Tensor, candidate: Tensor, proximal: bool) -> Tensor:
        best = candidate.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        ctx.save_for_backward(book, candidate, best)
        ctx.proximal = proximal
        return book[best]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        book, candidate, best = ctx.saved_tensors
        g = grads[0]
        d_book = torch.zeros_like(book).index_add_(0, best, g) if ctx.needs_input_grad[0] else None
        d_logits = None
        if ctx.needs_input_grad[1]:
            step = book[candidate] - book[best][:, None]
            d_logits = (step * g[:, None]).sum(-1)
            if ctx.proximal:
                d2 = step.square().sum(-1)
                other = torch.where(d2 > 0, d2, torch.inf)
                nearest = other.amin(1, keepdim=True)
                d_logits = torch.where(d2 > 0, d_logits * (nearest / other), 0)
        return d_book, d_logits, None, None


def joint_mapping(book: Tensor, logits: Tensor, candidate: Tensor, rule: str = "proximal") -> Tensor:
    """Codewords of the largest logits, with gradients for codewords and mapping (JLCM, arXiv 2309.17361, section 3).

    Forward, with ``a = candidate[argmax logits]``: ``v = book[a]``. Backward, with ``g = dL/dv``::

        dL/dbook[j]   = sum of g over the sub-vectors mapped to j
        dL/dlogits[i] = <g, c_i - v> phi(|c_i - v|)

    ``<g, c_i - v>`` is the straight-through gradient (``rule="plain"``, phi = 1). It grows with the distance and so
    favours jumps to far codewords. ``rule="proximal"`` weights it by a falling function: ``phi(d) = (d_1 / d)^2``, d_1
    the distance to the nearest other candidate, so that the whole goes as 1 / d. (The paper asks for a falling function;
    which one it takes is not known to us.)

    Args:
        book: (k, dim). logits: (N, n). candidate: int64 (N, n), entries below k.
        rule: ``"proximal"`` or ``"plain"``.

    Returns:
        (N, dim).
    """
    choice(rule, "rule", _RULES)
    if logits.shape != candidate.shape or logits.dim() != 2:
        raise LowtideValueError(
            f"logits and candidate must have one shape (N, n), got {tuple(logits.shape)} and {tuple(candidate.shape)}"
        )
    result: Tensor = _Joint.apply(book, logits, candidate, rule == "proximal")  # type: ignore[no-untyped-call]
    return result


class JointMapping(_Mapping):
    """JLCM's joint learning as a module: its weight is always hard, its gradients are those of :func:`joint_mapping`.

    Args:
        q: the starting codebook, from :func:`fit`. w: the weight it approximates. n: candidates. rule: see there.

    Attributes:
        book: parameter (k, dim). logits: parameter (N, n). candidate: int64 (N, n).
    """

    def __init__(self, q: Codebook, w: Tensor, n: int = 4, *, rule: str = "proximal") -> None:
        super().__init__(q, w, n)
        self.rule = choice(rule, "rule", _RULES)

    def forward(self) -> Tensor:
        """The weight, in its shape."""
        return self._weight(joint_mapping(self.book, self.logits, self.candidate, self.rule))
