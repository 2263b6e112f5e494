# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session", autouse=True)
def emulated() -> None:
    pytest.importorskip("torch", minversion="2.13", reason="the CUDA ops need torch 2.13")
    from emulated import MODULE, load

    if not MODULE.exists():
        pytest.skip(f"{MODULE} is not built: cmake --preset cuda && cmake --build --preset cuda (needs nvcc)")
    load()
