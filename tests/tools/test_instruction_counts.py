# SPDX-License-Identifier: Apache-2.0
"""tools/instruction_counts.py: what it calls worse, and that the stored numbers name the kernels of the program."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("instruction_counts", ROOT / "tools/instruction_counts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_more_instructions_are_an_error(tool: ModuleType) -> None:
    assert tool.compare({"a": 1000}, {"a": 1019}) == []
    assert "a takes 3.0% more" in tool.compare({"a": 1000}, {"a": 1030})[0]


def test_fewer_are_to_be_kept(tool: ModuleType) -> None:
    assert "--update" in tool.compare({"a": 1000}, {"a": 900})[0]


@pytest.mark.parametrize(("before", "now"), [({"a": 1}, {}), ({}, {"a": 1})])
def test_kernels_do_not_come_and_go(tool: ModuleType, before: dict[str, int], now: dict[str, int]) -> None:
    assert "a is missing in" in tool.compare(before, now)[0]


def test_stored_numbers_are_those_of_the_sources() -> None:
    stored = json.loads((ROOT / "bench/results/instructions.json").read_text())["instructions"]
    sources = "".join(p.read_text() for p in (ROOT / "bench/cpp/counted").glob("*.cc"))
    assert set(stored) == set(re.findall(r'Registered \w+\(\s*"([\w.]+)"', sources))
    assert all(count > 10_000 for count in stored.values())
