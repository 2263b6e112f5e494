# SPDX-License-Identifier: Apache-2.0
"""The examples on continual learning and grokking run and write what they say, on a small scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, out: Path, *arguments: str) -> dict:
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / f"{script}.png").stat().st_size > 10_000
    assert (out / f"{script}.md").read_text() in done.stdout
    return json.loads((out / f"{script}.json").read_text())["results"]


@pytest.mark.slow
def test_continual_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    methods = ["AdamW", "GPM", "SGP", "NSGP", "Adam-NSCL", "OSF", "TRGP", "CUBER"]
    results = run(
        "continual_text",
        tmp_path,
        "--steps",
        "80",
        "--seeds",
        "0",
        "--tasks",
        "manual",
        "python",
        "--methods",
        *methods,
    )
    assert list(results) == ["all at once", *methods]
    assert all(len(runs[0]["scores"]) == 2 for name, runs in results.items() if name in methods)
    # What is learned second changes the first task less, for better or worse.
    assert abs(results["GPM"][0]["backward"]) < abs(results["AdamW"][0]["backward"])
    assert results["GPM"][0]["bytes"] > 0


def test_grokking(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    results = run("grokking", tmp_path, "--modulus", "7", "--steps", "40", "--seeds", "0")
    plain, perpendicular = results["AdamW"][0], results["perpendicular gradient"][0]
    assert plain["train"][-1] == 1.0
    assert plain["norm"][-1] / plain["norm"][0] > perpendicular["norm"][-1] / perpendicular["norm"][0]
