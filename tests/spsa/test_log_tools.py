# SPDX-License-Identifier: Apache-2.0
"""inspect, verify, truncate, compact, and the commands `lowtide log` and `lowtide replay`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

import lowtide as lt
from lowtide.cli import main
from lowtide.spsa import LogError, LogReader, LogWarning, LogWriter, log

from .logs import commits, header, hyper


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "s").write_bytes(b"state")
    with LogWriter(tmp_path / "a.ltlog", header(), batch=5, fsync="never") as writer:
        writer.member("ann", joins=True, epoch=1, count=2)
        for c in commits(50, total=2):
            if c.step == 20:
                writer.digest(bytes(16))
                writer.snapshot(tmp_path / "s")
            writer.append(c, hyper(c.step, 10))
    return tmp_path / "a.ltlog"


def test_inspect_counts(path: Path) -> None:
    report = log.inspect(path)
    run = commits(50, total=2)
    assert (report.step, report.slots, report.complete, report.cut) == (50, (2, 2), True, None)
    assert report.contributions == sum(len(c.codes) for c in run)
    assert report.empty == sum(not c.codes for c in run)
    assert report.lr == (1e-3, 1e-3 / 16, 1e-3, 1e-3 / 16)
    assert (report.digests, report.members, report.snapshots) == (1, 1, 1)
    assert report.bytes == path.stat().st_size
    assert "50 (0 to 50), closed" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["codec"] == "log8"
    assert log.verify(path).step == 50


def test_verify_wants_it_whole(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: LogReader(path).marks[-1].offset])
    with pytest.raises(lt.LowtideValueError, match="not closed"):
        log.verify(path)
    path.write_bytes(raw[:-3])
    with pytest.warns(LogWarning), pytest.raises(lt.LowtideValueError, match="within a frame"):
        log.verify(path)


def test_truncate(path: Path) -> None:
    assert log.truncate(path, 33) == 33
    assert [s.commit for s in LogReader(path).steps()] == commits(50, total=2)[:33]
    raw = bytearray(path.read_bytes())
    at = LogReader(path).marks[4].offset
    raw[at + 3] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(LogError, match="--cut"):
        log.inspect(path)
    with pytest.warns(LogWarning):
        step = log.truncate(path)
    assert 0 < step < 33
    assert path.with_name(f"a.ltlog.cut-{at}").read_bytes() == bytes(raw[at:])
    assert [s.commit for s in LogReader(path).steps()] == commits(50, total=2)[:step]


def test_compact_keeps_everything(path: Path) -> None:
    before, after = log.compact(path, path.with_name("b.ltlog"))
    assert after < before
    a, b = LogReader(path), LogReader(path.with_name("b.ltlog"))
    assert list(a.steps()) == list(b.steps())
    assert (a.digests(), a.members(), a.snapshots()) == (b.digests(), b.members(), b.snapshots())
    assert b.header == a.header


def test_command_log(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = path.with_name("a.png")
    assert main(["log", str(path), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000
    assert "50 (0 to 50), closed" in capsys.readouterr().out
    assert main(["log", str(path), "--json", "--compact", str(path.with_name("b.ltlog"))]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 50
    raw = bytearray(path.read_bytes())
    raw[LogReader(path).marks[4].offset + 3] ^= 1
    path.write_bytes(bytes(raw))
    assert main(["log", str(path)]) == 2
    assert "keep that part with lowtide log" in capsys.readouterr().err
    with pytest.warns(LogWarning):
        assert main(["log", str(path), "--cut"]) == 0
    capsys.readouterr()
    assert main(["log", str(path), "--cut", "7"]) == 0
    assert "7 (0 to 7)" in capsys.readouterr().out
    assert main(["log", str(path), "--cut", "8"]) == 2
    assert "step must be in [0, 7]" in capsys.readouterr().err
    assert main(["log", str(path.with_name("none"))]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_command_replay(tmp_path: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    live = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    live.save_pretrained(tmp_path / "base")
    opt = lt.spsa.SPSA(live.named_parameters(), lr=1e-3, module=live, log=tmp_path / "a.ltlog", codec="log8")
    ids = torch.arange(12).reshape(1, 12)
    for _ in range(6):
        opt.step(lambda: live(input_ids=ids, labels=ids).loss.float())
    opt.close()
    out = tmp_path / "out"
    arguments = ["replay", str(tmp_path / "base"), str(tmp_path / "a.ltlog")]
    assert main([*arguments, "--out", str(out)]) == 0
    assert (
        f"6 steps applied, 2 digests equal, weights {opt.masters.digest().hex()}" in capsys.readouterr().out
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
    for (name, p), q in zip(live.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--upto", "7"]) == 2
    assert main(["replay", str(out), str(tmp_path / "a.ltlog")]) == 2
    assert "not those the run started from" in capsys.readouterr().err
