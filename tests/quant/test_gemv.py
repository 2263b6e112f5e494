# SPDX-License-Identifier: Apache-2.0
"""The packed matrix times one vector, through torch, NumPy and the linear layer; and linear layers in NF4."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide import _core, ops
from lowtide.quant import Linear, quantize_model_

FORMATS = [(8, "symmetric"), (8, "asymmetric"), (4, "symmetric"), (4, "asymmetric"), (4, "nf4")]


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "scheme"), FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 33), (70, 300), (3, 1000), (0, 7), (4, 0)])
def test_it_is_the_product_with_the_decoded_matrix(
    isa: str, rows: int, cols: int, bits: int, scheme: str
) -> None:
    q, x = lt.quant.quantize(matrix(rows, cols), bits, 64, scheme=scheme), matrix(cols, seed=1)
    y = ops.gemv(q, x)
    w = q.dequantize().double()
    # cols / 16 + groups + 5 roundings of partial sums, each at most sum |x w|, and that of the weights themselves
    limit = (cols / 16 + cols / 64 + 7) * 2.0**-24 * (w.abs() @ x.double().abs())
    assert ((y - w @ x.double()).abs() <= limit).all()
    assert torch.equal(ops.gemv(q, x.bfloat16()), ops.gemv(q, x.bfloat16().float()))
    n = lt.quant.quantize(matrix(rows, cols).numpy(), bits, 64, scheme=scheme)
    out = np.full(rows, np.nan, np.float32)
    _core.gemv(out, n.codes, n.scale, n.zero, bits, scheme == "nf4", 64, x.numpy())
    assert out.tobytes() == y.numpy().tobytes()


def packed(scheme: str = "asymmetric") -> lt.quant.Quantized:
    return lt.quant.quantize(matrix(3, 70), 4, 32, scheme=scheme)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.gemv(packed("dynamic"), matrix(70)), "schemes"),
        (lambda: ops.gemv(packed(), matrix(71)), r"shape \(70,\)"),
        (lambda: ops.gemv(packed(), matrix(1, 70)), r"shape \(70,\)"),
        (lambda: ops.gemv(packed(), matrix(70).double()), "float32 or bfloat16"),
        (lambda: ops.gemv(packed(), 3), "float32 or bfloat16"),
        (
            lambda: ops.gemv(lt.quant.quantize(matrix(3, 70), 4, 32, scale_dtype="bfloat16"), matrix(70)),
            "scale must be float32",
        ),
        (lambda: ops.gemv(ops.Packed(*([packed().codes] * 3), 4, 32, (3, 70)), matrix(70)), "scale must be"),
        (
            lambda: ops.matmul(
                matrix(2, 70),
                ops.Packed(packed().codes, packed().scale, packed().zero, 4, 32, (3, 70), "nf4"),
                tb=True,
            ),
            "no zero points",
        ),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_an_op_called_directly_never_reads_out_of_bounds() -> None:
    q, x, op = packed(), matrix(70), torch.ops.lowtide.gemv
    for args in (
        (q.codes, q.scale, q.zero, 4, False, 32, 71, x),
        (q.codes, q.scale, q.zero, 8, False, 32, 70, x),
        (q.codes, q.scale, q.zero, 4, True, 32, 70, x),
        (q.codes, q.scale[:, :2].contiguous(), q.zero, 4, False, 32, 70, x),
        (q.codes, q.scale, q.zero[:, :2].contiguous(), 4, False, 32, 70, x),
        (q.codes[:2], q.scale, q.zero, 4, False, 32, 70, x),
        (q.codes, q.scale, q.zero, 4, False, 31, 70, x),
        (q.codes, q.scale, q.zero, 4, False, 32, 70, x.double()),
        (q.codes, q.scale, q.zero, 4, False, 32, 70, matrix(2, 70)),
    ):
        with pytest.raises(RuntimeError):
            op(*args)


def test_opcheck_and_compile() -> None:
    q, x = packed(), matrix(70)
    torch.library.opcheck(torch.ops.lowtide.gemv.default, (q.codes, q.scale, q.zero, 4, False, 32, 70, x))
    compiled = torch.compile(lambda x: ops.gemv(q, x) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.gemv(q, x) * 2)


@pytest.mark.parametrize(("bits", "scheme"), FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_gives_a_single_row_to_it(bits: int, scheme: str, dtype: torch.dtype) -> None:
    layer = Linear.from_linear(nn.Linear(100, 70), bits=bits, group=32, scheme=scheme)
    x = matrix(1, 1, 100).to(dtype)
    with torch.no_grad():
        single, batch = layer(x), layer(x.expand(3, 1, 100))
        assert single.dtype is dtype
        want = ops.gemv(layer.weight.quant.operand(), x.reshape(-1).float()) + layer.bias
        assert torch.equal(single.reshape(-1), want.to(dtype))
        torch.testing.assert_close(
            single[0], batch[0], rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-5
        )
    y = layer(x.clone().requires_grad_())
    assert torch.equal(y, single)
    y.sum().backward()
    assert (layer.weight.quant.main_grad is not None) == (scheme != "nf4")


@pytest.mark.parametrize("shape", [(100,), (5, 100), (2, 3, 100), (0, 100)])
def test_nf4_forward_and_input_gradient_equal_the_dense_layer(isa: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(100, 70)
    layer = Linear.from_linear(copy.deepcopy(dense), bits=4, group=32, scheme="nf4")
    with torch.no_grad():
        dense.weight.copy_(layer.dequantize())
    x = torch.randn(shape, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, want = layer(x), dense(z)
    # 100 or 70 products of size below 1 in fp32, in another order: 1e-5 is about 40 roundings
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    want.backward(g)
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-5)
    assert layer.weight.quant.main_grad is None
    assert "nf4" in repr(layer)


def test_nf4_levels_are_those_of_the_quantizer() -> None:
    dense = nn.Linear(300, 20)
    layer = Linear.from_linear(dense, bits=4, group=64, scheme="nf4")
    q = lt.quant.quantize(dense.weight.detach(), 4, 64, scheme="nf4")
    assert torch.equal(layer.dequantize(), q.dequantize())
    assert torch.equal(layer.dequantize(torch.bfloat16), q.dequantize("bfloat16"))
    empty = Linear(33, 5, bits=4, scheme="nf4")
    assert not empty.dequantize().any()
    assert not empty(torch.ones(1, 33)).any()


def test_nf4_weights_are_frozen_and_say_so() -> None:
    model = quantize_model_(nn.Sequential(nn.Linear(64, 64)), "nf4", 64)
    weight = model[0].weight
    model.requires_grad_(False)
    with pytest.raises(lt.LowtideValueError, match="NF4 weights are frozen"):
        model.requires_grad_(True)
    with pytest.raises(lt.LowtideValueError, match="NF4 weights are frozen"):
        weight.quant.requant_add_(torch.zeros(64, 64), seed=1, step=1, param=0)
    with pytest.raises(lt.LowtideValueError, match="'nf4' has 4 bits"):
        Linear(64, 64, bits=8, scheme="nf4")


def test_adapters_train_beside_nf4_weights() -> None:
    torch.manual_seed(0)
    base = quantize_model_(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), "nf4", 64)
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
    nn.init.zeros_(up.weight)
    before = base[0].dequantize().clone()
    opt = torch.optim.SGD([*down.parameters(), *up.parameters()], lr=0.5)
    x, target = torch.randn(32, 64), torch.randint(8, (32,))
    losses = []
    for _ in range(30):
        h = base[0](x) + up(down(x))
        loss = nn.functional.cross_entropy(base[2](base[1](h)), target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(before, base[0].dequantize())
