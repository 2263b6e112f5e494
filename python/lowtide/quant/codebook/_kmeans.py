# SPDX-License-Identifier: Apache-2.0
"""k-means: k-means++ seeding from counter-based noise, Lloyd steps in chunks of bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lowtide import random
from lowtide._arrays import check_uint
from lowtide.errors import LowtideTypeError, LowtideValueError

#: Most bytes of a block of distances: it stays in the cache between its making and its search.
_BLOCK_BYTES = 1 << 20
#: Points that the seeding looks at; more are thinned evenly.
_SEEDING_POINTS = 1 << 15
_SLOT_PICK, _SLOT_THIN = 0, 1


def check_points(x: object, name: str = "x") -> Tensor:
    """A finite float (N, d) tensor, N and d at least 1, as float32."""
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.dim() != 2:
        raise LowtideTypeError(f"{name} must be a floating point tensor (points, dimensions)")
    if x.shape[0] < 1 or x.shape[1] < 1:
        raise LowtideValueError(f"{name} must hold a point at least, got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise LowtideValueError(f"{name} has non-finite elements; repair it first")
    return x.detach().float()


def check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 1 << 16:
        raise LowtideValueError(f"k must be an integer between 1 and 65536, got {k!r}")


def _check_weight(weight: Tensor | None, n: int) -> Tensor | None:
    if weight is None:
        return None
    ok = isinstance(weight, Tensor) and tuple(weight.shape) == (n,)
    if not ok or not bool((weight.isfinite() & (weight >= 0)).all()) or not bool(weight.any()):
        raise LowtideValueError(f"weight must be {n} finite numbers >= 0 that are not all 0")
    return weight.detach().double()


def _uniform(count: int, seed: int, slot: int, param: int) -> Tensor:
    """float64 in (0, 1), a pure function of its address."""
    z = random.sample(count, seed=seed, slot=slot, param=param, role="u", like="torch")
    u: Tensor = torch.special.ndtr(z.double())
    return u


def kmeans_init(x: Tensor, k: int, *, weight: Tensor | None = None, seed: int = 0, param: int = 0) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): k points of ``x``, each drawn in proportion to weight times squared
    distance from those drawn before; (k, d) float32.

    More than 32768 points are thinned to one from each of 32768 equal runs. When fewer than k points are distinct,
    the last ones repeat.

    Args:
        x: (N, d). weight: (N,) importance, or ``None``. seed, param: address of the noise in :mod:`lowtide.random`.
    """
    x = check_points(x)
    check_k(k)
    weight = _check_weight(weight, x.shape[0])
    check_uint(seed, "seed", 63)
    n = x.shape[0]
    if n > _SEEDING_POINTS:
        run = torch.arange(_SEEDING_POINTS, dtype=torch.float64)
        at = ((run + _uniform(_SEEDING_POINTS, seed, _SLOT_THIN, param)) * (n / _SEEDING_POINTS)).long()
        at = at.clamp_max(n - 1).to(x.device)
        x, weight = x[at], None if weight is None else weight[at]
    u = _uniform(k, seed, _SLOT_PICK, param).tolist()
    mass = torch.ones(x.shape[0], dtype=torch.float64, device=x.device) if weight is None else weight
    distance = torch.full_like(mass, float("inf"))
    chosen: list[int] = []
    density = mass
    for i in range(k):
        total = density.cumsum(0)
        if not float(total[-1]) > 0:
            chosen += [chosen[-1] if chosen else 0] * (k - i)
            break
        pick = int(torch.searchsorted(total, u[i] * float(total[-1]), right=True).clamp_max(len(total) - 1))
        chosen.append(pick)
        distance = torch.minimum(distance, (x - x[pick]).double().square().sum(1))
        density = distance * mass
    return x[chosen].clone()


def _nearest(x: Tensor, book: Tensor) -> Tensor:
    if x.shape[1] == 1:
        order = book[:, 0].argsort(stable=True)
        sorted_book = book[order, 0]
        middle = (sorted_book[1:] + sorted_book[:-1]) / 2
        return order[torch.searchsorted(middle, x[:, 0].contiguous())]
    # |x - c|² = |x|² - 2 (<x, c> - |c|²/2)
    return torch.addmm(book.square().sum(1) / -2, x, book.T).max(1).indices  # twice as fast as argmax


def _rows(k: int) -> int:
    return max(1, _BLOCK_BYTES // (4 * k))


def assign(x: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codeword of each point, and the squared distance: int64 (N,), float32 (N,).

    Args:
        x: (N, d). book: (k, d). Memory: blocks of at most 1 MiB of distances.
    """
    x, book = check_points(x), check_points(book, "book")
    if x.shape[1] != book.shape[1]:
        raise LowtideValueError(f"book has codewords of {book.shape[1]} dimensions, x has {x.shape[1]}")
    index = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    error = torch.empty(x.shape[0], device=x.device)
    rows = _rows(book.shape[0])
    for at in range(0, x.shape[0], rows):
        part = x[at : at + rows]
        near = _nearest(part, book)
        index[at : at + rows] = near
        error[at : at + rows] = (part - book[near]).square().sum(1)
    return index, error


def kmeans(
    x: Tensor,
    k: int,
    *,
    iterations: int = 25,
    tolerance: float = 1e-4,
    weight: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    param: int = 0,
) -> tuple[Tensor, list[float]]:
    """Lloyd's algorithm from a k-means++ start.

    Args:
        x: (N, d), finite. k: codewords.
        iterations, tolerance: at most so many steps; stops when one lowers the distortion by less than this share.
        weight: (N,) importance of the points (such as squared gradients), or ``None``.
        start: (k, d) codewords to start from. seed, param: address of the noise.

    Returns:
        book: (k, d) float32, ascending for d = 1; a codeword that lost all its points moves to the worst served one.
        distortions: weighted sum of squared distances before each step and after the last; never ascending.
    """
    x = check_points(x)
    check_k(k)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise LowtideValueError(f"iterations must be an integer >= 0, got {iterations!r}")
    w = _check_weight(weight, x.shape[0])
    if start is None:
        book = kmeans_init(x, k, weight=weight, seed=seed, param=param)
    else:
        book = check_points(start, "start").clone()
        if tuple(book.shape) != (k, x.shape[1]):
            raise LowtideValueError(f"start must have shape ({k}, {x.shape[1]}), got {tuple(book.shape)}")
    distortions: list[float] = []
    index, error = assign(x, book)
    for _ in range(iterations):
        loss = error.double() if w is None else error.double() * w
        distortions.append(float(loss.sum()))
        if len(distortions) > 1 and distortions[-1] >= distortions[-2] * (1 - tolerance):
            break
        previous = book
        book = _centres(x, w, index, loss, book)
        index, error = assign(x, book)
        total = float((error.double() if w is None else error.double() * w).sum())
        if total > distortions[-1]:  # rounding of the centres, at the end of convergence
            book = previous
            break
    else:
        distortions.append(float((error.double() if w is None else error.double() * w).sum()))
    return (book.sort(0).values if book.shape[1] == 1 else book), distortions


def _centres(x: Tensor, w: Tensor | None, index: Tensor, loss: Tensor, book: Tensor) -> Tensor:
    """Weighted means of the points of each codeword, summed in float64."""
    k = book.shape[0]
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    mass = torch.zeros(k, dtype=torch.float64, device=x.device)
    rows = _rows(x.shape[1])
    for at in range(0, x.shape[0], rows):
        part, near = x[at : at + rows].double(), index[at : at + rows]
        share = (
            torch.ones(len(near), dtype=torch.float64, device=x.device) if w is None else w[at : at + rows]
        )
        sums.index_add_(0, near, part * share[:, None])
        mass.index_add_(0, near, share)
    means = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-300)[:, None], book.double())
    empty = (mass == 0).nonzero()[:, 0]
    if empty.numel() and bool(loss.any()):
        worst = loss.topk(min(empty.numel(), len(loss))).indices
        worst = worst[loss[worst] > 0]
        means[empty[: len(worst)]] = x[worst].double()
    return means.float()
