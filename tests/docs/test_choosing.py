# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/choosing.md are what the planner computes."""

from __future__ import annotations

from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_tables_are_the_planners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import choosing_page

    page = choosing_page.PAGE.read_text()
    found = [(match[1], match[2]) for match in choosing_page.SECTION.finditer(page)]
    assert found == [("fit", None)] + [("bytes", name) for name in choosing_page.MODELS]
    assert choosing_page.filled(page) == page, "run `python tools/choosing_page.py`"


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import choosing_page

    stale = "<!-- bytes:smollm2-135m -->\n\n| `AdamW` | 1 MB |\n\n<!-- /bytes -->"
    assert "538 MB | 538 MB | 1.08 GB" in choosing_page.filled(stale)
