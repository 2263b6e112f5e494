# SPDX-License-Identifier: Apache-2.0
"""The 8-bit dynamic map from Python: bitsandbytes' format, torch and NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import _core, ops

SIZES = [0, 1, 15, 255, 256, 257, 1000, 40001]


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


def noise(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, generator=generator) * 10.0 ** torch.empty(n).uniform_(-7, 0, generator=generator)


@pytest.mark.parametrize("signed", [True, False])
def test_decoded_table_is_bitsandbytes(isa: str, signed: bool) -> None:
    want = create_dynamic_map(signed).double()
    got = ops.dequantize_dynamic(torch.arange(256, dtype=torch.uint8), torch.ones(1), signed=signed).double()
    assert got.sign().equal(want.sign())
    assert float(((got - want).abs() / want.abs().clamp_min(1e-30)).max()) < 1.5e-7


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_entries_of_their_table(isa: str, signed: bool) -> None:
    x = noise(50_000) if signed else noise(50_000).abs()
    codes, absmax = ops.quantize_dynamic(x, signed=signed)
    table = create_dynamic_map(signed).double()
    y = x.double() / absmax.double().repeat_interleave(256)[: x.numel()]
    middle = (table[1:] + table[:-1]) / 2
    want = torch.searchsorted(middle, y)
    # Their table and our bins differ by float32 roundings: within 1e-4 of a gap both sides of a midpoint.
    distance, at = (y[:, None] - middle).abs().min(1)
    near = distance < 1e-4 * (table[1:] - table[:-1])[at]
    assert bool(((codes == want) | near).all())
    assert float(near.double().mean()) < 1e-3


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", SIZES)
def test_torch_and_numpy_give_the_same_bits(isa: str, n: int, signed: bool) -> None:
    x = noise(n)
    codes, absmax = ops.quantize_dynamic(x, signed=signed)
    blocks = -(-n // 256)
    assert (codes.shape, absmax.shape) == ((n,), (blocks,))
    codes_np, absmax_np, y_np = np.empty(n, np.uint8), np.empty(blocks, np.float32), np.empty(n, np.float32)
    assert _core.quantize_dynamic(codes_np, absmax_np, x.numpy(), signed) == 0
    _core.dequantize_dynamic(y_np, codes_np, absmax_np, signed)
    y = ops.dequantize_dynamic(codes, absmax, signed=signed)
    assert codes.numpy().tobytes() == codes_np.tobytes()
    assert absmax.numpy().tobytes() == absmax_np.tobytes()
    assert y.numpy().tobytes() == y_np.tobytes()


def test_shapes_strides_and_out() -> None:
    x = noise(600).reshape(20, 30)
    codes, absmax = ops.quantize_dynamic(x.T, signed=True)
    again, same = ops.quantize_dynamic(x.T.contiguous(), signed=True)
    assert torch.equal(codes, again)
    assert torch.equal(absmax, same)
    out = torch.empty(30, 20)
    assert ops.dequantize_dynamic(codes, absmax, signed=True, out=out) is out
    assert torch.equal(out.flatten(), ops.dequantize_dynamic(codes, absmax, signed=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.quantize_dynamic(torch.ones(3).double(), signed=True), "float32"),
        (lambda: ops.quantize_dynamic(torch.tensor([1.0, math.inf, math.nan]), signed=True), "2 non-finite"),
        (lambda: ops.dequantize_dynamic(torch.ones(3), torch.ones(1), signed=True), "uint8"),
        (lambda: ops.dequantize_dynamic(torch.ones(300).byte(), torch.ones(1), signed=True), "2 elements"),
        (
            lambda: ops.dequantize_dynamic(
                torch.ones(3).byte(), torch.ones(1), signed=True, out=torch.ones(2)
            ),
            "out must",
        ),
        (
            lambda: _core.quantize_dynamic(
                np.ones(3, np.uint8), np.ones(1, np.float32), np.ones(4, np.float32), True
            ),
            "codes needs",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_opcheck() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.lowtide.quantize_dynamic.default, (noise(300), True))
    torch.library.opcheck(
        torch.ops.lowtide.dequantize_dynamic.default, (torch.empty(256), codes, torch.ones(1), False)
    )


def test_compiles_without_graph_breaks() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        codes, absmax = ops.quantize_dynamic(x * 2, signed=True)
        return ops.dequantize_dynamic(codes, absmax, signed=True) + 1

    x = noise(300)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))
