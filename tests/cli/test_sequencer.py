# SPDX-License-Identifier: Apache-2.0
"""`lowtide sequencer`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lowtide.cli import main
from lowtide.spsa.comm import TCP, Hello


def test_a_worker_can_join_and_train(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    command = [
        sys.executable,
        "-m",
        "lowtide",
        "sequencer",
        "--slots",
        "2",
        "--key-file",
        str(key),
        "--seconds",
        "60",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("listening on ").strip()
        with TCP(address, worker="w", key=key) as comm:
            assert comm.join(Hello(b"r" * 16)).start == 0
            for step in range(3):
                codes = dict.fromkeys(comm.slots(step), 70)
                assert comm.exchange(step, codes).codes == ((0, 70), (1, 70))
            assert comm.members == ["sequencer", "w"]
    finally:
        process.kill()
        process.wait(10)


def test_it_ends_in_time_and_says_what_went_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sequencer", "--seconds", "0.3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("listening on 127.0.0.1:")
    assert "workers: none" in out
    assert "0 bytes sent" in out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--bind", "0.0.0.0:0"], "key"), (["--quorum", "0"], "quorum"), (["--bind", "nowhere"], "host:port"),
     (["--key-file", "/missing"], "cannot be read"), (["--slots", "-1"], "slots")],
)  # fmt: skip
def test_bad_arguments(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOWTIDE_KEY", "LOWTIDE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert main(["sequencer", *arguments]) == 2
    assert what in capsys.readouterr().err
