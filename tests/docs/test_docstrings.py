# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the package run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import lowtide

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(lowtide.__path__, "lowtide.")
    if not m.name.endswith(("__main__", "._ops", "._core", "._ops_cuda"))
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module, name) if t.examples]
    monkeypatch.chdir(tmp_path)  # an example that writes a file leaves the source tree alone
    for test in tests:
        result = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test)
        assert result.failed == 0, f"{test.name}: {result.failed} of {result.attempted} examples failed"


def test_there_are_examples() -> None:
    """The collection above is not empty by accident."""
    finder = doctest.DocTestFinder()
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name), name) if t.examples]
    assert "lowtide.random._stream.sample" in {t.name for t in found}
