# SPDX-License-Identifier: Apache-2.0
"""Gradients accumulated and clipped inside the backward pass, against the loop that keeps them all."""

from __future__ import annotations

import pytest
import torch
from layerwise_loops import (
    GAP,
    METHODS,
    STEPS,
    SUMS_PROJECTED,
    batch,
    far,
    layerwise,
    loss_of,
    make_model,
    plain,
    same,
)
from torch import nn

import lowtide as lt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantized", [False, True])
def test_accumulation_equals_one_step_on_the_sum(method: str, quantized: bool) -> None:
    """Bit for bit where whole gradients add up. Projected ones are summed after their product instead of before: float
    rounding, which Adam's first steps (m / sqrt(v) near zero gradients) enlarge; INT8 weights may then round to a neighbour."""
    a, b = make_model(quantized=quantized), make_model(quantized=quantized)
    plain(a, METHODS[method](a), range(STEPS), n=4)
    layerwise(b, lt.optim.in_backward(METHODS[method], b, accumulate=4), range(STEPS), n=4)
    if method not in SUMS_PROJECTED:
        assert same(a, b)
    elif quantized:
        for x, y in zip(a.modules(), b.modules(), strict=True):
            if isinstance(x, lt.quant.Linear):
                assert float((x.dequantize() - y.dequantize()).norm() / x.dequantize().norm()) < 2e-3
    else:
        assert far(a, b, make_model()) < 1e-3


def test_four_small_batches_equal_one_big() -> None:
    a, b = make_model(), make_model()
    opt = METHODS["galore"](a)
    handle = lt.optim.in_backward(METHODS["galore"], b, accumulate=4)
    for t in range(7):
        x, y = (torch.cat(parts) for parts in zip(*(batch(4 * t + i) for i in range(4)), strict=True))
        (a(x) - y).square().mean().backward()
        opt.step()
        opt.zero_grad()
        layerwise(b, handle, range(t, t + 1), n=4)
    assert far(a, b, make_model()) < 1e-3


@pytest.mark.parametrize("refresh_from", ["all", "first"])
def test_where_gradients_are_kept_between_passes(refresh_from: str) -> None:
    """Projected while the subspace stays; whole, or already projected, in the step that replaces it."""
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, accumulate=2, refresh_from=refresh_from)
    matrices = [m for m in model if isinstance(m, nn.Linear)]
    whole = sum(4 * m.weight.numel() for m in matrices)
    biases = sum(4 * m.bias.numel() for m in matrices)
    projected = sum(4 * 4 * max(m.weight.shape) for m in matrices)
    for t in range(2 * GAP):
        handle.zero_grad()
        loss_of(model, 2 * t).backward()
        kept = handle.state_bytes()
        if refresh_from == "all" and t % GAP == 0:
            assert (kept["kept_projected"], kept["kept_whole"]) == (0, whole + biases)
        else:
            assert (kept["kept_projected"], kept["kept_whole"]) == (projected, biases)
        loss_of(model, 2 * t + 1).backward()
        handle.step()
        peak = handle.state_bytes()["gradients"]
        if refresh_from == "first" or t % GAP:
            assert peak <= projected + biases + 4 * 64 * 64
        else:
            assert peak > whole
        assert handle.optimizer.state[matrices[0].weight]["step"] == t + 1
        assert handle.optimizer.state[matrices[0].weight]["refreshes"] == t // GAP + 1


def test_a_subspace_found_in_the_first_pass_is_that_of_its_gradient() -> None:
    model, twin = make_model(), make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, accumulate=3, refresh_from="first")
    layerwise(model, handle, range(1), n=3)
    opt = METHODS["galore"](twin)
    (loss_of(twin, 0) / 3).backward()
    opt.step()
    assert torch.equal(opt.state[twin[0].weight]["basis"], handle.optimizer.state[model[0].weight]["basis"])
    losses = [float(loss_of(model, 0).detach())]
    layerwise(model, handle, range(1, 40), n=3)
    losses.append(float(loss_of(model, 0).detach()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", ["exact", "two_pass"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_exact_clipping_equals_clip_grad_norm(method: str, clip: str, accumulate: int) -> None:
    """Bit for bit where gradients wait at full size; scaling a projection instead of what is projected differs by rounding."""
    if clip == "two_pass" and accumulate > 1:
        with pytest.raises(lt.LowtideValueError, match="accumulate is 3"):
            lt.optim.in_backward(METHODS[method], make_model(), accumulate=3, max_grad_norm=0.1, clip=clip)
        return
    a, b = make_model(), make_model()
    want = plain(a, METHODS[method](a), range(STEPS), accumulate, limit=0.1)
    handle = lt.optim.in_backward(METHODS[method], b, accumulate=accumulate, max_grad_norm=0.1, clip=clip)
    got = layerwise(b, handle, range(STEPS), accumulate)
    assert min(want) > 0.1, "nothing was clipped"
    if clip == "two_pass" or accumulate > 1 or method not in SUMS_PROJECTED:
        assert want == got
        assert same(a, b)
    else:
        assert got == pytest.approx(want, rel=1e-4)
        assert far(a, b, make_model()) < 1e-3


def test_gradients_that_wait_for_their_norm_wait_projected() -> None:
    """With ``refresh_from="first"`` in steps that find a subspace, too: that of a gradient and of its multiple are one but for
    rounding, and where they start anew (Q-GaLore) for signs."""
    model, twin = make_model(), make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, max_grad_norm=0.1, refresh_from="first")
    norms = plain(twin, METHODS["galore"](twin), range(2 * GAP), limit=0.1)
    matrices = [m for m in model if isinstance(m, nn.Linear)]
    projected = sum(4 * 4 * max(m.weight.shape) + 4 * m.bias.numel() for m in matrices)
    for t in range(2 * GAP):
        handle.zero_grad()
        assert layerwise(model, handle, range(t, t + 1)) == pytest.approx(norms[t : t + 1], rel=1e-4)
        assert handle.state_bytes()["gradients"] < projected + 4 * 64 * 64
    assert far(model, twin, make_model()) < 1e-3


def test_clipping_by_the_norm_of_the_step_before() -> None:
    a, b = make_model(), make_model()
    opt = lt.optim.SGD(a.parameters(), lr=0.1, momentum=0.0)
    handle = lt.optim.in_backward(
        lt.optim.SGD(b.parameters(), lr=0.1, momentum=0.0), b, max_grad_norm=0.1, clip="previous"
    )
    before: float | None = None
    for t in range(5):
        loss_of(a, t).backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in a.parameters()]))
        for p in a.parameters():
            limit = float(p.grad.norm()) if before is None else before
            p.grad *= min(1.0, 0.1 / (limit + 1e-6))
        opt.step()
        opt.zero_grad()
        before = norm
        layerwise(b, handle, range(t, t + 1))
        assert handle.grad_norm == pytest.approx(norm, rel=1e-5)
    assert far(a, b, make_model()) < 1e-5


def test_two_pass_clipping_refuses_a_plain_backward() -> None:
    model = make_model()
    lt.optim.in_backward(METHODS["galore"], model, max_grad_norm=1.0, clip="two_pass")
    before = make_model()
    with pytest.raises(lt.LowtideError, match=r"handle\.backward"):
        loss_of(model, 0).backward()
    assert same(model, before)
