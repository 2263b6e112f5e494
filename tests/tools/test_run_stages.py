# SPDX-License-Identifier: Apache-2.0
"""The stage runner stops at the first failure, states skips, ends what hangs, and always prints the table."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def no_arguments_from_make(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONLY", "VERBOSE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import run_stages

    monkeypatch.setattr(run_stages, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(run_stages, "ROOT", tmp_path)
    return run_stages


def run(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, stages: list[tuple[str, str]], *flags: str
) -> int:
    suite = tuple(runner.Stage(name, "a test", script, closing="^tests") for name, script in stages)
    monkeypatch.setattr(runner, "SUITES", {"test": suite})
    monkeypatch.setattr(sys, "argv", ["run_stages", "test", *flags])
    return int(runner.main())


def test_success_shows_closing_lines_and_table(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(runner, monkeypatch, [("a", "echo noise; echo tests passed: 3"), ("b", "true")]) == 0
    out = capsys.readouterr().out
    assert "tests passed: 3" in out
    assert "noise" not in out
    assert out.splitlines()[-1] == "test: passed"
    assert [line.split()[:2] for line in out.splitlines()[-4:-2]] == [["a", "passed"], ["b", "passed"]]


def test_first_failure_ends_the_suite(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stages = [("a", "true"), ("b", "echo why it failed; false; echo unreachable"), ("c", "touch ran")]
    assert run(runner, monkeypatch, stages) == 1
    out = capsys.readouterr().out
    assert "why it failed" in out
    assert "unreachable" not in out
    assert "c            not run" in out
    assert out.splitlines()[-1] == "test: FAILED (b)"
    assert not (tmp_path / "ran").exists()
    assert run(runner, monkeypatch, stages, "--keep-going") == 1
    assert (tmp_path / "ran").exists()


def test_a_failing_pipe_is_a_failure(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(runner, monkeypatch, [("a", "false | cat")]) == 1


def test_skips_state_their_reason(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = runner.Stage("cuda", "kernels", "false", missing=lambda: "nvcc not found on PATH")
    monkeypatch.setattr(runner, "SUITES", {"test": (stage,)})
    monkeypatch.setattr(sys, "argv", ["run_stages", "test"])
    assert runner.main() == 0
    out = capsys.readouterr().out
    assert "skipped: nvcc not found on PATH" in out
    assert out.splitlines()[-1] == "test: passed, skipped: cuda"


def test_a_stage_that_hangs_is_ended_with_its_children(runner: ModuleType, tmp_path: Path) -> None:
    stage = runner.Stage("a", "hangs", "(sleep 5; touch late) & echo started; wait", minutes=1 / 60)
    begin = time.monotonic()
    state, log = runner.run(stage, verbose=False)
    assert state == "failed"
    assert time.monotonic() - begin < 4
    assert "started" in log
    assert "it ran longer than" in log
    time.sleep(max(0.0, begin + 5.5 - time.monotonic()))
    assert not (tmp_path / "late").exists()


def test_a_runner_that_is_ended_takes_its_stage_along(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import pathlib, run_stages
run_stages.ROOT = pathlib.Path({str(tmp_path)!r})
run_stages.LOGS = run_stages.ROOT / "logs"
run_stages.SUITES = {{"test": (run_stages.Stage("a", "", "touch begun; sleep 4; touch late"),)}}
sys.argv = ["run_stages", "test"]
run_stages.main()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    begin = time.monotonic()
    while not (tmp_path / "begun").exists():
        assert time.monotonic() - begin < 30
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=10) == 143
    time.sleep(5)
    assert not (tmp_path / "late").exists()


def test_unknown_stages_are_refused(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(runner, monkeypatch, [("a", "true")], "--only", "b")
    assert stop.value.code == 2
    assert "no stage 'b' in test; stages: a" in capsys.readouterr().err
