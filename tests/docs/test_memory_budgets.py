# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/memory_budgets.md are those of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "studies"))
    from _budget_figure import table

    data = json.loads((ROOT / "bench/results/memory_budgets.json").read_text())
    page = (ROOT / "docs/memory_budgets.md").read_text()
    assert table(data["rows"]) in page, "copy what bench/studies/memory_budgets.py --table prints"
    for row in data["rows"]:
        assert row["run"] is None or row["run"]["memory"] <= row["budget"] * 2**30, row["label"]
