# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding is unbiased at every code of every format: z-scores over 2^20 draws and more of fixed seeds.

Draws lie uniformly between each two neighbouring levels, so that rare codes are drawn as often as common ones. Of a
value at the fraction f of a gap the exact variance is f (1 - f) gap^2.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import ops

INTEGERS = [(8, "symmetric"), (8, "asymmetric"), (4, "symmetric"), (4, "asymmetric")]
MAPS = [
    (4, "nf4"), (4, "dynamic"), (4, "dynamic_unsigned"), (4, "linear_nozero"), (8, "dynamic"), (8, "dynamic_unsigned"),
]  # fmt: skip
GROUP = 256


def dynamic_levels(bits: int, signed: bool) -> np.ndarray:
    """create_dynamic_map of bitsandbytes in float64: bits - 1 decades, twice the bins where there is no sign."""
    values = [0.0, 1.0]
    for i in range(bits - 1):
        edges = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        centers = 10.0 ** (i - bits + 2) * (edges[:-1] + edges[1:]) / 2
        values += [*centers, *(-centers if signed else [])]
    return np.sort(values)


def levels(bits: int, scheme: str, scale: float, zero: int) -> np.ndarray:
    """All values of a group, ascending."""
    if scheme in ("symmetric", "asymmetric"):
        codes = np.arange(1 if scheme == "symmetric" else 0, 1 << bits)
        return (codes - zero) * scale
    if scheme == "linear_nozero":
        return np.arange(1, 17) / 16 * scale
    if scheme == "nf4":
        q = lt.quant.quantize(np.ones((1, 32), np.float32), 4, 32, scheme="nf4")
        table = type(q)(**{**q.to_dict(), "codes": np.arange(0x00, 0x100, 0x11, dtype=np.uint8)[None]})
        return table.dequantize()[0, :16].astype(np.float64) * scale
    return dynamic_levels(bits, scheme == "dynamic") * scale


def between(grid: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 values within each gap of ``grid``, and the number of the gap; as many for each."""
    gap = np.repeat(np.arange(len(grid) - 1), -(-draws // (len(grid) - 1)))
    u = np.random.default_rng(seed).uniform(0, 1, gap.size)
    x = (grid[gap] + u * (grid[gap + 1] - grid[gap])).astype(np.float32)
    return np.clip(x, grid[gap], grid[gap + 1], dtype=np.float32), gap


def check(x: np.ndarray, y: np.ndarray, grid: np.ndarray, gap: np.ndarray) -> None:
    """Each y is a neighbour of its x, and no gap's mean error is off."""
    lower, width = grid[gap], grid[gap + 1] - grid[gap]
    share = np.clip((x - lower) / width, 0, 1)
    off = np.minimum(np.abs(y - lower), np.abs(y - lower - width)) / width
    assert off.max() < 1e-3
    error = np.bincount(gap, (y.astype(np.float64) - x) / width)
    z = error / np.sqrt(np.bincount(gap, share * (1 - share)))
    assert np.abs(z).max() < 4, (np.abs(z).argmax(), z)
    assert abs(z.sum() / math.sqrt(z.size)) < 4
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size)  # no less spread than chance has, either


@pytest.mark.parametrize(("bits", "scheme"), INTEGERS + MAPS)
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
def test_codecs(bits: int, scheme: str, scale_dtype: str) -> None:
    ends = [1.0, -1.0] if scheme == "asymmetric" else [1.0]
    probe = lt.quant.quantize(
        np.array([ends + [0.0] * 30], np.float32), bits, scheme=scheme, scale_dtype=scale_dtype
    )
    scale = np.array(probe.scale, np.float64) if scale_dtype == "float32" else widened(probe.scale)
    zero = int(probe.zero[0, 0]) if probe.zero is not None else 1 << (bits - 1)
    grid = levels(bits, scheme, float(scale[0, 0]), zero)
    grid = grid[np.abs(grid) <= 1.0]  # within the range that the first elements of a group span
    x, gap = between(grid, 1 << 20, seed=3)
    rows = -(-x.size // (GROUP - len(ends)))
    matrix = np.zeros((rows, GROUP), np.float32)
    matrix[:, : len(ends)] = ends
    inner = matrix[:, len(ends) :].reshape(-1).copy()
    inner[: x.size] = x
    matrix[:, len(ends) :] = inner.reshape(rows, -1)
    q = lt.quant.quantize(
        matrix, bits, GROUP, scheme=scheme, rounding="stochastic", seed=17, scale_dtype=scale_dtype
    )
    assert (q.scale == probe.scale[0, 0]).all()
    y = q.dequantize("float32")[:, len(ends) :].reshape(-1)[: x.size]
    check(x, y, grid, gap)


def widened(scale: np.ndarray) -> np.ndarray:
    """bfloat16 bits as numbers."""
    return (scale.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize(("bits", "scheme"), INTEGERS)
def test_requant(bits: int, scheme: str) -> None:
    """In-place steps from each code to values around it; the group keeps its scale."""
    ends = torch.zeros(1, GROUP)
    ends[0, 0], ends[0, 1] = 1.0, -1.0
    _, scale, zero = ops.quantize_group(ends, bits=bits, group=GROUP, scheme=scheme, headroom=True)
    step = float(scale[0, 0])
    offset = int(zero[0, 0]) if zero is not None else 1 << (bits - 1)
    grid = levels(bits, scheme, step, offset)
    target, gap = between(grid[np.abs(grid) <= 1.0], 1 << 20, seed=5)
    grid = grid[np.abs(grid) <= 1.0]
    rows = -(-target.size // (GROUP - 2))
    start = np.zeros((rows, GROUP), np.float32)
    start[:, :2] = ends[0, :2]
    inner = np.zeros(rows * (GROUP - 2), np.float32)
    inner[: target.size] = grid[gap + np.random.default_rng(6).integers(0, 2, gap.size)]
    start[:, 2:] = inner.reshape(rows, -1)
    w = ops.quantize_group(torch.from_numpy(start), bits=bits, group=GROUP, scheme=scheme, headroom=True)
    before = ops.dequantize_group(*w, bits=bits, group=GROUP, cols=GROUP)
    inner[: target.size] = target
    delta = torch.zeros(rows, GROUP)
    delta[:, 2:] = torch.from_numpy(inner.reshape(rows, -1)) - before[:, 2:]
    ops.requant_add_sr_(*w, delta, bits=bits, group=GROUP, seed=1, step=2, param=3)
    assert (w[1] == scale).all()
    after = ops.dequantize_group(*w, bits=bits, group=GROUP, cols=GROUP)
    aimed = (before.double() + delta.double())[:, 2:].reshape(-1)[: target.size].numpy()
    check(aimed, after[:, 2:].reshape(-1)[: target.size].numpy(), grid, gap)
