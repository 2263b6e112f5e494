# SPDX-License-Identifier: Apache-2.0
"""Runs without gradients: mezo and qzo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

from lowtide.cli import main
from lowtide.spsa import LogReader
from lowtide.train import ConfigError, DivergedError, FinetuneConfig, Finetuner
from lowtide.train.loader import load_model

from .helpers import numbers, records, settings, state

#: Rates that move a tiny model within 60 steps.
LR = {"mezo": 1e-3, "qzo": 10.0}  # of a scale, relative to its size


def config(model: Path, data: Path, out: Path, method: str, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(
        **settings(model, data, out, **{"method": method, "lr": LR.get(method, 1e-3), **changes})
    )


@pytest.mark.parametrize("method", LR)
def test_it_learns_without_gradients(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    summary = Finetuner(config(model, data, tmp_path / "run", method, steps=60)).run()
    assert summary["val_loss_after"] < summary["val_loss_before"] - 0.02
    counted = summary["bytes"]
    assert counted["gradients"] == counted["states"] == counted["basis"] == 0
    assert 0 < counted["probe"] < counted["weights"]
    dense = Finetuner(config(tmp_path / "run" / "model", data, tmp_path / "again", "adamw", steps=1)).run()
    assert dense["val_loss_before"] == pytest.approx(summary["val_loss_after"], rel=1e-5)


@pytest.mark.parametrize("method", LR)
def test_crash_and_resume_equals_uninterrupted(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    Finetuner(config(model, data, tmp_path / "whole", method)).run()

    class Crash(Exception): ...

    def crash(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Crash

    broken = config(model, data, tmp_path / "broken", method)
    with pytest.raises(Crash):
        Finetuner(broken, on_step=crash).run()
    Finetuner(broken, resume=True).run()
    assert state(tmp_path / "whole", 10) == state(tmp_path / "broken", 10)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "broken")
    logs = [list(LogReader(tmp_path / name / "run.ltlog").steps()) for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 10


@pytest.mark.parametrize("method", LR)
def test_the_log_makes_the_model_again(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    Finetuner(config(model, data, tmp_path / "run", method, freeze="norm", schedule="cosine")).run()
    arguments = ["replay", str(model), str(tmp_path / "run" / "run.ltlog"), "--out", str(tmp_path / "again")]
    assert main(arguments) == 0
    trained, again = (load_model(tmp_path / p) for p in ("run/model", "again"))
    base = load_model(model)
    moved = 0
    for (name, p), q, b in zip(
        trained.named_parameters(), again.parameters(), base.parameters(), strict=True
    ):
        assert (p == q).all(), name
        moved += int((p != b).any())
    assert moved > 5


def test_groups_of_another_size_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lowtide import quant, spsa

    foreign = load_model(model)
    quant.quantize_model_(foreign, "int4", group=32)
    opt = spsa.QZO(foreign, 1e-3, log=tmp_path / "run.ltlog")
    opt.step(lambda: foreign(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.float().mean())
    opt.close()
    assert main(["replay", str(model), str(tmp_path / "run.ltlog")]) == 2
    assert "quantize the model as the run did" in capsys.readouterr().err


def test_a_run_that_diverges_says_so(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="smaller --lr"):
        Finetuner(config(model, data, tmp_path / "run", "mezo", lr=1e9, eval_every=100, steps=20)).run()
    assert all(r["step"] < 20 for r in records(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mezo", "betas": (0.9, 0.99)}, "betas do nothing for mezo"),
        ({"method": "qzo", "in_backward": "on"}, "qzo has no backward pass"),
        (
            {"method": "mezo", "weights": "int4"},
            "weights: got 'int4', takes int8 or int4 with qzo, fp32 with mezo",
        ),
        ({"method": "qzo", "weights": "fp32"}, "weights: got 'fp32'"),
        ({"method": "adamw", "weights": "int4"}, "int4 does not train with adamw"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**settings(tmp_path, tmp_path, tmp_path, **changes))
