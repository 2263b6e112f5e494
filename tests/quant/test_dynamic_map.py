# SPDX-License-Identifier: Apache-2.0
"""The 8-bit dynamic maps: all 256 codes and midpoints against float64, and bitsandbytes' format."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lowtide as lt

SCHEMES = ["dynamic", "dynamic_unsigned"]


def create_dynamic_map(signed: bool) -> torch.Tensor:
    """The table as bitsandbytes builds it (exponent bits 7, total bits 8), in its float32 arithmetic."""
    data: list[float] = []
    for i in range(7):
        items = 2**i if signed else 2 ** (i + 1)
        bounds = torch.linspace(0.1, 1, items + 1, dtype=torch.float32)
        means = (bounds[:-1] + bounds[1:]) / 2.0
        data += (10.0 ** (i - 6) * means).tolist()
        if signed:
            data += (-(10.0 ** (i - 6)) * means).tolist()
    return torch.tensor(sorted([*data, 0.0, 1.0]), dtype=torch.float32)


def exact_levels(scheme: str) -> np.ndarray:
    """The centers of the bins, in float64."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if scheme == "dynamic" else i + 1) + 1)
        centers = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*centers, *(-centers if scheme == "dynamic" else [])]
    return np.array(sorted(values))


def table(scheme: str) -> np.ndarray:
    """What all 256 codes decode to."""
    codes, one = np.arange(256, dtype=np.uint8)[None], np.ones((1, 1), np.float32)
    return lt.quant.Quantized(codes, one, None, (256,), 8, 256, scheme).dequantize()


def noise(*shape: int) -> np.ndarray:
    """Normal, spread over the seven decades of the maps."""
    rng = np.random.default_rng(3)
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-7, 0, shape)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", [96, 256])
def test_codes_are_the_nearest_levels(isa: str, scheme: str, scale_dtype: str, group: int) -> None:
    x = noise(6, 1000)
    q = lt.quant.quantize(x, 8, group, scheme=scheme, scale_dtype=scale_dtype)
    bits = q.scale if scale_dtype == "float32" else (q.scale.astype(np.uint32) << 16).view(np.float32)
    scale = np.repeat(bits, group, axis=1)[:, :1000].astype(np.float64)
    levels = exact_levels(scheme)
    distance = np.abs((x / scale)[..., None] - levels)
    chosen = np.take_along_axis(distance, q.codes[..., None].astype(np.int64), -1)[..., 0]
    # within 1e-4 of a gap both sides of a midpoint: the boundaries are those of bins, rounded to float32
    gaps = np.diff(levels, prepend=levels[0], append=levels[-1])
    widest = np.maximum(gaps[:-1], gaps[1:])
    assert (chosen <= distance.min(-1) + 1e-4 * widest[q.codes]).all()
    np.testing.assert_allclose(q.dequantize(), levels[q.codes] * scale, rtol=4e-7, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_codes_and_all_midpoints(isa: str, scheme: str) -> None:
    """Levels come back as themselves; a midpoint, give or take 1e-4 of a gap, goes to either side."""
    levels = exact_levels(scheme)
    np.testing.assert_allclose(table(scheme), levels, rtol=2e-7, atol=0)
    middle, gap = (levels[:-1] + levels[1:]) / 2, np.diff(levels)
    codes = np.arange(256)
    for x, want in (
        (table(scheme), codes),
        (middle - 1e-4 * gap, codes[:-1]),
        (middle + 1e-4 * gap, codes[1:]),
    ):
        q = lt.quant.quantize(np.append(x, 1.0).astype(np.float32), 8, 512, scheme=scheme)
        assert q.codes[0, :-1].tolist() == want.tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_row_in_groups_of_256_is_the_format_of_bitsandbytes(isa: str, scheme: str) -> None:
    """Their absmax, and the codes that a search finds in their table."""
    x = torch.from_numpy(noise(50_000))
    x = x if scheme == "dynamic" else x.abs()
    q = lt.quant.quantize(x, scheme=scheme, group=256, flat=True)
    absmax = torch.nn.functional.pad(x.abs(), (0, 176)).reshape(-1, 256).amax(1)
    assert torch.equal(q.scale[0], absmax)
    theirs = create_dynamic_map(scheme == "dynamic").double()
    assert torch.allclose(torch.from_numpy(table(scheme)).double(), theirs, rtol=1.5e-7, atol=0)
    y = x.double() / absmax.double().repeat_interleave(256)[: x.numel()]
    middle = (theirs[1:] + theirs[:-1]) / 2
    want = torch.searchsorted(middle, y)
    # Their table and our bins differ by float32 roundings: within 1e-4 of a gap both sides of a midpoint.
    distance, at = (y[:, None] - middle).abs().min(1)
    near = distance < 1e-4 * (theirs[1:] - theirs[:-1])[at]
    assert bool(((q.codes[0] == want) | near).all())
    assert float(near.double().mean()) < 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mean_errors_of_a_million_draws(scheme: str, rounding: str, dtype: str) -> None:
    """z-scores in units of each element's gap, over all and by decade, also in the gap around zero.

    Stochastic rounding is unbiased whatever the values; nearest rounding over values that are uniform in their gaps.
    """
    rng = np.random.default_rng(7)
    levels = exact_levels(scheme)
    low = rng.integers(0 if rounding == "stochastic" else 127, 255, (4400, 255))
    x = levels[low] + rng.uniform(0, 1, low.shape) * np.diff(levels)[low]
    t = torch.from_numpy(np.concatenate([np.ones((4400, 1)), x], axis=1)).to(getattr(torch, dtype))
    q = lt.quant.quantize(t, 8, 256, scheme=scheme, rounding=rounding, seed=5)
    assert (q.scale == 1).all()
    y = t.double().numpy()[:, 1:]
    low = np.clip(np.searchsorted(levels, y, "right") - 1, 0, 254)
    error = (q.dequantize("float32").double().numpy()[:, 1:] - y) / np.diff(levels)[low]
    if rounding == "nearest" and dtype != "float32":  # 16-bit values are not uniform within gaps
        assert np.abs(error).max() <= 0.5 + 1e-3
        return
    assert error.size >= 1_000_000
    assert abs(error.mean()) * math.sqrt(error.size) / error.std() < 4
    decade = np.floor(np.log10(np.maximum(np.abs(levels[low] + levels[low + 1]) / 2, 1e-7)) + 1e-9)
    for sign in (-1, 1):
        for d in np.unique(decade):
            part = error[(decade == d) & (np.sign(levels[low] + levels[low + 1]) == sign)]
            if part.size > 100:
                assert abs(part.mean()) * math.sqrt(part.size) / part.std() < 4, (sign, d)


def test_the_signed_map_saturates_below_its_lowest_value() -> None:
    """There is no -1: everything below is -0.993."""
    x = torch.tensor([[1.0, -1.0, -0.997, -0.9935]])
    for rounding in ("nearest", "stochastic"):
        q = lt.quant.quantize(x, scheme="dynamic", rounding=rounding)
        assert q.codes.tolist() == [[255, 0, 0, 0]]
