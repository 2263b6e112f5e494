# SPDX-License-Identifier: Apache-2.0
"""examples/pretrain_study.py on a tiny model: every method runs, the study continues, its table and figure are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "pretrain_study.py"
METHODS = ["AdamW", "Q-GaLore", "DCT-AdamW"]


def study(out: Path, text: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(SCRIPT), "--steps", "4", "--tune-steps", "0", "--batch-size", "2", "--seq-len", "16",
        "--layers", "1", "--seeds", "0", "--eval-batches", "2", "--threads", "1", "--text", str(text), "--out", str(out),
        *more,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_runs_and_continues(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"to be or not to be, that is the question. " * 400)
    out = tmp_path / "out"
    done = study(out, text, "--methods", *METHODS)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((out / "pretrain_study.json").read_text())["rows"]
    assert [r["method"] for r in rows] == METHODS
    for r in rows:
        curve = r["curve"]
        assert curve[-1][0] == 4
        assert curve[-1][1] < curve[0][1], f"{r['method']} did not learn: {curve}"
    assert rows[1]["bytes"]["weights"] < rows[0]["bytes"]["weights"]
    assert (out / "pretrain_study.png").stat().st_size > 10_000
    table = (out / "pretrain_study.md").read_text()
    assert all(name in table for name in METHODS)

    # Kept runs are not trained again.
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").iterdir()}
    again = study(out, text, "--methods", *METHODS)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").iterdir()} == stamps
    assert (out / "pretrain_study.md").read_text() == table
