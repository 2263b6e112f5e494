# SPDX-License-Identifier: Apache-2.0
"""`lowtide welore-report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import lowtide as lt
from lowtide.cli import main
from lowtide.train.loader import load_model


def test_report_of_a_model_directory(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "ranks.png"
    arguments = ["welore-report", str(model), "--ratio", "0.4"]
    assert main([*arguments, "--json", "--plot", str(plot)]) == 0
    plan = lt.lowrank.welore_plan(load_model(model), 0.4)
    assert json.loads(capsys.readouterr().out) == plan.to_dict()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--minimum", "0.1", "--uniform", "--skip", "lm_head", "--skip", "mlp"]) == 0
    table = capsys.readouterr().out
    assert table.rstrip("\n") == str(
        lt.lowrank.welore_plan(load_model(model), 0.4, minimum=0.1, uniform=True, skip=("lm_head", "mlp"))
    )


def test_bad_input_is_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, words in (
        (["--ratio", "1.5"], "ratio must be a number in [0, 1)"),
        (["--plot", "x.txt"], "file name ending in"),
        (["--skip", "model", "--skip", "lm_head"], "no nn.Linear outside of skip"),
    ):
        assert main(["welore-report", str(model), *extra]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
