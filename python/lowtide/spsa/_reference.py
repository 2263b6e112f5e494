# SPDX-License-Identifier: Apache-2.0
"""Plain torch twins of the spsa ops, on :func:`lowtide.random.sample`: obviously right, slow, kept as the tests' oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowtide import random

_NAMES = ("rademacher", "gaussian", "ih4", "lut8")


def direction(shape: Sequence[int], seed: int, step: int, slot: int, param: int, dist: int) -> Tensor:
    """z of one tensor, float32."""
    return random.sample(  # type: ignore[no-any-return]
        tuple(shape), seed=seed, step=step, slot=slot, param=param, dist=_NAMES[dist], like="torch"
    )


def low_rank_direction(
    shape: Sequence[int], seed: int, step: int, v_step: int, slot: int, param: int, rank: int
) -> Tensor:
    """z = U V^T / sqrt(rank) of one matrix, float32."""
    rows, cols = shape[0], math.prod(shape[1:])
    u = random.sample((rows, rank), seed=seed, step=step, slot=slot, param=param, role="u", like="torch")
    v = random.sample((cols, rank), seed=seed, step=v_step, slot=slot, param=param, role="v", like="torch")
    z = torch.zeros(rows, cols)
    for k in range(rank):
        z = fma(u[:, k : k + 1].expand_as(z), v[:, k].expand_as(z), z)
    return (z * float(torch.tensor(1.0 / math.sqrt(rank), dtype=torch.float32))).reshape(tuple(shape))


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c of float32 tensors, rounded once: the product is exact in double, the sum is rounded to odd there."""
    p, q = a.double() * b.double(), c.double()
    s = p + q
    t = s - p
    e = (p - (s - t)) + (q - t)
    bits = s.view(torch.int64)
    step = torch.where((e > 0) == (s > 0), 1, -1)
    odd = torch.where((e != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(torch.float64).float()


def masked(z: Tensor, w: Tensor, threshold: float) -> Tensor:
    """z where ``|w| <= threshold``, else 0."""
    return z if math.isinf(threshold) else torch.where(w.float().abs() <= threshold, z, 0.0)


def perturb(out: Tensor, w: Tensor, scale: float, z: Tensor, threshold: float) -> None:
    """out = w + scale z: product and sum are rounded to float32, the result to out's dtype."""
    out.copy_(w.float() + masked(z, w, threshold) * torch.tensor(scale, dtype=torch.float32))


def noise16(n: int, seed: int, step: int, param: int) -> Tensor:
    """The 16 random bits of each element that stochastic rounding of weights draws; int32."""
    words = 64 * ((n + 127) // 128)
    signs = random.sample(
        (words, 32), seed=seed, step=step, param=param, role="weight_sr", dist="rademacher", like="torch"
    )
    word = ((signs < 0).long() << torch.arange(32)).sum(1).reshape(-1, 64)
    return torch.cat((word & 0xFFFF, word >> 16), 1).reshape(-1)[:n].int()


def store(w: Tensor, x: Tensor, seed: int, step: int, param: int) -> None:
    """w = x: float32 as it is, bfloat16 and float16 stochastically rounded."""
    if w.dtype == torch.float32:
        w.copy_(x)
        return
    r16 = noise16(x.numel(), seed, step, param).reshape(x.shape)
    bits = x.contiguous().view(torch.int32)
    if w.dtype == torch.bfloat16:
        rounded = torch.where(torch.isfinite(x), bits + r16, bits) & -65536
        w.copy_(rounded.view(torch.float32))
        return
    u = bits & 0x7FFFFFFF
    small = (torch.round(u.view(torch.float32) * 2.0**40).clamp(max=2.0**30).int() + r16) >> 16
    half = torch.where(u < 0x38800000, small, (u - 0x38000000 + (r16 >> 3)) >> 13).clamp(max=0x7C00)
    signed = (half | ((bits >> 16) & 0x8000)).to(torch.int16).view(torch.float16)
    w.copy_(torch.where(torch.isfinite(x), signed, x.half()))


def apply(
    w: Tensor,
    terms: Sequence[tuple[float, Tensor]],
    *,
    scale: float,
    threshold: float,
    floor: float,
    decay: float,
    seed: int,
    round_step: int,
    param: int,
) -> None:
    """One step: ``w = w decay + sum c s z`` over the (coefficient, z) of ``terms``, as the interfaces define it."""
    old = w.float()
    acc = torch.zeros_like(old)
    s = torch.tensor(scale, dtype=torch.float32)
    for c, z in terms:
        acc = fma((torch.tensor(c, dtype=torch.float32) * s).expand_as(acc), masked(z, w, threshold), acc)
    new = (old * torch.tensor(decay, dtype=torch.float32) if decay != 1.0 else old) + acc
    if not math.isinf(floor):
        new = new.clamp_min(floor)
    store(w, new, seed, round_step, param)


def digest(w: Tensor) -> int:
    """``sum(mix64(bits(w[i]) + i 0x9E3779B97F4A7C15)) mod 2**64``, Stafford's variant 13 of the finalizer."""
    bits = (
        w.detach().contiguous().reshape(-1).view({2: torch.int16, 4: torch.int32}[w.element_size()]).numpy()
    )
    x = bits.view(f"u{bits.itemsize}").astype(np.uint64)
    with np.errstate(over="ignore"):
        x += np.arange(x.size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return int(x.sum(dtype=np.uint64))
