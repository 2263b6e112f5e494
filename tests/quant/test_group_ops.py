# SPDX-License-Identifier: Apache-2.0
"""The group codec through torch ops and the NumPy binding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import _core, ops
from lowtide.quant._format import group_count, row_bytes

FORMATS = list(itertools.product([8, 4], ["symmetric", "asymmetric"], ["nearest", "stochastic"]))
ADDRESS = {"seed": 3, "step": 1, "slot": 2, "param": 5, "offset": 7}


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def numpy_quantize(x: np.ndarray, bits: int, group: int, scheme: str, rounding: str) -> tuple:
    rows, cols = x.shape
    codes = np.empty((rows, row_bytes(cols, bits)), np.uint8)
    scale = np.empty((rows, group_count(cols, group)), np.float32)
    zero = np.empty(scale.shape, np.uint8) if scheme == "asymmetric" else None
    where = (ADDRESS[k] for k in ("seed", "step", "slot", "param"))
    bad = _core.quantize_group(
        x, codes, scale, zero, bits, group, rounding == "stochastic", 0, *where, 5, ADDRESS["offset"]
    )
    assert bad == 0
    return codes, scale, zero


def unpack(codes: np.ndarray, cols: int, bits: int) -> np.ndarray:
    """Codes one per element, written from the format's description."""
    if bits == 8:
        return codes
    out = np.zeros((codes.shape[0], cols), np.uint8)
    for c in range(cols):
        byte = codes[:, c // 32 * 16 + c % 16]
        out[:, c] = byte & 15 if c % 32 < 16 else byte >> 4
    return out


@pytest.mark.parametrize(("bits", "scheme", "rounding"), FORMATS)
@pytest.mark.parametrize("cols", [0, 1, 17, 64, 257, 576])
def test_torch_and_numpy_give_the_same_bits(
    isa: str, cols: int, bits: int, scheme: str, rounding: str
) -> None:
    x = matrix(5, cols)
    codes, scale, zero = ops.quantize_group(
        x, bits=bits, group=64, scheme=scheme, rounding=rounding, **ADDRESS
    )
    want = numpy_quantize(x.numpy(), bits, 64, scheme, rounding)
    for got, array in zip((codes, scale, zero), want, strict=True):
        assert (got is None and array is None) or got.numpy().tobytes() == array.tobytes()
    for dtype in (torch.float32, torch.bfloat16):
        y = ops.dequantize_group(codes, scale, zero, bits=bits, group=64, cols=cols, dtype=dtype)
        z = np.empty(x.shape, np.float32 if dtype is torch.float32 else np.uint16)
        _core.dequantize_group(want[0], want[1], want[2], z, bits, 64)
        assert y.dtype is dtype
        assert y.view(torch.int16 if dtype is torch.bfloat16 else dtype).numpy().tobytes() == z.tobytes()


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_follow_the_definition(bits: int, scheme: str) -> None:
    """Against NumPy arithmetic written from the definition, not from the kernel."""
    x = matrix(4, 200).numpy()
    codes, scale, zero = (
        None if t is None else t.numpy()
        for t in ops.quantize_group(torch.from_numpy(x), bits=bits, group=64, scheme=scheme)
    )
    got = unpack(codes, 200, bits)
    for r, g in itertools.product(range(4), range(4)):
        part = x[r, 64 * g : 64 * g + 64]
        if scheme == "symmetric":
            top = np.float32(2 ** (bits - 1) - 1)
            amax = np.abs(part).max()
            want_scale, inv, z, low = amax / top, top / amax, 2 ** (bits - 1), 1
        else:
            top = np.float32(2**bits - 1)
            span = np.float32(max(part.max(), 0) - min(part.min(), 0))
            want_scale, inv, low = span / top, top / span, 0
            z = int(np.rint(-np.float32(min(part.min(), 0)) / want_scale))
            assert zero[r, g] == z
        assert scale[r, g] == want_scale
        want = np.clip(np.rint(part * inv).astype(int) + z, low, 2**bits - 1)
        assert (got[r, 64 * g : 64 * g + 64] == want).all()


def test_int4_really_takes_half_a_byte() -> None:
    codes, scale, zero = ops.quantize_group(matrix(128, 1024), bits=4, group=256, scheme="asymmetric")
    assert codes.numel() == 128 * 512
    assert scale.shape == zero.shape == (128, 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_compat_equals_q_galore(bits: int) -> None:
    """q-galore-torch 1.0, q_galore_projector.py `_quantize`, restated on groups of one row."""

    def q_galore(w: torch.Tensor, group: int) -> tuple:
        shape = w.shape
        w = w.reshape(-1, group)
        top = 2**bits - 1
        scales = (w.amax(1, keepdim=True) - w.amin(1, keepdim=True)).clamp(min=1e-5) / top
        zeros = (-torch.round(w.amin(1, keepdim=True) / scales)).clamp_(min=0, max=top)
        codes = torch.clamp(torch.round(w / scales) + zeros, 0, top)
        return codes.reshape(shape).to(torch.uint8), scales, zeros

    for x in (matrix(16, 512), matrix(4, 512).abs() + 0.5, torch.full((2, 256), 3.0), matrix(4, 256) * 1e-9):
        codes, scale, zero = ops.quantize_group(x, bits=bits, group=256, scheme="asymmetric", compat=True)
        want_codes, want_scale, want_zero = q_galore(x, 256)
        assert torch.equal(scale.flatten(), want_scale.flatten())
        assert torch.equal(zero.flatten().float(), want_zero.flatten())
        assert (unpack(codes.numpy(), x.shape[1], bits) == want_codes.numpy()).all()


def test_non_contiguous_and_higher_dimensional_inputs_are_matrices_of_rows() -> None:
    x = matrix(6, 40).reshape(2, 3, 40)
    a = ops.quantize_group(x, bits=4, group=32)
    b = ops.quantize_group(x.transpose(0, 2).contiguous().transpose(0, 2), bits=4, group=32)
    assert all(torch.equal(u, v) for u, v in zip(a[:2], b[:2], strict=True))
    assert a[0].shape == (6, 24)
    one = ops.quantize_group(x[0, 0], bits=8, group=32)
    assert one[0].shape == (1, 40)


def test_non_finite_policies() -> None:
    x = matrix(3, 100)
    x[1, 7], x[2, 99] = float("inf"), float("nan")
    with pytest.raises(lt.LowtideValueError, match="2 non-finite elements"):
        ops.quantize_group(x, bits=8, group=64)
    codes, scale, _ = ops.quantize_group(x, bits=8, group=64, nonfinite="skip")
    assert torch.isfinite(scale).all()
    y = ops.dequantize_group(codes, scale, None, bits=8, group=64, cols=100)
    assert y[1, 7] == y[2, 99] == 0
    before = codes.clone(), scale.clone()
    with pytest.raises(lt.LowtideValueError, match="nothing was changed"):
        ops.quantize_group_list_([x * 2], [codes], [scale], None, bits=8, group=64)
    assert torch.equal(codes, before[0])
    assert torch.equal(scale, before[1])
    count = ops.quantize_group_list_([x * 2], [codes], [scale], None, bits=8, group=64, nonfinite="skip")
    assert int(count) == 2
    assert torch.equal(scale, before[1] * 2)


@pytest.mark.parametrize(("bits", "scheme", "rounding"), FORMATS)
def test_list_forms_equal_single_calls(bits: int, scheme: str, rounding: str) -> None:
    xs = [matrix(3, 70), matrix(5, 256, 1).bfloat16(), matrix(0, 64), matrix(2, 0)]
    fmt = {"bits": bits, "group": 64}
    sr = {"rounding": rounding, "seed": 4, "step": 9}
    single = [
        ops.quantize_group(x, scheme=scheme, param=p, **fmt, **sr)
        for x, p in zip(xs, [8, 9, 10, 11], strict=True)
    ]
    codes, scales = ([torch.zeros_like(s[i]) for s in single] for i in (0, 1))
    zeros = [torch.zeros_like(s[2]) for s in single] if scheme == "asymmetric" else None
    ops.quantize_group_list_(xs, codes, scales, zeros, params=[8, 9, 10, 11], **fmt, **sr)
    outs = [torch.zeros_like(x) for x in xs]
    ops.dequantize_group_list_(codes, scales, zeros, outs, **fmt)
    for i, (c, s, z) in enumerate(single):
        assert torch.equal(c, codes[i])
        assert torch.equal(s, scales[i])
        assert zeros is None or torch.equal(z, zeros[i])
        want = ops.dequantize_group(c, s, z, cols=xs[i].shape[1], dtype=xs[i].dtype, **fmt)
        assert torch.equal(outs[i], want)
    assert ops.quantize_group_list_([], [], [], [], **fmt) is None
    ops.dequantize_group_list_([], [], None, [], **fmt)


def packed(rows: int = 3, cols: int = 70) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, scale, zero = ops.quantize_group(matrix(rows, cols), bits=4, group=32, scheme="asymmetric")
    assert zero is not None
    return codes, scale, zero


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.quantize_group(matrix(2, 2), bits=3, group=32), "bits must be 8 or 4"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=48), "multiple of 32"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, scheme="nf4"), "scheme must be one of"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, rounding="up"), "rounding must be"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, nonfinite="x"), "nonfinite must be"),
        (lambda: ops.quantize_group(matrix(2, 2).double(), bits=8, group=32), "float32, bfloat16 or float16"),
        (lambda: ops.quantize_group(torch.tensor(1.0), bits=8, group=32), "at least one dimension"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, compat=True), "asymmetric"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, seed=-1), "seed"),
        (lambda: ops.quantize_group(matrix(2, 2), bits=8, group=32, offset=-1), "offset"),
        (lambda: ops.dequantize_group(*packed(), bits=4, group=32, cols=71), "codes must have shape"),
        (lambda: ops.dequantize_group(*packed(), bits=4, group=32, cols=99), "scale"),
        (lambda: ops.dequantize_group(*packed(), bits=4, group=64, cols=70), "scale"),
        (
            lambda: ops.dequantize_group(*packed(), bits=4, group=32, cols=70, out=torch.empty(3, 71)),
            "out must be",
        ),
        (
            lambda: ops.dequantize_group(*packed(), bits=4, group=32, cols=70, dtype=torch.float64),
            "dtype must be",
        ),
        (
            lambda: ops.quantize_group_list_([matrix(2, 2)], [], [], None, bits=8, group=32),
            "equal lengths",
        ),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_an_op_called_directly_never_writes_out_of_bounds() -> None:
    codes, scale, zero = packed()
    for args in (
        ([codes[:, :-1].contiguous()], [scale], [zero], [torch.empty(3, 70)], 4, 32),
        ([codes], [scale[:2].contiguous()], [zero], [torch.empty(3, 70)], 4, 32),
        ([codes], [scale], [zero], [torch.empty(4, 70)], 4, 32),
        ([codes], [scale], [zero[:, :1].contiguous()], [torch.empty(3, 70)], 4, 32),
        ([codes], [scale], [zero], [torch.empty(3, 70)], 4, 0),
        ([codes], [scale], [zero], [torch.empty(3, 70)], 7, 32),
        ([codes], [scale], [zero], [torch.empty(3, 70, dtype=torch.float64)], 4, 32),
        ([codes], [scale], [zero, zero], [torch.empty(3, 70)], 4, 32),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.lowtide.dequantize_group_list_(*args)


def test_opcheck() -> None:
    x = matrix(3, 70)
    codes, scale, zero = packed()
    tail = (4, 32, True, 0, 1, 2, 3, [4], 5, 0, False)
    torch.library.opcheck(
        torch.ops.lowtide.quantize_group_list_.default, ([x], [codes], [scale], [zero], *tail)
    )
    torch.library.opcheck(torch.ops.lowtide.quantize_group_list_.default, ([x], [codes], [scale], [], *tail))
    torch.library.opcheck(
        torch.ops.lowtide.dequantize_group_list_.default, ([codes], [scale], [zero], [x], 4, 32)
    )


def test_compiles_without_graph_breaks() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        c, s, z = ops.quantize_group(x * 2, bits=4, group=32, scheme="asymmetric", rounding="stochastic")
        return ops.dequantize_group(c, s, z, bits=4, group=32, cols=x.shape[1]) + 1

    x = matrix(3, 70)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), f(x))
    with pytest.raises(RuntimeError, match="non-finite"):
        compiled(x / 0)


def test_inputs_that_require_grad_are_read_and_not_changed() -> None:
    w = matrix(2, 64).requires_grad_()
    codes, scale, zero = ops.quantize_group(w, bits=8, group=64)
    assert not scale.requires_grad
    with pytest.raises(lt.LowtideError, match="no_grad"):
        ops.dequantize_group(codes, scale, zero, bits=8, group=64, cols=64, out=w)
