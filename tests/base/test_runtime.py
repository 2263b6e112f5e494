# SPDX-License-Identifier: Apache-2.0
"""Threads, instruction sets, the floating-point environment and the public names of the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lowtide as lt


def test_isas_are_listed_and_forced() -> None:
    names = lt.available_isas()
    assert names[0] == "scalar"
    assert lt.isa() in names
    before = lt.isa()
    try:
        for name in names:
            lt.set_isa(name)
            assert lt.isa() == name
        with pytest.raises(lt.LowtideValueError, match="unknown ISA 'sse9'; use one of scalar"):
            lt.set_isa("sse9")
        missing = {"scalar", "baseline", "avx2", "avx512", "neon"} - set(names)
        for name in missing:
            with pytest.raises(lt.LowtideValueError, match="cannot run here; available: scalar"):
                lt.set_isa(name)
        assert lt.isa() == names[-1]  # a refused choice changes nothing
    finally:
        lt.set_isa(before)


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, None])
def test_impossible_thread_counts_are_refused(n: object) -> None:
    before = lt.num_threads()
    with pytest.raises(lt.LowtideValueError, match="n must be an integer >= 1"):
        lt.set_num_threads(n)  # type: ignore[arg-type]
    assert lt.num_threads() == before


def test_flush_to_zero_of_the_host_does_not_reach_the_kernels() -> None:
    def tiny() -> bytes:
        x = np.zeros(100, np.float32)
        lt.random.add_(x, 1e-40, seed=1)  # every element is denormal
        y = torch.zeros(100)
        lt.random.add_(y, 1e-40, seed=1)
        bits = x.tobytes() + y.numpy().tobytes()
        assert any(bits)  # of the bytes: a flushing host takes denormals for zero
        return bits

    want = tiny()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert float(torch.tensor(1e-40) * 1.0) == 0.0  # the host does flush
        assert tiny() == want
        assert float(torch.tensor(1e-40) * 1.0) == 0.0  # and still does afterwards
    finally:
        torch.set_flush_denormal(False)
    assert tiny() == want


@pytest.mark.parametrize("name", sorted(lt.__all__))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(lt, name) is not None
    assert name in dir(lt)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lt.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (lt.LowtideValueError, ValueError),
        (lt.LowtideTypeError, TypeError),
        (lt.LowtideRuntimeError, RuntimeError),
        (lt.LowtideImportError, ImportError),
    ],
)
def test_errors_are_also_the_built_in_type(error: type, builtin: type) -> None:
    assert issubclass(error, lt.LowtideError)
    assert issubclass(error, builtin)
