# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/methods say what the code does: generated sections are up to date, every preset has a page, pages have all parts."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lowtide as lt

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "methods"
NAMES = ("method_catalogue", "method_axes", "method_spsa", "method_pages")
PARTS = ("Formula", "Defaults", "Use", "Differences", "When not")


def load() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return [importlib.import_module(name) for name in NAMES][-1]
    finally:
        sys.path.remove(str(ROOT / "tools"))


TOOL = load()
FILES = [page.file for page in TOOL.PAGES]


@pytest.mark.parametrize("name", ["index", *FILES])
def test_generated_sections_are_what_the_code_says(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text()
    assert TOOL.fill(text) == text, "run python tools/method_pages.py"


def presets() -> set[str]:
    from lowtide.optim.memory import optimizers

    spsa = {name for name in lt.spsa.__all__ if inspect.isclass(getattr(lt.spsa, name))}
    spsa = {name for name in spsa if issubclass(getattr(lt.spsa, name), lt.spsa.SPSA)} - {"SPSA"}
    return {*optimizers(), *spsa, "SAM", "GradNormSmooth"}


def test_every_preset_has_a_page() -> None:
    described = [name for page in TOOL.PAGES for name in page.names]
    assert len(described) == len(set(described))
    assert presets() <= set(described)
    assert {path.stem for path in FOLDER.glob("*.md")} == {"index", *FILES}


@pytest.mark.parametrize("page", TOOL.PAGES, ids=FILES)
def test_pages_have_all_parts(page: Any) -> None:
    text = (FOLDER / f"{page.file}.md").read_text()
    assert text.startswith(f"# {page.title}\n")
    parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [part for part in parts if part in PARTS] == list(PARTS)
    assert re.search(r"^\*\*Papers?:\*\* \S", text, re.MULTILINE)
    assert "```python" in text
    sections = dict.fromkeys(("axes", "bytes", "defaults"), "")
    for kind, names, _ in TOOL.SECTION.findall(text):
        sections[kind] += names + ","
    for name in page.names:
        wanted = {"axes", "bytes", "defaults"} if TOOL.is_engine(name) else {"axes", "defaults"}
        wanted = wanted if TOOL.is_engine(name) or TOOL.is_spsa(name) else {"defaults"}
        assert all(name in sections[kind].split(",") for kind in wanted), f"{name} lacks one of {wanted}"
    assert 25 <= len(TOOL.SECTION.sub("", text).splitlines()) <= 100


@pytest.mark.parametrize("name", sorted(n for page in TOOL.PAGES for n in page.names if TOOL.is_engine(n)))
def test_shown_defaults_change_nothing_when_given(name: str) -> None:
    """What the tables say is taken by the constructor, and makes the same choices."""
    axes = sys.modules["method_axes"]
    given = {k: v for k, v in TOOL.arguments(name).items() if v is not inspect.Parameter.empty}
    a, b = axes.build(name), axes.build(name, **given)
    assert axes.rows(name)
    assert (a._axes.rule, a._axes.subspace, a._axes.basis, a._axes.refresh, a._axes.residual, a._axes.store) == (
        b._axes.rule, b._axes.subspace, b._axes.basis, b._axes.refresh, b._axes.residual, b._axes.store
    )  # fmt: skip
    assert a.defaults == b.defaults
    assert [{k: v for k, v in g.items() if k != "params"} for g in a.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in b.param_groups
    ]
