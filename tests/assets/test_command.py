# SPDX-License-Identifier: Apache-2.0
"""``python -m lowtide.assets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lowtide.assets.__main__ as command
from lowtide import assets


@pytest.fixture
def listed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(command, "ASSETS", assets.ASSETS)
    return toy


def test_prints_the_path_and_nothing_else_on_stdout(listed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["toy", "--cache-dir", str(listed.root), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{listed.root / 'toy' / 'toy.txt'}\n"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for word in (
        *assets.names(),
        "LOWTIDE_CACHE",
        "--cache-dir",
        "licence",
        "lowtide finetune $(",
        "by hand",
    ):
        assert word in out


@pytest.mark.parametrize("arguments", [[], ["gpt2"], ["shakespeare", "--frobnicate"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""


def test_errors_are_one_sentence(listed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert command.main(["toy", "--cache-dir", str(tmp_path / "file" / "x")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: asset 'toy': the cache folder ")
    assert len(err.splitlines()) == 1
