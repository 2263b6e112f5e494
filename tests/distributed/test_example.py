# SPDX-License-Identifier: Apache-2.0
"""The example runs under torchrun, and resumes on another number of processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # each start of torchrun takes many seconds
def test_fsdp2_low_bit(tmp_path: Path) -> None:
    def run(processes: int, steps: int, checkpoint: str) -> str:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        arguments = [
            "examples/fsdp2_low_bit.py",
            "--steps",
            str(steps),
            "--checkpoint",
            str(tmp_path / checkpoint),
        ]
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    whole = run(2, 30, "whole")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", whole)]
    assert losses[-1] < losses[0]
    assert len(re.findall(r"process \d holds", whole)) == 2
    run(2, 20, "half")
    assert re.findall(r"step +30  loss ([\d.]+)", run(2, 30, "half")) == [f"{losses[-1]:.3f}"]
    assert "step   40" in run(1, 40, "half")
