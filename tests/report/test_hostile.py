# SPDX-License-Identifier: Apache-2.0
"""Run directories from strangers: escaped, bounded, and said what was left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import lowtide as lt

from .browser import Browser, needs_browser
from .conftest import Make

pytest.importorskip("matplotlib", reason="the report's own package")
pytest.importorskip("jinja2", reason="the report's own package")

from lowtide import report
from lowtide.report import _page, _read
from lowtide.report._read import read_run

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@needs_browser
def test_strings_are_text(make: Make, browser: Browser) -> None:
    values = [
        {"step": i, "loss": 2.0, EVIL: 1.0 * i, "$\\frac{": i, "bytes": {EVIL: 5, "weights": 7}, "rtl\u202eevil\x1b[31m": 1,
         "subspace": {"matrices": 1, "refreshes": i, "by_name": {EVIL: {"energy": 0.5, EVIL: 1}}}}
        for i in range(3)
    ]  # fmt: skip
    name = EVIL.replace("/", "_")
    run = make(
        name,
        records=values,
        run={"model": EVIL, "versions": {EVIL: EVIL}},
        settings={EVIL: EVIL, "method": EVIL, "list": [EVIL]},
    )
    page = report.write(run, title="</title>" + EVIL)
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html
    assert browser.console(page) == []
    found = browser.probe(page)
    assert found["scripts"] == 1  # the probe
    assert EVIL in found["text"]  # as text
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert found["width"] <= found["window"]


def test_numbers_that_are_none(make: Make) -> None:
    run = make(records=[{"step": 1, "loss": 1.0}])
    lines = [
        '{"step": 2, "loss": NaN, "lr": Infinity, "a": 1e400, "b": ' + "9" * 400 + ', "ok": 1}',
        '{"step": 3, "loss": "high", "ok": true, "bytes": [1, 2], "seconds": null}',
        '{"step": -1, "loss": 1}', '{"step": 1e3, "loss": 1}', '{"step": true, "loss": 1}', '{"loss": 1}', "[1]", "12", "", "{",
        '{"a": ' * 5000, '{"step": 4, "loss": ' + "8" * 5000 + "}",
    ]  # fmt: skip
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n".join(lines))
    got = read_run(run)
    assert {k: v[1].tolist() for k, v in got.series.items()} == {"loss": [1.0], "ok": [1.0]}
    assert got.notes == [
        "metrics.jsonl: 10 lines could not be read as a record with a step and were left out."
    ]
    assert report.write(run).stat().st_size > 1000


def test_a_step_logged_again_counts_once_and_steps_are_sorted(make: Make) -> None:
    got = read_run(make(records=[{"step": 5, "x": 1}, {"step": 2, "x": 2}, {"step": 5, "x": 3}]))
    assert [v.tolist() for v in got.series["x"]] == [[2, 5], [2, 3]]


def test_binary_and_gigantic_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read, "MAX_METRICS", 1 << 22)
    run = make(records=[{"step": 1, "loss": 1.0}])
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(os.urandom(1 << 16).replace(b"\n", b"") + b"\n")
        file.write(b'{"step": 2, "loss": "' + b"x" * (5 << 19) + b'"}\n{"step": 3, "loss": 3.0}\n')
        file.truncate(1 << 36)  # 64 GiB of zeros, none on the disk
    got = read_run(run)
    assert got.series["loss"][1].tolist() == [1.0, 3.0]
    assert any("longer than 4 MiB" in note for note in got.notes)
    assert any("could not be read" in note for note in got.notes)
    for name in ("run.json", "summary.json", "spectrum.json"):
        with open(run / name, "ab") as file:
            file.truncate(1 << 36)
    (run / "run.ltlog").write_bytes(os.urandom(100_000))
    got = read_run(run)
    assert {note.split()[0] for note in got.notes} == {
        "metrics.jsonl:",
        "metrics.jsonl",
        "run.json",
        "summary.json",
        "spectrum.json",
        "run.ltlog",
    }


def test_very_many_names_and_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_page, "MAX_OTHERS", 3)
    lines: list[dict[str, Any]] = [{"step": i, "loss": 1.0 / (i + 1), f"key{i}": i} for i in range(3000)]
    run = make(records=lines)
    got = read_run(run)
    assert len(got.series) == _read.MAX_KEYS
    assert any("more than 256 names" in note for note in got.notes)
    html = report.write(run).read_text()
    assert html.count("<svg") == 4
    assert len(html) < 2_000_000
    assert "more numbers are in the table of all numbers only" in html


def test_bad_spectra() -> None:
    from lowtide.report._figures import spectrum
    from lowtide.report._page import _curvature_facts

    for value in (
        {"spectrum": {"nodes": [[1, 2]], "weights": [[1]]}},
        {"spectrum": {"nodes": [["a"]], "weights": [[1]]}},
        {"spectrum": {"nodes": [[float("nan")]], "weights": [[1]]}},
        {"spectrum": {"nodes": [[1e308, -1e308]], "weights": [[0.5, 0.5]]}},
        {"spectrum": {"nodes": [[1.0]], "weights": [[0.0]]}},
        {"spectrum": {"nodes": [[10**400]], "weights": [[1.0]]}},
        {"spectrum": [], "trace": 5, "top": {"values": "x"}, "negative": None},
        {"trace": {"value": "x", "stderr": []}, "top": {"values": [None, "a", 2.0]}, "operator": EVIL},
    ):
        assert spectrum(_read.Run("run", Path(), curvature=value)) is None
        assert all(isinstance(text, str) for row in _curvature_facts(value) for text in row)


def test_one_point_equal_values_and_zeros(make: Make) -> None:
    records = [{"step": i, "loss": 0.0, "seconds": 0, "bytes": {"weights": 0}, "peak_rss": 0, "quantization": {"stalled": 1.0, "sqnr_db": 5}}
               for i in (0, 1)]  # fmt: skip
    assert report.write(make(records=records)).stat().st_size > 1000
    assert (
        report.write(make(records=[{"step": 1 << 52, "x": 1e99}, {"step": 0, "x": -1e99}])).stat().st_size
        > 1000
    )


def test_refusals(make: Make, tmp_path: Path) -> None:
    run = make(records=[{"step": 1, "loss": 1.0}])
    for runs, out, match in (
        (tmp_path / "none", None, "not a directory"),
        (tmp_path, None, "holds none of"),
        ([], None, "1 to 8"),
        ([run] * 9, None, "1 to 8"),
        (run, tmp_path, "out must be"),
        (run, tmp_path / "no" / "r.html", "out must be"),
    ):
        with pytest.raises(lt.LowtideValueError, match=match):
            report.write(runs, out)  # type: ignore[arg-type]
    assert not (run / "report.html").exists()
    os.mkfifo(run / "summary.json")  # would block whoever opens it
    assert read_run(run).notes == []
