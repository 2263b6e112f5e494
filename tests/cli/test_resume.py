# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped, killed or crashed and resumed equals the one that was not, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from lowtide.cli import main
from lowtide.train import ConfigError, FinetuneConfig, Finetuner, OutputError

from .helpers import METHODS, command, environment, flags, listing, numbers, records, said, settings, state


class Crash(Exception):
    pass


def crash_at(step: int) -> Any:
    def on_step(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Crash

    return on_step


def assert_same(one: Path, other: Path, step: int) -> None:
    assert state(one, step) == state(other, step)
    assert numbers(one) == numbers(other)


@pytest.mark.parametrize("method", METHODS)
def test_crash_and_resume_equals_uninterrupted(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(**settings(model, data, tmp_path / "whole", method=method))
    Finetuner(config).run()
    broken = FinetuneConfig(**settings(model, data, tmp_path / "broken", method=method))
    for crash, resume in ((2, False), (5, True), (8, True)):  # before any checkpoint, after one, after two
        with pytest.raises(Crash):
            Finetuner(broken, resume=resume, on_step=crash_at(crash)).run()
    summary = Finetuner(broken, resume=True).run()
    assert summary["status"] == "finished"
    assert_same(tmp_path / "whole", tmp_path / "broken", 10)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if len((out / "metrics.jsonl").read_bytes().splitlines()) > step:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"the run did not get to step {step}: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_stopped_by_a_signal_resumes_bit_for_bit(
    number: signal.Signals, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"method": "adamw", "steps": 400, "save_every": 25, "eval_every": 100}
    whole, broken = (
        settings(model, data, tmp_path / "w", **changes),
        settings(model, data, tmp_path / "b", **changes),
    )
    process = start(flags(broken))
    wait_for_step(tmp_path / "b", 60, process)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    kept = sorted(int(p.name[5:]) for p in (tmp_path / "b").glob("ckpt-*"))
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert kept
        assert kept[-1] % 25 == 0
        # A kill may leave the first part of a line and of a checkpoint.
        with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
            file.write('{"step": 999, "lo')
        (tmp_path / "b" / ".ckpt-00000999.1.tmp").mkdir()
        (tmp_path / "b" / ".summary.json.1.tmp").write_text("{")
    else:
        assert process.returncode == 130
        assert said(stderr).count("\n") == 1
        assert f"after step {kept[-1]} of 400" in stderr
        assert "--resume" in stderr
        assert records(tmp_path / "b")[-1]["step"] == kept[-1], "the step was finished and saved"
    assert kept[-1] < 400
    assert main([*flags(broken), "--resume"]) == 0
    assert main(flags(whole)) == 0
    assert_same(tmp_path / "w", tmp_path / "b", 400)
    assert [p.name for p in (tmp_path / "b").glob(".*")] == [".lock"]
    capsys.readouterr()


def test_a_finished_run_resumes_to_itself(model: Path, data: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(**settings(model, data, tmp_path / "run"))
    Finetuner(config).run()
    before = numbers(tmp_path / "run"), state(tmp_path / "run", 10)
    assert Finetuner(config, resume=True).run()["status"] == "finished"
    assert (numbers(tmp_path / "run"), state(tmp_path / "run", 10)) == before


def test_a_constant_rate_run_goes_on_past_its_end(model: Path, data: Path, tmp_path: Path) -> None:
    def config(out: str, steps: int) -> FinetuneConfig:
        return FinetuneConfig(
            **settings(model, data, tmp_path / out, schedule="constant", warmup=2, steps=steps)
        )

    Finetuner(config("a", 10)).run()
    Finetuner(config("b", 6)).run()
    Finetuner(config("b", 10), resume=True).run()
    assert state(tmp_path / "a", 10) == state(tmp_path / "b", 10)
    assert listing(tmp_path / "a" / "model") == listing(tmp_path / "b" / "model"), "exported anew"


def test_free_settings_may_change_and_numbers_may_not(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Finetuner(FinetuneConfig(**settings(model, data, out, steps=10))).run()
    Finetuner(FinetuneConfig(**settings(model, data, out, keep=1, save_every=7)), resume=True).run()
    before = listing(out)
    changes = {
        "lr": 1e-3, "method": "galore", "steps": 20, "batch_size": 2, "seq_len": 16, "seed": 1, "freeze": "embed",
        "weight_decay": 0.1, "schedule": "constant", "warmup": 0, "val_fraction": 0.1, "eval_every": 5,
    }  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(ConfigError, match=name if name != "method" else "in_backward|method"):
            Finetuner(FinetuneConfig(**settings(model, data, out, **{name: value})), resume=True).run()
    assert listing(out) == before


def test_two_processes_cannot_train_in_one_directory(model: Path, data: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(**settings(model, data, tmp_path / "run"))

    def again(record: dict[str, Any]) -> None:
        with pytest.raises(OutputError, match="another process"):
            Finetuner(config, resume=True).run()
        raise Crash

    with pytest.raises(Crash):
        Finetuner(config, on_step=again).run()
