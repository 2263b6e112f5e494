# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import _core, ops

NAMES = ("rademacher", "gaussian", "ih4", "lut8")
# Round steps, decays, first, dir_steps, dir_slots, coeffs of two steps.
SCHEDULE = (
    torch.tensor([4, 5]),
    torch.tensor([0.98, 1.0]),
    torch.tensor([0, 2, 3]),
    torch.tensor([4, 4, 2]),
    torch.tensor([0, 5, 1]),
    torch.tensor([3e-3, -2e-3, 1e-3]),
)


def quantized(bits: int, scheme: str, shape: tuple[int, int] = (9, 100)) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    return lt.quant.quantize(x, bits=bits, group=32, scheme=scheme)


def call(q: Any, **changes: Any) -> None:
    args = {
        "codes": q.codes, "scale": q.scale, "zero": q.zero, "cols": q.shape[-1], "bits": q.bits, "group": q.group,
        "param": 4, "layer_scale": 0.5, "seed": 11, "dist": 0, **dict(
            zip(("round_steps", "decays", "first", "dir_steps", "dir_slots", "coeffs"), SCHEDULE, strict=True)
        ), "offset": 0,
    }  # fmt: skip
    ops.spsa_replay_codes_(**{**args, **changes})


def unpack(q: Any) -> np.ndarray:
    """Codes as integers (rows, cols)."""
    rows, cols = q.shape
    codes = q.codes.numpy()
    if q.bits == 8:
        return codes.astype(np.int64)
    out = np.empty((rows, cols), np.int64)
    for c in range(cols):
        byte = codes[:, c // 32 * 16 + c % 16]
        out[:, c] = byte & 15 if c % 32 < 16 else byte >> 4
    return out


def words(n: int, seed: int, step: int, param: int) -> np.ndarray:
    """The words that round, one an element, put together from their bits."""
    signs = lt.random.sample((n, 32), seed=seed, step=step, param=param, role="weight_sr", dist="rademacher")
    return ((signs < 0).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1)


@pytest.mark.parametrize("dist", [0, 1, 3])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [8, 4])
def test_is_its_definition(isa: str, bits: int, scheme: str, dist: int) -> None:
    q = quantized(bits, scheme)
    code = unpack(q)
    group = np.arange(100) // 32
    zero = q.zero.numpy().astype(np.int64)[:, group] if q.zero is not None else 1 << (bits - 1)
    inv = (np.float32(1) / q.scale.numpy())[:, group]
    for step, decay, directions in ((4, np.float32(0.98), (0, 1)), (5, np.float32(1), (2,))):
        acc = np.zeros(code.shape, np.float32)
        for j in directions:
            z = lt.random.sample(
                code.shape,
                seed=11,
                step=int(SCHEDULE[3][j]),
                slot=int(SCHEDULE[4][j]),
                param=4,
                dist=NAMES[dist],
            )
            c = np.float32(SCHEDULE[5][j].item()) * np.float32(0.5)
            acc = (c.astype(np.float64) * z + acc).astype(np.float32)  # one rounding, here also the double's
        steps = (code - zero).astype(np.float32) * (decay - np.float32(1)) + acc * inv
        size = np.abs(steps.astype(np.float64))
        draw = (words(code.size, 11, step, 4) >> np.uint64(8)).reshape(code.shape) / 2**24
        moved = np.floor(size) + (draw < np.rint((size - np.floor(size)) * 2**24) / 2**24)
        code = code + np.where(steps < 0, -moved, moved).astype(np.int64)
        code = code.clip(1 if scheme == "symmetric" else 0, 2**bits - 1)
    version = q.codes._version
    call(q, dist=dist)
    assert np.array_equal(unpack(q), code)
    assert q.codes._version > version


@pytest.mark.parametrize("bits", [8, 4])
def test_numpy_shards_and_threads_give_the_same_bits(bits: int) -> None:
    whole, rows, array = (quantized(bits, "asymmetric", (40, 333)) for _ in range(3))
    call(whole)
    torch.set_num_threads(2)
    for a, b in ((0, 7), (7, 40)):
        part = {"codes": rows.codes[a:b], "scale": rows.scale[a:b], "zero": rows.zero[a:b], "offset": a * 333}
        call(rows, **part)
    _core.spsa_replay_codes(
        array.codes.numpy(), array.scale.numpy(), array.zero.numpy(), 333, bits, 32, 4, 0.5, 11, 0,
        *(t.numpy() for t in SCHEDULE), 0,
    )  # fmt: skip
    assert torch.equal(whole.codes, rows.codes)
    assert torch.equal(whole.codes, array.codes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bits": 3}, "bits"),
        ({"cols": 99}, "codes"),
        ({"cols": 129}, "scale"),
        ({"zero": torch.zeros(9, 4)}, "uint8"),
        ({"param": -1}, "param"),
        ({"offset": -1}, "offset"),
        ({"layer_scale": math.nan}, "layer_scale"),
        ({"dist": 7}, "dist"),
        ({"coeffs": torch.ones(2)}, "dir_steps"),
        ({"decays": torch.tensor([1.0, math.nan])}, "decays"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(changes: dict[str, Any], match: str) -> None:
    q = quantized(8, "symmetric")
    before = q.codes.clone()
    with pytest.raises((lt.LowtideError, RuntimeError), match=match):
        call(q, **changes)
    assert torch.equal(q.codes, before)


def test_the_op_itself_never_writes_out_of_bounds() -> None:
    q = quantized(8, "symmetric")
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.lowtide.spsa_replay_codes_(q.codes, q.scale, None, 101, 8, 32, 4, 1.0, 1, 0, *SCHEDULE)


def test_opcheck_and_compile() -> None:
    q = quantized(4, "asymmetric")
    args = (q.codes, q.scale, q.zero, 100, 4, 32, 4, 1.0, 1, 1, *SCHEDULE)
    torch.library.opcheck(torch.ops.lowtide.spsa_replay_codes_.default, args)

    def f(codes: Tensor, *tensors: Tensor) -> Tensor:
        codes = codes.clone()
        ops.spsa_replay_codes_(codes, q.scale, q.zero, 100, 4, 32, 4, 1.0, 1, 1, *tensors)
        return codes

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(q.codes, *SCHEDULE)
    assert torch.equal(got, f(q.codes, *SCHEDULE))
