# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch
from emulated import Twins, on_device

from lowtide import ops

FORMATS = list(itertools.product([8, 4], ["symmetric", "asymmetric"], ["nearest", "stochastic"]))
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ADDRESS = {"seed": 3, "step": 1, "slot": 2, "param": 5}
COLS = (0, 1, 17, 64, 257)


def matrix(rows: int, cols: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("bits", "scheme", "rounding"), FORMATS)
def test_codec_and_requantization(bits: int, scheme: str, rounding: str) -> None:
    with Twins() as twins:
        for cols, dtype in itertools.product(COLS, FLOATS):
            codes, scale, zero = ops.quantize_group(
                matrix(5, cols, dtype), bits=bits, group=64, scheme=scheme, rounding=rounding, offset=7, **ADDRESS
            )  # fmt: skip
            ops.dequantize_group(codes, scale, zero, bits=bits, group=64, cols=cols, dtype=dtype)
            delta = matrix(5, cols, seed=1) * 0.1
            if cols > 40:
                delta[2, 33] = math.nan  # its group stays as it was
            skipped = ops.requant_add_sr_(
                codes, scale, zero, delta, alpha=-0.5, decay=0.99, bits=bits, group=64, nonfinite="skip", **ADDRESS
            )  # fmt: skip
            assert skipped.item() == (cols > 40)
    assert twins.calls["requant_add_sr_list_"] == len(COLS) * len(FLOATS)


def test_lists_of_matrices() -> None:
    xs = [matrix(3, 70), matrix(1, 1, seed=1), matrix(0, 5), matrix(4, 64, seed=2)]
    packed = [ops.quantize_group(x, bits=4, group=32, scheme="asymmetric") for x in xs]
    codes, scales, zeros = (list(x) for x in zip(*packed, strict=True))
    with Twins() as twins:
        ops.quantize_group_list_(xs, codes, scales, zeros, bits=4, group=32, rounding="stochastic", seed=1)
        ops.dequantize_group_list_(codes, scales, zeros, [torch.empty_like(x) for x in xs], bits=4, group=32)
        ops.requant_add_sr_list_(codes, scales, zeros, xs, bits=4, group=32, seed=2, step=1)
    assert twins.calls == {
        "quantize_group_list_": 1,
        "dequantize_group_list_": 1,
        "requant_add_sr_list_": 1,
    }


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    "scheme", ["nf4", "dynamic", "dynamic_unsigned", "linear_nozero", "dynamic8", "dynamic8_unsigned"]
)
def test_level_maps(scheme: str, rounding: str) -> None:
    with Twins() as twins:
        for cols, dtype in itertools.product(COLS, FLOATS):
            x = matrix(5, cols, dtype)
            codes, scale = ops.quantize_map(x, map=scheme, group=64, rounding=rounding, **ADDRESS)
            ops.dequantize_map(codes, scale, map=scheme, group=64, cols=cols, dtype=dtype)
    calls = len(COLS) * len(FLOATS)
    assert twins.calls == {"quantize_map_list_": calls, "dequantize_map_list_": calls}


def test_nonfinite_input_is_counted_or_refused_before_writing() -> None:
    op = torch.ops.lowtide.quantize_group_list_.default
    x = matrix(2, 70)
    x[1, 69], x[0, 0] = math.inf, math.nan
    codes, scale = torch.zeros(2, 70, dtype=torch.uint8), torch.zeros(2, 2)
    call = ([x], [codes], [scale], [], 8, 64, False, 0, 0, 0, 0, [0], 1, 0)
    assert on_device(op, ([x], [codes.clone()], [scale.clone()], *call[3:], False)).item() == 2
    with pytest.raises(RuntimeError, match="x has 2 non-finite elements"):
        on_device(op, (*call, True))
    assert int(codes.sum()) == 0
