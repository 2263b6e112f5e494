# SPDX-License-Identifier: Apache-2.0
"""Modules beside the tests, under names of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for _path in (Path(__file__).with_name("operators.py"),):
    _spec = importlib.util.spec_from_file_location(f"curvature_{_path.stem}", _path)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = _module
    try:
        _spec.loader.exec_module(_module)
    except ImportError:  # without torch, the tests skip
        del sys.modules[_spec.name]
