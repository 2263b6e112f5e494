# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: nothing blank, nothing clipped, nothing loaded, nothing complained about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .browser import Browser, needs_browser
from .conftest import Make

pytest.importorskip("matplotlib", reason="the report's own package")
pytest.importorskip("jinja2", reason="the report's own package")

from lowtide import report

DARK = "--blink-settings=preferredColorScheme=0"


def spectrum(path: Path) -> None:
    nodes = [[-0.5, 0.0, 0.1, 2.0, 30.0], [-0.4, 0.0, 0.2, 3.0, 31.0]]
    weights = [[0.05, 0.8, 0.1, 0.04, 0.01]] * 2
    value = {
        "model": "tiny", "data": "tides.txt", "operator": "hessian", "trace": {"value": 812.5, "stderr": 20.5},
        "top": {"values": [31.0, 12.0], "converged": [True, True]}, "negative": {"below": -0.1, "share": 0.05}, "effective_rank": 26.2,
        "spectrum": {"n": 1000, "nodes": nodes, "weights": weights, "errors": weights},
    }  # fmt: skip
    (path / "spectrum.json").write_text(json.dumps(value))


@pytest.fixture(scope="session")
def page(make: Make) -> Path:
    run = make()
    spectrum(run)
    path = report.write(run)
    assert path == run / "report.html"
    return path


@needs_browser
@pytest.mark.parametrize("width", [1200, 400])
def test_one_run_in_the_browser(page: Path, browser: Browser, width: int) -> None:
    found = browser.probe(page, width)
    assert found["sections"] == [
        "loss", "memory", "subspace", "quantization", "time", "curvature", "others", "settings", "missing",
    ]  # fmt: skip
    assert found["width"] <= found["window"]
    assert len(found["ids"]) == len(set(found["ids"]))
    labels = [f["label"] for f in found["figures"]]
    for word in (
        "loss",
        "Counted bytes",
        "energy",
        "refreshes",
        "SQNR",
        "stalls",
        "Time of a step",
        "eigenvalues",
        "my/metric",
        "Norm of the gradients",
    ):
        assert any(word in label for label in labels), (word, labels)
    for figure in found["figures"]:
        assert figure["width"] > 200
        assert figure["height"] > 90
        assert figure["texts"] >= 4, figure
        assert figure["shapes"] > 5, figure
        assert figure["clipped"] == [], figure
        if width == 1200:
            assert figure["crossed"] == [], figure
    # Tiles, settings and what is missing can be read.
    for text in ("tiny on tides.txt with qgalore", "4 → 2.2", "1 GB", "812.5 ± 20", "31, 12", "0.9, 0.999", "2.13.0",
                 "Projected gradients: train with mezo or qzo"):  # fmt: skip
        assert text in found["text"], text


@needs_browser
def test_light_and_dark_have_pictures_and_no_complaints(page: Path, browser: Browser) -> None:
    assert browser.console(page) == []
    shots = [browser.screenshot(page, 1200, 1400, *more) for more in ((), (DARK,))]
    light, dark = (s.mean() for s in shots)
    assert light > 0.85
    assert dark < 0.25
    for shot in shots:
        top, bottom = shot[:700], shot[700:]
        for part in (top, bottom):
            background = part[0, 0]
            drawn = (abs(part - background).max(-1) > 0.1).mean()
            assert 0.01 < drawn < 0.9
            assert len({tuple(p) for p in (part[::3, ::3] * 15).astype(int).reshape(-1, 3)}) > 12


@needs_browser
def test_the_console_would_be_heard(page: Path, browser: Browser, tmp_path: Path) -> None:
    """The page's own policy refuses scripts and what lies elsewhere, and the browser says so."""
    bad = '<script>document.title = "x"</script><img src="http://127.0.0.1:9/x.png"></body>'
    copy = tmp_path / "bad.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", bad), encoding="utf-8")
    assert len(browser.console(copy)) >= 2


@needs_browser
def test_several_runs_side_by_side(make: Make, browser: Browser) -> None:
    runs = [
        make("a-run-of-a-rather-long-name"),
        make("b", shift=0.4, settings={"method": "adamw"}),
        make("c", steps=60),
    ]
    page = report.write(runs, runs[0] / "all.html", title="Three")
    found = browser.probe(page)
    assert found["width"] <= found["window"]
    assert found["text"].startswith("Three\n")
    assert all(f["clipped"] == [] and f["crossed"] == [] and f["texts"] >= 4 for f in found["figures"]), (
        found["figures"]
    )
    for text in ("Validation loss", "a-run-of-a-rather-long-name", "loss (dashed: validation)"):
        assert text in found["text"] + page.read_text(), text
    html = page.read_text(encoding="utf-8")
    assert "<tr class=differs><td>method</td><td>qgalore</td><td>adamw</td><td>qgalore</td></tr>" in html


@needs_browser
def test_a_sparse_run_says_what_is_missing(make: Make, browser: Browser) -> None:
    page = report.write(make(records=[{"step": 3, "loss": 1.5}]))
    found = browser.probe(page)
    assert found["sections"] == ["loss", "settings", "missing"]
    for text in (
        "Memory by kind: log bytes",
        "Subspace energy: train with a low-rank method",
        "Rounding stalls:",
        "Curvature: lowtide spectrum",
    ):
        assert text in found["text"], text
    assert found["figures"][0]["shapes"] > 5


def test_the_page_needs_nothing_else(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "@import" not in html
    assert "src=" not in html
    assert "url(http" not in html
    assert 'href="http' not in html
    assert "<link" not in html
    assert len(html) < 1_000_000


def test_the_same_run_gives_the_same_page(make: Make) -> None:
    run = make(records=[{"step": i, "loss": 1.0 / (i + 1)} for i in range(30)])
    assert report.write(run).read_bytes() == report.write(run, run / "again.html").read_bytes()
