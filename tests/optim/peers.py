# SPDX-License-Identifier: Apache-2.0
"""The real peers from PyPI, loaded without the parts that need a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest


def peer_module(package: str, module: str) -> Any:
    """``package.module`` without running the package's __init__ (which imports bitsandbytes)."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{package} is not installed: pip install --no-deps -r requirements/peers.txt")
        stub = types.ModuleType(package)
        stub.__path__ = [str(Path(spec.submodule_search_locations[0]))]
        sys.modules[package] = stub
    return importlib.import_module(f"{package}.{module}")
