# SPDX-License-Identifier: Apache-2.0
"""examples/mezo_sentiment.py: three steps of each method on the real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.assets
def test_mezo_sentiment(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "examples" / "mezo_sentiment.py"), "--out", str(tmp_path), "--steps", "3", "--seeds", "0",
        "--held-out", "32", "--no-progress",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "mezo_sentiment.json").read_text())["results"]
    assert list(results) == ["inference", "mezo", "qzo", "adamw"]
    mezo, inference = results["mezo"][0], results["inference"][0]
    assert len(mezo["losses"]) == 3
    assert mezo["before"] == inference["before"]
    # Peaks hold the time of loading too, which is the same for both.
    assert mezo["peak_rss"] < 1.1 * inference["peak_rss"] < results["adamw"][0]["peak_rss"]
    assert mezo["log_bytes"] < 2000
    assert (tmp_path / "mezo_sentiment.md").read_text() in done.stdout
    assert (tmp_path / "mezo_sentiment.png").stat().st_size > 10_000

    again = subprocess.run(command, capture_output=True, text=True)  # reads the finished runs
    assert json.loads((tmp_path / "mezo_sentiment.json").read_text())["results"] == results, again.stderr
