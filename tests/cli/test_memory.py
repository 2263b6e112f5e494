# SPDX-License-Identifier: Apache-2.0
"""`lowtide memory`: what it counts is what a run holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from lowtide.cli import main
from lowtide.train import FinetuneConfig, Finetuner
from lowtide.train.loader import load_model

from .helpers import METHODS, make_model, settings


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("method", "weights"), [*((m, "auto") for m in METHODS), ("adamw8bit", "int8"), ("qgalore", "fp32")]
)
def test_counted_before_equals_counted_in_the_run(
    method: str,
    weights: str,
    tied: bool,
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not tied:
        model = make_model(tmp_path / "untied", tied=False)
    held = [] if weights == "auto" else ["--weights", weights]
    assert main(["memory", str(model), "--method", method, *held, "--rank", "8", "--json"]) == 0
    (before,) = json.loads(capsys.readouterr().out)
    config = FinetuneConfig(
        **settings(model, data, tmp_path / "run", method=method, weights=weights, rank=8, steps=2)
    )
    run = Finetuner(config).run()
    assert before["parameters"] == run["total"]
    buffers = sum(b.nbytes for b in load_model(model).buffers())  # rotary frequencies: no parameters
    assert before["weights"] == run["bytes"]["weights"] - buffers
    for kind in ("gradients", "states", "basis"):
        assert before[kind] == run["bytes"][kind], kind


def test_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "llama-7b", "--rank", "1024"]) == 0
    out = capsys.readouterr().out
    assert "6,738,415,616 parameters" in out
    assert all(method in out for method in METHODS)


def test_fit_proposes_settings_or_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "llama-1b", "--fit", "12GB", "--batch", "4", "--seq", "512", "--json"]) == 0
    proposals = json.loads(capsys.readouterr().out)
    assert all(p["fits"] and p["bytes"]["total"] <= 0.9 * 12e9 for p in proposals)
    assert main(["memory", "llama-1b", "--fit", "11.2GiB", "--batch", "4", "--seq", "512"]) == 0
    out = capsys.readouterr().out
    assert all(p["method"] in out and p["why"] in out for p in proposals)
    assert main(["memory", "llama-7b", "--fit", "4GB"]) == 1
    err = capsys.readouterr()
    assert "nearest misses by" in err.err
    assert "apollo-mini" in err.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "cannot read"),
        (["llama-7b", "--rank", "0"], "rank"),
        (["/dev/null"], "cannot read"),
        (["llama-7b", "--method", "magic"], "method must be one of"),
        (["llama-60m", "--fit", "1GB", "--batch", "-1"], "batch"),
        (["llama-60m", "--activations", "full"], "batch"),
    ],
)
def test_bad_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_a_config_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    assert main(["memory", str(tmp_path)]) == 2
    assert "only LLaMA-like" in capsys.readouterr().err
