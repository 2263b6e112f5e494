# SPDX-License-Identifier: Apache-2.0
"""`lowtide quant-report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import lowtide as lt
from lowtide.cli import main
from lowtide.train.loader import load_model


def test_report_of_a_model_directory(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "report.png"
    arguments = ["quant-report", str(model), "--weights", "int4", "--group", "32", "--scheme", "symmetric"]
    assert main([*arguments, "--json", "--plot", str(plot)]) == 0
    got = json.loads(capsys.readouterr().out)
    assert plot.read_bytes().startswith(b"\x89PNG")
    dense = load_model(model)
    packed = lt.quant.quantize_model_(load_model(model), "int4", 32, scheme="symmetric", headroom=False)
    assert got == lt.quant.report(packed, reference=dense).to_dict()
    names = [row["name"] for row in got["layers"]]
    assert names
    assert "lm_head" not in names
    assert main([*arguments, "--skip", "lm_head", "--skip", "mlp"]) == 0
    table = capsys.readouterr().out
    assert "mlp" not in table
    assert names[0] in table


def test_bad_input_is_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, words in (
        (["--group", "33"], "multiple of 32"),
        (["--plot", "x.txt"], "file name ending in"),
        (["--skip", "model", "--skip", "lm_head"], "no nn.Linear to quantize"),
    ):
        assert main(["quant-report", str(model), *extra]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    assert main(["quant-report", str(model / "absent")]) == 2
    assert "no directory" in capsys.readouterr().err
