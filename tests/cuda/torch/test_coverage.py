# SPDX-License-Identifier: Apache-2.0
"""Which ops have kernels for CUDA tensors, and that the comparison would notice a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from emulated import compare, has_kernel

#: The op that CUDA tensors do not have (docs/kernels.md says so): the fused zeroth-order linear layer.
MISSING = {"spsa_fused_linear"}
CONTROLS = {"_active_isa", "_set_isa"}
NAMES = {
    name.removeprefix("lowtide::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("lowtide::")
} - CONTROLS


def test_every_op_has_a_kernel_or_is_listed() -> None:
    assert {name for name in NAMES if not has_kernel(name)} == MISSING


def test_every_kernel_is_compared() -> None:
    here = Path(__file__).parent
    text = "".join(p.read_text() for p in here.glob("test_*.py") if p != Path(__file__))
    assert {name for name in NAMES - MISSING if not re.search(rf"\b{name}\b", text)} == set()


def test_the_comparison_notices_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    import emulated

    right = emulated.on_device

    def wrong(op: object, args: tuple, kwargs: object = None) -> object:
        args[0].view(-1)[4] += 2.0**-20
        return right(op, args)

    call = (torch.ops.lowtide.random_add_.default, (torch.ones(9), 0.5, 1, 2, 3, 4, 0, 0, 1))
    compare(*call)
    monkeypatch.setattr(emulated, "on_device", wrong)
    with pytest.raises(AssertionError, match="bytes differ"):
        compare(*call)
