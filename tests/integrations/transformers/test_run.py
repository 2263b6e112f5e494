# SPDX-License-Identifier: Apache-2.0
"""The run directory that the callback writes: every step once, also where a run was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lowtide as lt

transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate (pip install lowtide[demo])")

Make = Callable[..., Any]


def run(
    model: Any,
    args: Any,
    tokens: Any,
    folder: Path,
    resume: Any = None,
    extra: Any = (),
    layerwise: bool = False,
    **options: Any,
) -> Any:
    tools = lt.integrations.transformers
    pair = tools.optimizer_cls_and_kwargs(
        model, args, method="qgalore", rank=4, update_proj_gap=2, layerwise=layerwise
    )
    trainer = transformers.Trainer(
        model, args, train_dataset=tokens, eval_dataset=tokens, optimizer_cls_and_kwargs=pair,
        callbacks=[tools.RunCallback(folder, **options), *extra],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_files(make_model: Make, arguments: Make, tokens: Any, tmp_path: Path) -> None:
    model = lt.integrations.transformers.prepare_model(make_model(), group=32)
    args = arguments("out", eval_strategy="steps", eval_steps=2, logging_steps=2)
    trainer = run(model, args, tokens, tmp_path / "run", every=2, layerwise=True)
    found = records(tmp_path / "run")
    assert [r["step"] for r in found] == [1, 2, 3, 4]
    assert all(r["seconds"] > 0 and r["rss"] > 0 and r["grad_norm"] > 0 for r in found)
    assert found[0]["lr"] == 1e-2 > found[3]["lr"]
    assert ["loss" in r for r in found] == [False, True, False, True]
    assert ["val_loss" in r for r in found] == [False, True, False, True]
    measured = [r for r in found if "bytes" in r]
    assert [r["step"] for r in measured] == [1, 3]
    for r in measured:
        assert r["bytes"]["states"] > 0
        assert 0 < r["subspace"]["energy"] <= 1
        assert r["quantization"]["tensors"] == 7
        assert "sqnr_db" in r["quantization"]
    # The Trainer saw no gradient; its log tells the handle's norm.
    assert all(log["grad_norm"] > 0 for log in trainer.state.log_history if "grad_norm" in log)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"]["optimizer"] == "QGaLoreAdamW"
    assert about["settings"]["learning_rate"] == 1e-2
    assert about["versions"]["transformers"] == transformers.__version__
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 4)
    assert summary["val_loss_after"] == found[3]["val_loss"]
    assert summary["bytes"]["states"] == max(r["bytes"]["states"] for r in measured)


def test_measuring_changes_no_bit(make_model: Make, arguments: Make, tokens: Any, tmp_path: Path) -> None:
    often, never = make_model(), make_model()
    run(often, arguments("a"), tokens, tmp_path / "often", every=1)
    run(never, arguments("b"), tokens, tmp_path / "never", every=1000)
    assert all(a.equal(b) for a, b in zip(often.parameters(), never.parameters(), strict=True))


def test_a_resumed_run_is_cut_back_to_its_checkpoint(
    make_model: Make, arguments: Make, tokens: Any, stop: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(make_model(), arguments("whole"), tokens, tmp_path / "whole")
    run(make_model(), arguments("out"), tokens, folder, extra=[stop()])
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    with open(folder / "metrics.jsonl", "a") as file:  # what a killed process had written since
        file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "lo')
    run(make_model(), arguments("out"), tokens, folder, resume=str(tmp_path / "out" / "checkpoint-2"))
    assert [(r["step"], r["loss"]) for r in records(folder)] == [
        (r["step"], r["loss"]) for r in records(tmp_path / "whole")
    ]


def test_other_sinks_get_the_records_too(
    make_model: Make, arguments: Make, tokens: Any, tmp_path: Path
) -> None:
    seen: list[int] = []

    class Sink:
        def log(self, step: int, values: Any) -> None:
            seen.append(step)

        def close(self) -> None:
            seen.append(-1)

    run(make_model(), arguments("out"), tokens, tmp_path / "run", sinks=(Sink(),))
    assert seen == [1, 2, 3, 4, -1]


def test_errors(tmp_path: Path) -> None:
    tools = lt.integrations.transformers
    with pytest.raises(lt.LowtideValueError, match="every must be"):
        tools.RunCallback(tmp_path, every=0)
    with pytest.raises(lt.LowtideTypeError, match="sinks must have"):
        tools.RunCallback(tmp_path, sinks=(3,))


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    last = lt.integrations.transformers.last_checkpoint
    assert last(tmp_path / "nothing") is None
    for step, text in (
        (5, '{"global_step": 5}'),
        (10, '{"global_step": 10}'),
        (15, '{"global_st'),
        (20, None),
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-best").mkdir()
    assert last(tmp_path) == str(tmp_path / "checkpoint-10")
