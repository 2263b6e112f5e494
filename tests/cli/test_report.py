# SPDX-License-Identifier: Apache-2.0
"""What a run logs of subspaces and rounding, its sinks, and `lowtide report` on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowtide.cli.main import main
from lowtide.train import ConfigError, FinetuneConfig, Finetuner

from .helpers import settings

pytest.importorskip("jinja2", reason="the report's own package")
pytest.importorskip("matplotlib", reason="the report's own package")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_its_page(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="a sink's own package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    measured, bare = tmp_path / "measured", tmp_path / "bare"
    common = {"method": "qgalore", "steps": 7, "export": False}
    Finetuner(
        FinetuneConfig(**settings(model, data, measured, **common, measure_every=3, log="tensorboard"))
    ).run()
    Finetuner(FinetuneConfig(**settings(model, data, bare, **common, measure_every=0))).run()
    with_them, without = lines(measured), lines(bare)
    assert [r["step"] for r in with_them if "subspace" in r] == [1, 3, 6, 7]
    assert not any("subspace" in r or "quantization" in r for r in without)
    for key in ("loss", "val_loss"):  # measuring changes no bit
        assert [r.get(key) for r in with_them] == [r.get(key) for r in without]
    last = with_them[-1]
    assert 0 < last["subspace"]["energy_min"] <= last["subspace"]["energy"] <= 1
    assert last["subspace"]["refreshes"] == 2 * last["subspace"]["matrices"]  # steps 1 and 5
    assert 0 < last["quantization"]["stalled"] < 1
    assert last["quantization"]["sqnr_db_min"] > 20
    events = EventAccumulator(str(measured / "tensorboard"))
    events.Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("loss")] == [
        (r["step"], r["loss"]) for r in with_them[1:]
    ]
    assert events.Scalars("subspace/energy")[-1].value == pytest.approx(last["subspace"]["energy"], rel=1e-6)

    assert main(["report", str(measured)]) == 0
    page = (measured / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(measured / "report.html")
    for text in (
        "tiny on tides.txt with qgalore",
        "Subspace energy",
        "Quantization SQNR of weights",
        "Rounding stalls",
        "transformers",
    ):
        assert text in page, text
    assert (
        main(["report", str(measured), str(bare), "-o", str(tmp_path / "both.html"), "--title", "Two"]) == 0
    )
    assert "<title>Two" in (tmp_path / "both.html").read_text()


def test_the_log_of_a_zeroth_order_run(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "mezo"
    Finetuner(
        FinetuneConfig(**settings(model, data, run, method="mezo", lr=1e-6, steps=5, export=False))
    ).run()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Projected gradients by step" in page
    assert "The log of the run" in page
    assert "5 (0 to 5)" in page


@pytest.mark.parametrize("changes", [{"log": ("mlflow",)}, {"measure_every": -1}])
def test_settings(model: Path, data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        FinetuneConfig(**settings(model, data, tmp_path / "out", **changes))


def test_a_sink_that_is_not_installed_is_said_before_the_run(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install"):
        Finetuner(FinetuneConfig(**settings(model, data, tmp_path / "out", log=["wandb"]))).run()
    assert not (tmp_path / "out").exists()


def test_a_directory_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds none of" in capsys.readouterr().err
