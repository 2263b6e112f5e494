# SPDX-License-Identifier: Apache-2.0
"""lt.quant.Linear: forward, backward, and everything that happens to modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lowtide as lt
from lowtide.quant import Linear, is_quant_weight, model_bytes, quantize_model_


def layers(bits: int = 8, bias: bool = True, scheme: str = "asymmetric") -> tuple[Linear, nn.Linear]:
    """A quantized layer and the dense one with the same (decoded) weight."""
    torch.manual_seed(0)
    dense = nn.Linear(100, 70, bias=bias)
    layer = Linear.from_linear(copy.deepcopy(dense), bits=bits, group=32, scheme=scheme)
    with torch.no_grad():
        dense.weight.copy_(layer.dequantize())
    return layer, dense


def state_of(layer: Linear) -> list[torch.Tensor]:
    return [t.clone() for t in (layer.weight.data, layer.weight_scale, layer.weight_zero) if t is not None]


# 100 or 70 products of size below 1 in fp32, in another order: 1e-5 is about 40 roundings.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("shape", [(100,), (5, 100), (2, 3, 100), (0, 100)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bits", "scheme"), [(8, "asymmetric"), (4, "asymmetric"), (8, "symmetric")])
def test_forward_and_backward_equal_the_dense_layer(
    bits: int, scheme: str, bias: bool, shape: tuple[int, ...]
) -> None:
    layer, dense = layers(bits, bias, scheme)
    x = torch.randn(shape, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, want = layer(x), dense(z)
    torch.testing.assert_close(y, want, **CLOSE)
    g = torch.randn_like(y)
    y.backward(g)
    want.backward(g)
    torch.testing.assert_close(x.grad, z.grad, **CLOSE)
    torch.testing.assert_close(layer.weight.quant.main_grad, dense.weight.grad, **CLOSE)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **CLOSE)


def test_weights_learn_even_where_the_input_needs_no_gradient() -> None:
    layer, dense = layers(bias=False)
    x = torch.randn(6, 100)
    layer(x).sum().backward()
    dense(x).sum().backward()
    torch.testing.assert_close(layer.weight.quant.main_grad, dense.weight.grad, **CLOSE)
    assert layer.weight.grad is layer.weight.quant.main_grad
    assert layer._weight._anchor.grad is None


def test_micro_batches_accumulate_and_release() -> None:
    layer, dense = layers()
    x = torch.randn(8, 100)
    for part in x.split(2):
        layer(part).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.quant.main_grad, dense.weight.grad, **CLOSE)
    layer.weight.quant.main_grad = None
    layer(x).sum().backward()
    assert layer.weight.quant.main_grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_does_not_double(reentrant: bool) -> None:
    layer, dense = layers()
    calls = []
    layer.weight.quant.grad_hook = lambda p: calls.append(p.quant.main_grad.clone())
    x = torch.randn(4, 100, requires_grad=True)
    checkpoint(lambda t: layer(t).relu(), x, use_reentrant=reentrant).sum().backward()
    dense(x).relu().sum().backward()
    torch.testing.assert_close(layer.weight.quant.main_grad, dense.weight.grad, **CLOSE)
    assert len(calls) == 1


def test_the_hook_runs_once_after_the_last_use() -> None:
    """A layer used twice in one graph: stepping after the first gradient would spoil the second dx."""
    torch.manual_seed(0)
    layer = Linear.from_linear(nn.Linear(32, 32), group=32)
    dense = nn.Linear(32, 32)
    with torch.no_grad():
        dense.weight.copy_(layer.dequantize())
        dense.bias.copy_(layer.bias)
    seen = []

    def step(p: torch.Tensor) -> None:
        assert not torch.is_grad_enabled()
        seen.append(p.quant.main_grad)
        p.quant.requant_add_(p.quant.main_grad, alpha=-1.0, seed=0, step=0, param=0)
        p.quant.main_grad = None

    layer.weight.quant.grad_hook = step
    x = torch.randn(5, 32, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    layer(layer(x).tanh()).sum().backward()
    dense(dense(z).tanh()).sum().backward()
    assert len(seen) == 1
    assert layer.weight.quant.main_grad is None
    torch.testing.assert_close(seen[0], dense.weight.grad, **CLOSE)
    torch.testing.assert_close(x.grad, z.grad, **CLOSE)


def test_an_exception_of_the_hook_passes_through_backward() -> None:
    layer, _ = layers()

    def hook(p: torch.Tensor) -> None:
        raise lt.LowtideRuntimeError("stop here")

    layer.weight.quant.grad_hook = hook
    with pytest.raises(lt.LowtideRuntimeError, match="stop here"):
        layer(torch.randn(2, 100)).sum().backward()


def test_autograd_grad_of_inputs_leaves_weights_alone() -> None:
    layer, _ = layers()
    x = torch.randn(4, 100, requires_grad=True)
    y = layer(x).sum()
    torch.autograd.grad(y, x, retain_graph=True)
    torch.autograd.backward(y, inputs=[x], retain_graph=True)
    assert layer.weight.quant.main_grad is None
    y.backward()
    assert layer.weight.quant.main_grad is not None


def test_no_gradient_is_kept_in_evaluation_or_when_frozen() -> None:
    layer, dense = layers()
    x = torch.randn(4, 100)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = layer(x)
            assert not y.requires_grad
            torch.testing.assert_close(y, dense(x), **CLOSE)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    z = x.clone().requires_grad_()
    layer(z).sum().backward()
    assert z.grad is not None
    assert layer.weight.quant.main_grad is None
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight.quant.main_grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations(dtype: torch.dtype) -> None:
    layer, dense = layers()
    x = torch.randn(4, 100, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype is dtype
    y.sum().backward()
    assert x.grad.dtype is dtype
    assert layer.weight.quant.main_grad.dtype is torch.float32
    # products in fp32, one rounding of the result: half an ulp of values up to 4
    torch.testing.assert_close(y.float(), dense(x.float()), rtol=2**-8, atol=2**-9)


def test_state_dict_round_trips_bit_for_bit(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    layer, _ = layers(4)
    other = Linear(100, 70, bits=4, group=32)
    other.load_state_dict(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(state_of(layer), state_of(other), strict=True))
    save_file(layer.state_dict(), tmp_path / "x.safetensors")
    for assign in (False, True):
        third = Linear(100, 70, bits=4, group=32)
        weight = third.weight.quant
        third.load_state_dict(load_file(tmp_path / "x.safetensors"), assign=assign)
        assert is_quant_weight(third.weight)
        assert third.weight.quant is weight
        assert torch.equal(third.dequantize(), layer.dequantize())
        third(torch.randn(2, 100)).sum().backward()
        assert weight.main_grad is not None
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert set(torch.load(file, weights_only=True)) == {"weight", "weight_scale", "weight_zero", "bias"}


def test_dense_and_damaged_states_are_refused_and_nothing_changes() -> None:
    layer, dense = layers()
    before = state_of(layer)
    with pytest.raises(RuntimeError, match="load dense weights before"):
        layer.load_state_dict(dense.state_dict(), strict=False)
    bad = layer.state_dict()
    bad["weight_scale"] = bad["weight_scale"].clone()
    bad["weight_scale"][0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="damaged"):
        layer.load_state_dict(bad)
    assert all(torch.equal(a, b) for a, b in zip(state_of(layer), before, strict=True))


@pytest.mark.parametrize("move", ["bfloat16", "half", "double", "to"])
def test_dtype_conversions_leave_codes_and_scales_alone(move: str) -> None:
    layer, _ = layers()
    before, handle = state_of(layer), layer.weight.quant
    layer.to(torch.bfloat16) if move == "to" else getattr(layer, move)()
    assert layer.weight_scale.dtype is torch.float32
    assert all(torch.equal(a, b) for a, b in zip(state_of(layer), before, strict=True))
    assert layer.bias.dtype is not torch.float32
    assert layer.weight.quant is handle
    assert layer.float().bias.dtype is torch.float32


def test_training_loops_find_the_gradient_where_they_look() -> None:
    """Clipping, dropping and conversions of torch, of packed weights as of dense ones."""
    layer, dense = layers()
    x = torch.randn(6, 100)
    for module in (layer, dense):
        module(x).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(dense.parameters(), 0.1), **CLOSE)
    torch.testing.assert_close(layer.weight.quant.main_grad, dense.weight.grad, **CLOSE)
    kept = layer.weight.grad
    layer.to(torch.bfloat16)
    assert layer.weight.grad is kept  # in fp32, whatever the model's dtype
    assert kept.dtype is torch.float32
    layer.zero_grad()
    assert layer.weight.quant.main_grad is None
    layer.weight.grad = kept
    assert layer.weight.quant.main_grad is kept
    with pytest.raises(lt.LowtideValueError, match=r"float32 of shape \(70, 100\)"):
        layer.weight.grad = torch.zeros(70, 100, dtype=torch.bfloat16)
    del layer.weight.grad
    assert layer.weight.quant.main_grad is None


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent(how: str) -> None:
    layer, _ = layers()
    layer(torch.randn(2, 100)).sum().backward()
    layer.weight.quant.grad_hook = print
    other = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert other.weight.quant is not layer.weight.quant
    assert other.weight.quant.module is other
    assert other.weight.quant.main_grad is other.weight.quant.grad_hook is None
    other.weight.quant.requant_add_(torch.ones(70, 100), seed=0, step=0, param=0)
    assert not torch.equal(other.dequantize(), layer.dequantize())
    other(torch.randn(2, 100)).sum().backward()
    assert other.weight.quant.main_grad is not None


def test_optimizers_accept_the_weight_as_a_parameter() -> None:
    layer, _ = layers()
    opt = torch.optim.SGD(layer.parameters(), lr=1.0)
    assert any(p is layer.weight for p in opt.param_groups[0]["params"])
    before = state_of(layer)
    layer(torch.randn(2, 100)).sum().backward()
    with pytest.raises(RuntimeError, match="can't be cast"):
        opt.step()  # knows nothing of packed weights
    assert all(torch.equal(a, b) for a, b in zip(state_of(layer), before, strict=True))
    weight = layer.weight
    assert is_quant_weight(weight)
    assert not is_quant_weight(layer.bias)
    assert not is_quant_weight(torch.zeros(3))
    assert weight.quant.shape == (70, 100)
    assert weight.quant.nbytes == model_bytes(layer) - layer.bias.nbytes
    del layer
    with pytest.raises(lt.LowtideRuntimeError, match="keep a reference"):
        _ = weight.quant.module


def test_training_follows_dense_training() -> None:
    """Plain SGD on codes with stochastic rounding, against fp32 from the same start: the losses stay together."""
    torch.manual_seed(0)
    x, target = torch.randn(256, 64), torch.randn(256, 16)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 16))
    quantized = quantize_model_(copy.deepcopy(model), group=64)
    losses = []
    for m in (model, quantized):
        trace = []
        for step in range(150):
            loss = (m(x) - target).square().mean()
            loss.backward()
            trace.append(loss.item())
            with torch.no_grad():
                for i, p in enumerate(m.parameters()):
                    if is_quant_weight(p):
                        p.quant.requant_add_(p.quant.main_grad, alpha=-0.3, seed=1, step=step, param=i)
                        p.quant.main_grad = None
                    else:
                        p -= 0.3 * p.grad
                        p.grad = None
        losses.append(trace[-1])
    assert losses[0] < 0.75
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_compiles_in_evaluation() -> None:
    layer, _ = layers()
    x = torch.randn(3, 100)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


def test_bad_inputs_are_named() -> None:
    layer, _ = layers()
    with pytest.raises(lt.LowtideValueError, match="100 features"):
        layer(torch.randn(3, 99))
    with pytest.raises(lt.LowtideTypeError, match="float32, bfloat16 or float16"):
        layer(torch.zeros(3, 100, dtype=torch.float64))
    with pytest.raises(lt.LowtideTypeError, match=r"nn\.Linear"):
        Linear.from_linear(nn.Conv1d(2, 2, 1))
    assert "int8 asymmetric, group=32" in repr(layer)
