# SPDX-License-Identifier: Apache-2.0
"""What docs/quantization.md says of who else reads a format, asked of the peers themselves where they are installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import lowtide as lt


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r requirements/bench.txt")


def data(*, signed: bool) -> torch.Tensor:
    """Normal, over four decades, zeros among it."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(64, 1024, generator=g) * 10.0 ** (4 * torch.rand(64, 1024, generator=g) - 4)
    x[::7, ::5] = 0
    return x if signed else x.abs()


def nibbles(q: lt.quant.Quantized) -> torch.Tensor:
    """4-bit codes of one row, one an element: code j and 16 + j of a block of 32 share a byte."""
    blocks = q.codes.reshape(-1, 16)
    return torch.cat([blocks & 15, blocks >> 4], dim=1).flatten()


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_reads_8_bit_dynamic_codes(signed: bool) -> None:
    need("bitsandbytes")
    from bitsandbytes import functional as bnb

    x = data(signed=signed)
    q = lt.quant.quantize(x, scheme="dynamic" if signed else "dynamic_unsigned", group=256, flat=True)
    table = bnb.create_dynamic_map(signed=signed)
    theirs = bnb.dequantize_blockwise(q.codes.reshape(x.shape), absmax=q.scale[0], code=table, blocksize=256)
    assert torch.allclose(theirs, q.dequantize(), rtol=3e-7, atol=0)
    # Their CPU quantizer looks codes up by 16 bits of the value and is up to seven of them off: ours is closer or equal.
    codes, state = bnb.quantize_blockwise(x, code=table, blocksize=256)
    assert torch.equal(state.absmax, q.scale[0])
    back = bnb.dequantize_blockwise(codes, state)
    absmax = q.scale[0].repeat_interleave(256).reshape(x.shape)
    assert bool(((q.dequantize() - x).abs() <= (back - x).abs() + 1e-6 * absmax).all())


@pytest.mark.parametrize("signed", [True, False])
def test_torchao_makes_the_same_8_bit_dynamic_codes(signed: bool) -> None:
    need("torchao")
    from torchao.optim import quant_utils as ao

    x = data(signed=signed)
    q = lt.quant.quantize(x, scheme="dynamic" if signed else "dynamic_unsigned", group=256, flat=True)
    scaled, scale = ao.scale_tensor(x, 256)
    assert torch.equal(scale, q.scale[0])
    codes = ao.quantize_8bit_with_qmap(scaled, torch.tensor(ao.create_dynamic_map(signed)))
    differ = codes.flatten() != q.codes[0]
    assert differ.double().mean() < 1e-4  # at midpoints, give or take the roundings of their table


@pytest.mark.parametrize("scheme", ["dynamic", "linear_nozero"])
def test_torchao_makes_the_same_4_bit_codes(scheme: str) -> None:
    need("torchao")
    from torchao.optim import quant_utils as ao

    x = data(signed=scheme == "dynamic")
    q = lt.quant.quantize(x, 4, 128, scheme=scheme, flat=True)
    scaled, scale = ao.scale_tensor(x, 128)
    assert torch.equal(scale, q.scale[0])
    table = (
        torch.tensor(ao.create_dynamic_map(True, 3, 4))
        if scheme == "dynamic"
        else torch.linspace(0, 1, 17)[1:]
    )
    codes = ao.quantize_4bit_with_qmap(scaled, table).flatten()
    assert (codes != nibbles(q)).double().mean() < 1e-4


def test_bitsandbytes_makes_the_same_nf4_codes() -> None:
    need("bitsandbytes")
    from bitsandbytes import functional as bnb

    x = data(signed=True)
    q = lt.quant.quantize(x, 4, 64, scheme="nf4", flat=True)
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    assert torch.equal(state.absmax, q.scale[0])
    pairs = packed.flatten()  # neighbours share a byte, the first in its high half
    assert torch.equal(torch.stack([pairs >> 4, pairs & 15], dim=1).flatten(), nibbles(q))
    assert torch.equal(bnb.dequantize_4bit(packed, state), q.dequantize())
