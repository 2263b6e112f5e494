# SPDX-License-Identifier: Apache-2.0
"""examples/digits_spectrum.py on a small scale: it learns, and its spectrum has a bulk and a few outliers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits_spectrum.py"


def test_digits_spectrum(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    arguments = [
        "--steps",
        "60",
        "--images",
        "300",
        "--probes",
        "2",
        "--lanczos",
        "30",
        "--grid",
        "5",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits_spectrum.md").read_text() in done.stdout
    for name in ("digits_spectrum", "digits_landscape", "digits_barrier"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    out = json.loads((tmp_path / "digits_spectrum.json").read_text())
    assert out["results"]["MLP"]["trained"]["test"] > 0.8
    for network in out["results"].values():
        start, trained = network["start"], network["trained"]
        assert trained["loss"] < 0.7 * start["loss"]
        # Sagun et al.: eigenvalues gather at zero beside the largest, which stand apart; their sum grows.
        assert trained["bulk_within_1e-2_top"] > max(0.65, start["bulk_within_1e-2_top"])
        assert trained["trace"] > start["trace"] + 3 * start["trace_stderr"]
        assert trained["top"][0] > 3 * trained["top"][9] > 0
    middle = out["landscape"]["losses"][2][2]
    assert middle == pytest.approx(out["results"]["MLP"]["trained"]["loss"], rel=1e-5)
    assert out["barrier"]["height"] > 0.1
