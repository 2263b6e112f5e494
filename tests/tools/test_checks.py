# SPDX-License-Identifier: Apache-2.0
"""The source checks of make lint find what they are for."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SPDX = "// SPDX-License-Identifier: Apache-2.0\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one complete kernel."""
    stem = ["csrc/f/s.h", "csrc/f/s.cc", "csrc/f/s_ref.cc", "csrc/f/s_simd.cc", "csrc/f/s.cu"]
    for name in [*stem, "tests/cpp/f/s_test.cc", "bench/cpp/s_bench.cc"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SPDX)
    (tmp_path / "CMakeLists.txt").write_text(SPDX.replace("//", "#") + "lowtide_kernel(f s)\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def check(name: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.syspath_prepend(str(TOOLS))
    common = importlib.import_module("check_spdx")
    module = importlib.import_module(name)
    monkeypatch.setattr(common, "ROOT", tree)
    monkeypatch.setattr(module, "ROOT", tree)
    return int(module.main())


@pytest.mark.parametrize("name", ["check_spdx", "check_lengths", "check_stems"])
def test_a_clean_tree_passes(name: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(name, tree, monkeypatch) == 0


def test_missing_spdx_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "csrc/f/other.h").write_text("#pragma once\n")
    (tree / "run.sh").write_text("#!/bin/bash\n# SPDX-License-Identifier: Apache-2.0\n")
    assert check("check_spdx", tree, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "csrc/f/other.h: the first line must say" in out
    assert "run.sh" not in out


def test_long_file(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "csrc/f/s.h").write_text(SPDX + "//\n" * 499)
    assert check("check_lengths", tree, monkeypatch) == 0
    (tree / "csrc/f/s.h").write_text(SPDX + "//\n" * 500)
    assert check("check_lengths", tree, monkeypatch) == 1
    assert "csrc/f/s.h: 501 lines, at most 500" in capsys.readouterr().out


@pytest.mark.parametrize(
    "gone", ["csrc/f/s.cu", "csrc/f/s_ref.cc", "tests/cpp/f/s_test.cc", "bench/cpp/s_bench.cc"]
)
def test_incomplete_kernel(
    gone: str, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / gone).unlink()
    assert check("check_stems", tree, monkeypatch) == 1
    assert f"kernel f/s: {gone} is missing" in capsys.readouterr().out


def test_unregistered_kernel(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "CMakeLists.txt").write_text(SPDX)
    assert check("check_stems", tree, monkeypatch) == 1
    assert "has no lowtide_kernel(f s) line" in capsys.readouterr().out
