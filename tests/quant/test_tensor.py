# SPDX-License-Identifier: Apache-2.0
"""lt.quant.quantize / dequantize on tensors and arrays."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt

FORMATS = [(b, s, r) for b in (8, 4) for s in ("symmetric", "asymmetric") for r in ("nearest", "stochastic")]


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bits", "scheme", "rounding"), FORMATS)
@pytest.mark.parametrize("shape", [(0,), (1,), (33,), (2, 3, 65), (3, 0), (0, 5), (4, 576)])
def test_arrays_and_tensors_hold_the_same_bits(
    shape: tuple[int, ...], bits: int, scheme: str, rounding: str
) -> None:
    x = data(*shape)
    kwargs: dict[str, Any] = {
        "bits": bits,
        "group": 64,
        "scheme": scheme,
        "rounding": rounding,
        "seed": 2,
        "step": 3,
    }
    a, b = lt.quant.quantize(x, **kwargs), lt.quant.quantize(x.numpy(), **kwargs)
    for part in ("codes", "scale", "zero"):
        u, v = getattr(a, part), getattr(b, part)
        assert (u is None and v is None) or (isinstance(v, np.ndarray) and u.numpy().tobytes() == v.tobytes())
    assert a.shape == b.shape == shape
    assert a.nbytes == b.nbytes
    y, z = a.dequantize(), b.dequantize()
    assert y.shape == z.shape == shape
    assert y.numpy().tobytes() == z.tobytes()
    if x.numel():
        steps = 1 if rounding == "stochastic" else 0.51
        assert (y - x).abs().max() <= steps * a.scale.max() * (1.5 if scheme == "asymmetric" else 1)


def test_bfloat16_comes_back_as_bfloat16() -> None:
    x = data(3, 100).bfloat16()
    q = lt.quant.quantize(x, group=32)
    assert q.dtype == "bfloat16"
    assert q.dequantize().dtype is torch.bfloat16
    assert lt.quant.dequantize(q, dtype="float32").dtype is torch.float32
    # The same bits as rounding the float32 values.
    assert torch.equal(q.dequantize(), q.dequantize("float32").bfloat16())
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without ml_dtypes")
    n = lt.quant.quantize(x.float().numpy().astype(ml_dtypes.bfloat16), group=32)
    assert n.codes.tobytes() == q.codes.numpy().tobytes()
    assert n.dequantize().dtype == ml_dtypes.bfloat16


def test_int4_takes_half_a_byte_an_element() -> None:
    q = lt.quant.quantize(data(256, 4096), bits=4, group=128, scheme="asymmetric")
    assert q.nbytes == 256 * 4096 // 2 + 256 * 32 * 5


@pytest.mark.parametrize(("bits", "scheme", "rounding"), FORMATS)
def test_dictionaries_round_trip_through_weights_only_loading(bits: int, scheme: str, rounding: str) -> None:
    q = lt.quant.quantize(data(5, 70), bits=bits, group=32, scheme=scheme, rounding=rounding)
    file = io.BytesIO()
    torch.save(q.to_dict(), file)
    file.seek(0)
    r = lt.quant.Quantized.from_dict(torch.load(file, weights_only=True))
    assert torch.equal(q.dequantize(), r.dequantize())
    assert repr(q) == repr(r)


def test_it_is_an_operand_of_the_packed_product() -> None:
    from lowtide import ops

    q = lt.quant.quantize(data(20, 96), bits=4, group=32, scheme="asymmetric")
    x = data(7, 96)
    want = x.double() @ q.dequantize().double().T
    # 96 fp32 roundings of partial sums that are at most about the largest result
    assert (ops.matmul(x, q, tb=True) - want).abs().max() < 96 * 2**-24 * want.abs().max()


def test_non_finite_policies() -> None:
    x = data(4, 64)
    x[1, 2] = float("nan")
    for array in (x, x.numpy()):
        with pytest.raises(lt.LowtideValueError, match="1 non-finite element"):
            lt.quant.quantize(array)
        q = lt.quant.quantize(array, nonfinite="skip")
        assert q.nonfinite == 1
        assert float(q.dequantize()[1, 2]) == 0


def damaged(**changes: Any) -> Any:
    state = lt.quant.quantize(data(3, 70), bits=4, group=32, scheme="asymmetric").to_dict()
    state.update(changes)
    return lambda: lt.quant.Quantized.from_dict({k: v for k, v in state.items() if v is not ...})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lt.quant.quantize("x"), "NumPy array or a torch tensor"),
        (lambda: lt.quant.quantize(np.zeros(3)), "float32, bfloat16 or float16"),
        (lambda: lt.quant.quantize(np.float32(3)), "NumPy array"),
        (lambda: lt.quant.quantize(np.zeros((), np.float32)), "at least one dimension"),
        (lambda: lt.quant.quantize(data(3), bits=5), "bits must be 8 or 4"),
        (lambda: lt.quant.quantize(data(3), group=100), "multiple of 32"),
        (lambda: lt.quant.quantize(data(3), group=True), "multiple of 32"),
        (lambda: lt.quant.quantize(data(3), scheme="nf5"), "scheme must be one of"),
        (lambda: lt.quant.quantize(data(3), scheme="nf4"), "'nf4' has 4 bits"),
        (lambda: lt.quant.quantize(data(3), bits=4, scheme="nf4", headroom=True), "headroom is for"),
        (lambda: lt.quant.quantize(data(3), bits=4, scheme="nf4", compat=True), "asymmetric"),
        (lambda: lt.quant.quantize(data(3), scale_dtype="float16"), "scale_dtype must be one of"),
        (lambda: lt.quant.quantize(data(3).double()), "float32, bfloat16 or float16"),
        (lambda: lt.quant.quantize(torch.tensor(3.0)), "at least one dimension"),
        (lambda: lt.quant.quantize(data(3), compat=True), "asymmetric"),
        (
            lambda: lt.quant.quantize(data(3), scheme="asymmetric", compat=True, headroom=True),
            "exclude each other",
        ),
        (lambda: lt.quant.quantize(data(3), seed=-1), "seed"),
        (lambda: lt.quant.dequantize(data(3)), "q must be a Quantized"),
        (lambda: lt.quant.quantize(data(3)).dequantize("float64"), "dtype must be one of"),
        (damaged(extra=1), r"unknown \['extra'\]"),
        (damaged(codes=...), r"missing \['codes'\]"),
        (damaged(shape=(3, 71)), "codes must have shape"),
        (damaged(shape=(3, -70)), "shape must hold"),
        (damaged(shape=()), "at least one dimension"),
        (damaged(bits=3), "bits"),
        (damaged(group=64), "scale must have shape"),
        (damaged(scale=torch.zeros(3, 3, dtype=torch.float64)), "scale must be float32"),
        (damaged(scale=torch.full((3, 3), float("inf"))), "damaged"),
        (damaged(scale=-torch.ones(3, 3)), "damaged"),
        (damaged(zero=None), "zero must be given"),
        (damaged(scheme="symmetric"), "zero must be None"),
        (damaged(zero=np.zeros((3, 3), np.uint8)), "all NumPy arrays or all torch"),
        (damaged(codes=[1, 2]), "all NumPy arrays or all torch"),
        (damaged(nonfinite=-1), "nonfinite must be"),
        (damaged(dtype="float64"), "dtype must be"),
        (damaged(flat=1), "flat must be"),
        (damaged(flat=True), "codes must have shape"),
        (damaged(scheme="nf4"), "zero must be None"),
    ],
)
def test_bad_arguments_and_damaged_states_are_named(call, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_numpy_surface_never_imports_torch() -> None:
    code = (
        "import sys, numpy as np, lowtide as lt\n"
        "q = lt.quant.quantize(np.ones(70, np.float32), bits=4, group=32); q.dequantize(); q.to_dict()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(0,), (1,), (257,), (3, 700)])
def test_dynamic_codes_of_arrays_and_tensors(shape: tuple[int, ...]) -> None:
    x = data(*shape)
    a, b = lt.quant.quantize(x, scheme="dynamic"), lt.quant.quantize(x.numpy(), scheme="dynamic")
    assert a.codes.numpy().tobytes() == b.codes.tobytes()
    assert a.scale.numpy().tobytes() == b.scale.tobytes()
    assert a.dequantize().numpy().tobytes() == b.dequantize().tobytes()
    assert a.dequantize().shape == shape
    if x.numel():
        assert (a.dequantize() - x).norm() < 0.02 * x.norm()
    r = lt.quant.Quantized.from_dict(a.to_dict())
    assert torch.equal(r.dequantize(), a.dequantize())


def test_dynamic_policies_and_refusals() -> None:
    x = data(300)
    x[3] = float("inf")
    for array in (x, x.numpy()):
        with pytest.raises(lt.LowtideValueError, match="1 non-finite element"):
            lt.quant.quantize(array, scheme="dynamic")
        q = lt.quant.quantize(array, scheme="dynamic", nonfinite="skip")
        assert q.nonfinite == 1
        assert float(q.dequantize()[3]) == 0
    state = lt.quant.quantize(data(300), scheme="dynamic").to_dict()
    with pytest.raises(lt.LowtideValueError, match="codes must have shape"):
        lt.quant.Quantized.from_dict({**state, "shape": (301,)})
    with pytest.raises(lt.LowtideValueError, match="scale must have shape"):
        lt.quant.Quantized.from_dict({**state, "group": 128})
    with pytest.raises(lt.LowtideValueError, match="codes must have shape"):
        lt.quant.Quantized.from_dict({**state, "bits": 4})
