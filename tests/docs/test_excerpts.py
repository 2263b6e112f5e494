# SPDX-License-Identifier: Apache-2.0
"""Excerpts of sources in docs/ are what the sources say: the first line of a ``cpp`` block names the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXCERPT = re.compile(r"^```cpp\n// (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOUND = [
    (page.name, name, body)
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for name, body in EXCERPT.findall(page.read_text())
]


@pytest.mark.parametrize(("page", "name", "body"), FOUND, ids=[f"{p}-{n}" for p, n, _ in FOUND])
def test_excerpts_are_in_their_files(page: str, name: str, body: str) -> None:
    assert body in (ROOT / name).read_text(), f"{page} quotes {name}, which now reads otherwise"


def test_every_block_names_its_file() -> None:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    assert FOUND
    assert len(FOUND) == sum(len(re.findall(r"^```cpp$", p.read_text(), re.MULTILINE)) for p in pages)
