# SPDX-License-Identifier: Apache-2.0
"""Every registered op has a fake kernel and is put through torch.library.opcheck somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import lowtide.ops  # noqa: E402

# They read and set the instruction set: no tensors, nothing to check.
CONTROLS = {"_active_isa", "_set_isa"}
OPS = sorted(
    name.removeprefix("lowtide::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("lowtide::") and name.removeprefix("lowtide::") not in CONTROLS
)
TESTS = [p.read_text() for p in Path(__file__).parent.rglob("test_*.py") if p != Path(__file__)]


def test_there_are_ops() -> None:
    assert lowtide.ops is not None
    assert len(OPS) >= 10


@pytest.mark.parametrize("name", OPS)
def test_is_checked(name: str) -> None:
    word = re.compile(rf"\b{name}\b(?!\()")
    assert any("torch.library.opcheck(" in text and word.search(text) for text in TESTS), (
        f"no test file with torch.library.opcheck names {name}"
    )


@pytest.mark.parametrize("name", OPS)
def test_has_a_fake_kernel(name: str) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    overload = getattr(torch.ops.lowtide, name).default
    assert (
        registered(f"lowtide::{name}", "Meta")
        or torch._library.simple_registry.singleton.find(overload.name()).fake_impl.kernel is not None
    )
