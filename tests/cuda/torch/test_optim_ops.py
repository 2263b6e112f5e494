# SPDX-License-Identifier: Apache-2.0
"""Fused steps on the emulated device: every rule, store of moments and of weights, and their lists."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulated import Twins
from torch import Tensor

from lowtide import ops

SIZES = (0, 1, 127, 129, 256, 257, 1027)
SCALARS: dict[str, dict[str, float]] = {
    "adam": {"a": 1e-2, "s": 3.0, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
    "adabelief": {"a": 1e-2, "s": 3.0, "eps": 1e-16, "beta1": 0.9, "beta2": 0.999},
    "lion": {"a": 1e-2, "beta1": 0.9, "beta2": 0.99},
    "sgd": {"a": 1e-2, "momentum": 0.9, "weight": 1.0, "nesterov": 1.0},
    "sign": {"a": 1e-2},
    "diffgrad": {"a": 1e-2, "s": 3.0, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
}
MOMENTS = {"adam": 2, "adabelief": 2, "lion": 1, "sgd": 1, "sign": 0, "diffgrad": 3}


def noise(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def states(rule: str, bits: int) -> dict[str, Any]:
    """Zero moments of tensors of SIZES."""
    out: dict[str, Any] = {"rule": rule, "bits": bits, "ms": []}
    both = {8: 127, 4: 0x77, 32: 0}[bits]
    for name, zero in (("m", both), ("v", 0), ("w", both))[: MOMENTS[rule]]:
        if bits == 32:
            out[f"{name}s"] = [torch.zeros(n) for n in SIZES]
        else:
            size = [n if bits == 8 else n // 32 * 16 + min(n % 32, 16) for n in SIZES]
            out[f"{name}s"] = [torch.full((s,), zero, dtype=torch.uint8) for s in size]
            out[f"{name}_absmax"] = [torch.zeros(math.ceil(n / (256 if bits == 8 else 128))) for n in SIZES]
    return out


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("rule", list(SCALARS))
def test_steps(rule: str, bits: int) -> None:
    held = states(rule, bits)
    for dtype, stochastic in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        ps = [noise(n, i, dtype) for i, n in enumerate(SIZES)]
        with Twins() as twins:
            for step in range(1, 3):
                gs = [noise(n, 10 * step + i, dtype) for i, n in enumerate(SIZES)]
                gs[-1][300 * step] = math.inf  # its block is skipped
                skipped = ops.fused_step_(
                    ps, gs, **held, **SCALARS[rule], decay_before=0.99, stochastic=stochastic, seed=3, step=step,
                    params=list(range(len(ps))), offsets=[256 * i for i in range(len(ps))],
                )  # fmt: skip
                assert skipped.item() == 1
        assert twins.calls["fused_step_"] == 2


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("rule", list(SCALARS))
def test_directions(rule: str, bits: int) -> None:
    held = states(rule, bits)
    with Twins() as twins:
        for step in range(2):
            ops.fused_direction_(
                [noise(n, 7 * step + i) for i, n in enumerate(SIZES)], **held, **SCALARS[rule]
            )
    assert twins.calls["fused_direction_"] == 2


@pytest.mark.parametrize("stochastic", [False, True])
def test_apply_update(stochastic: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        ps = [noise(n, i, dtype) for i, n in enumerate(SIZES)]
        us = [noise(n, 20 + i) for i, n in enumerate(SIZES)]
        with Twins() as twins:
            ops.apply_update_(
                ps, us, alpha=-1e-2, decay_before=0.9, decay_after=0.99, stochastic=stochastic, seed=5, step=2,
                params=list(range(len(ps))),
            )  # fmt: skip
        assert twins.calls["apply_update_"] == 1


def test_slices_of_one_allocation() -> None:
    """Tensors at any element of a buffer: no alignment beyond the element's."""
    flat, grads, m, v = (noise(2100, seed) for seed in range(4))
    v.abs_()
    cuts = [(1, 258), (258, 259), (259, 1030), (1031, 2100)]

    def parts(t: Tensor) -> list[Tensor]:
        return [t[a:b] for a, b in cuts]

    with Twins():
        ops.fused_step_(parts(flat), parts(grads), parts(m), parts(v), rule="adam", **SCALARS["adam"])


def test_refusals_come_before_any_change() -> None:
    from emulated import on_device

    p, g = torch.ones(4), torch.ones(4)
    op = torch.ops.lowtide.apply_update_.default
    for ps, us, params in (
        ([p, p], [g, g], [0, 1]),  # the same memory twice
        ([p], [torch.ones(5)], [0]),
        ([p], [g.double()], [0]),
        ([p], [g], [0, 1]),
        ([p], [torch.ones(8)[::2]], [0]),
    ):
        with pytest.raises(RuntimeError, match="lowtide: "):
            on_device(op, (ps, us, 1.0, 1.0, 1.0, False, 0, 0, params))
    assert torch.equal(p, torch.ones(4))
