# SPDX-License-Identifier: Apache-2.0
"""The demo itself, two steps of each method on the real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.assets
def test_demo_writes_table_numbers_and_figure(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples" / "demo.py"),
        "--steps",
        "2",
        "--seq-len",
        "32",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "demo.json").read_text())["results"]
    assert set(results) == {"adamw", "galore", "qgalore"}
    for r in results.values():
        assert r["val_loss_after"] < r["val_loss_before"]
    counted = {name: sum(r["bytes"].values()) for name, r in results.items()}
    assert counted["qgalore"] * 4 < counted["adamw"]
    assert counted["galore"] < counted["adamw"]
    assert "Q-GaLore against AdamW" in done.stdout
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    # Run again: everything is there already, so nothing is trained.
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (
        json.loads((tmp_path / "demo.json").read_text())["results"]["adamw"]["curve"]
        == results["adamw"]["curve"]
    )
