# SPDX-License-Identifier: Apache-2.0
"""Whatever a user gets wrong ends in one sentence with the remedy, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

from lowtide.cli import main
from lowtide.train import methods

from .helpers import command, environment, flags, listing, make_model, said, settings

Refused = Callable[..., str]


@pytest.fixture
def refused(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run with one thing wrong; the sentence on stderr after checking that it is one, and that nothing changed."""

    def run(*extra: str, **changes: Any) -> str:
        values = settings(model, data, tmp_path / "run", **changes)
        out = Path(values["out"])
        before = listing(out) if out.is_dir() else None
        try:
            code = main(flags(values) + list(extra))
        except SystemExit as stop:  # argparse
            code = stop.code  # type: ignore[assignment]
        stdout, stderr = capsys.readouterr()
        assert code == 2
        assert stdout == ""
        assert stderr.splitlines() == [stderr[:-1]], stderr
        assert "Traceback" not in stderr
        assert len(stderr) < 600
        assert ";" in stderr or "--help" in stderr, f"no remedy in: {stderr}"
        if before is not None:
            assert listing(out) == before
        else:
            assert not (out / "run.json").exists()
            assert not list(out.glob("ckpt-*"))
        return stderr

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 0}, "rank: got 0, takes an integer >= 1"),
        ({"rank": "many"}, "rank"),
        ({"lr": 0.0}, "lr: got 0.0, takes a finite number > 0"),
        ({"lr": -1e-3}, "lr: got -0.001"),
        ({"lr": "nan"}, "lr: got nan"),
        ({"update_proj_gap": 0}, "update_proj_gap: got 0"),
        ({"scale": "inf"}, "scale: got inf"),
        ({"steps": 0}, "steps: got 0"),
        ({"batch_size": -4}, "batch_size: got -4"),
        ({"seq_len": 1}, "seq_len: got 1"),
        ({"seq_len": 65}, "the model's context of 64"),
        ({"warmup": 11}, "warmup: got 11, takes at most the 10 steps"),
        ({"seed": -1}, "seed: got -1"),
        ({"val_fraction": 1.0}, "val_fraction: got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ({"grad_clip": 0}, "grad_clip: got 0.0"),
        ({"freeze": "("}, "not a regular expression"),
        ({"freeze": "nothing_like_this"}, "matches no parameter"),
        ({"freeze": "."}, "leaves nothing to train"),
        ({"method": "sgd"}, "--method"),
        ({"threads": 0}, "threads: got 0"),
        ({"keep": 0}, "keep: got 0"),
        ({"save_every": 0}, "save_every: got 0"),
        ({"plot": "loss.docx"}, "ending in .png"),
        ({"plot": "/no/such/place/loss.png"}, "does not exist"),
        ({"optimizer": "x"}, "unrecognized arguments: --optimizer x"),
    ],
)
def test_settings(refused: Refused, changes: dict[str, Any], says: str) -> None:
    assert says in refused(**changes)


def test_eps_where_the_rule_has_none(refused: Refused) -> None:
    assert "eps does nothing for lion8bit" in refused(method="lion8bit", eps=1e-8)


def test_betas(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    assert "betas: got (1.0, 0.5)" in refused("--betas", "1", "0.5")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "there is no file"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n\t" * 20000, "is empty"),
        ("short.txt", b"too short", "shorter than one window of 32"),
        ("photo.png", b"\x89PNG", "is none of .txt"),
        ("binary.txt", b"abc\x00def" * 100, "is binary"),
        ("late.txt", b"x" * 100000 + b"\n\x00\n", "NUL byte"),
        ("latin.txt", "Gezeiten für alle ".encode("latin-1") * 100, "is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("list.jsonl", b"[1]\n", "line 1 has no text under 'text'"),
        ("key.jsonl", b'{"body": "a", "id": 3}\n', "it has body, id"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
        ("nest.jsonl", b"[" * 100000 + b"\n", "is not JSON"),
        ("void.jsonl", b'{"text": ""}\n', "no tokens"),
    ],
)
def test_data(refused: Refused, tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert says in refused(data=str(path))


def test_data_that_is_a_directory(refused: Refused, tmp_path: Path) -> None:
    assert "is not a file" in refused(data=str(tmp_path))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_model_missing(refused: Refused, tmp_path: Path) -> None:
    assert "there is no directory" in refused(model=str(tmp_path / "nowhere"))
    assert "there is no directory" in refused(model="gpt2"), "never looked up on the network"
    assert "is not a directory" in refused(model=str(write(tmp_path / "file", b"")))


def test_model_incomplete(refused: Refused, copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickled weights are not loaded" in refused(model=str(copy))
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot load" in refused(model=str(copy))
    (copy / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "cannot load" in refused(model=str(copy))
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "tokenizer.json").rename(copy / "other.json")
    assert "tokenizer" in refused(model=str(copy))


def test_model_config(refused: Refused, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lacks" in refused(model=str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    refused(model=str(copy))
    (copy / "config.json").write_text(
        json.dumps({**config, "model_type": "bert", "architectures": ["BertModel"]})
    )
    refused(model=str(copy))
    (copy / "config.json").write_text("{")
    refused(model=str(copy))
    (copy / "config.json").unlink()
    assert "has no config.json" in refused(model=str(copy))


def test_tokenizer_larger_than_the_embedding(refused: Refused, copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["e"] = 5000
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "makes token 5000 and its embedding has 300 rows" in refused(model=str(copy))


@pytest.mark.parametrize("method", ["galore", "qgalore"])
def test_a_model_without_linear_layers(refused: Refused, tmp_path: Path, method: str) -> None:
    gpt2 = make_model(tmp_path / "gpt2", kind="gpt2")
    assert "GPT2LMHeadModel has none" in refused(model=str(gpt2), method=method)


def test_everything_linear_frozen(refused: Refused) -> None:
    assert "has none that train" in refused(method="galore", freeze="layers")


def test_a_model_that_reads_packed_weights_itself(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mamba = make_model(tmp_path / "mamba", kind="mamba")
    capsys.readouterr()
    assert main(flags(settings(mamba, data, tmp_path / "run", method="qgalore"))) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]  # transformers writes of kernels it lacks
    assert "MambaForCausalLM reads the weight of a linear layer itself" in sentence
    assert "use --weights fp32" in sentence


def test_out_of_memory(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods.Updater, "step", lambda self: torch.empty(1 << 60))
    assert main(flags(settings(model, data, tmp_path / "run"))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "out of memory" in err


def poison_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one weight NaN after the update of `step`, as an update that diverged would."""
    calls = 0
    real = methods.Updater.step

    def update(self: methods.Updater) -> None:
        nonlocal calls
        real(self)
        calls += 1
        if calls == step:
            with torch.no_grad():
                self._optimizer.param_groups[0]["params"][0][0] = float("nan")

    monkeypatch.setattr(methods.Updater, "step", update)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_after(5, monkeypatch)
    values = settings(model, data, tmp_path / "run", eval_every=10)
    assert main(flags(values)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "at step 6" in err
    assert "--lr" in err
    assert "the checkpoint of step 3 is kept" in err
    monkeypatch.undo()
    assert main([*flags(values), "--resume"]) == 0, "the kept checkpoint is sound"


def test_weights_that_are_not_finite_are_not_saved(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_after(6, monkeypatch)
    assert main(flags(settings(model, data, tmp_path / "run", eval_every=10))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "not finite after step 6" in err
    assert "the checkpoint of step 3 is kept" in err
    assert [p.name for p in (tmp_path / "run").glob("ckpt-*")] == ["ckpt-00000003"]


def test_a_nan_in_the_model(
    copy: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    for fraction, says in (
        (0, "the loss is nan at step 1"),
        (0.1, "the validation loss is nan after step 0"),
    ):
        out = tmp_path / says.replace(" ", "-")
        assert main(flags(settings(copy, data, out, val_fraction=fraction))) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert says in err
        assert "no checkpoint was written" in err
        assert not list(out.glob("*ckpt*"))


@pytest.fixture
def finished(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of 10 steps with checkpoints of steps 9 and 10."""
    assert main(flags(settings(model, data, tmp_path / "run"))) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_a_directory_that_holds_a_run(refused: Refused, finished: Path) -> None:
    assert "already holds a run" in refused()
    (finished / "run.json").unlink()
    assert "already holds a run" in refused()


def test_nothing_to_resume(refused: Refused, tmp_path: Path) -> None:
    assert "there is no run" in refused("--resume")
    assert not (tmp_path / "run").exists()


def test_other_model_or_text(
    refused: Refused, finished: Path, data: Path, copy: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.txt", data.read_bytes() + b"more")
    assert "another text" in refused("--resume", data=str(other))
    make_model(tmp_path / "twin", seed=1)
    assert "another model" in refused("--resume", model=str(tmp_path / "twin"))
    make_model(tmp_path / "wide", hidden=64)
    assert "another model" in refused("--resume", model=str(tmp_path / "wide"))
    assert main([*flags(settings(copy, data, finished)), "--resume"]) == 0, (
        "the same model elsewhere is no error"
    )


def damage_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        change(state)
        (path / "state.json").write_text(json.dumps(state))

    return damage


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def flip(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) * 3 // 4] ^= 1
        (path / name).write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut("model.safetensors", 0.5), "bytes instead of"),
        (cut("optimizer.safetensors", 0), "bytes instead of"),
        (flip("model.safetensors"), "does not match its SHA-256"),
        (flip("optimizer.safetensors"), "does not match its SHA-256"),
        (cut("state.json", 0.9), "is damaged"),
        (cut("state.json", 0), "is damaged"),
        (lambda path: (path / "state.json").unlink(), "has no state.json"),
        (lambda path: (path / "model.safetensors").unlink(), "is missing"),
        (lambda path: (path / "state.json").write_text("[" * 10**6), "is damaged"),
        (lambda path: (path / "state.json").write_text('{"format": "other"}'), "is not a lowtide checkpoint"),
        (damage_json(lambda s: s.update(version=9)), "checkpoint version 9"),
        (damage_json(lambda s: s.update(step=3)), "was changed after it was written"),
        (damage_json(lambda s: s["info"]["settings"].update(lr=1.0)), "was changed after it was written"),
        (lambda path: path.rename(path.with_name("ckpt-00000011")), "was renamed"),
    ],
)
def test_a_damaged_checkpoint(
    refused: Refused, finished: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(finished / "ckpt-00000010")
    assert says in refused("--resume")


def test_a_foreign_checkpoint(
    refused: Refused,
    finished: Path,
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(settings(model, data, tmp_path / "other", lr=1e-4, steps=10))) == 0
    capsys.readouterr()
    shutil.rmtree(finished / "ckpt-00000010")
    shutil.copytree(tmp_path / "other" / "ckpt-00000010", finished / "ckpt-00000010")
    assert "lr: got 0.003" in refused("--resume")
    assert "is damaged" in _with_damaged_record(refused, finished)


def _with_damaged_record(refused: Refused, out: Path) -> str:
    (out / "run.json").write_text("{}")
    return refused("--resume")


def test_after_removing_the_damaged_checkpoint_the_run_goes_on(
    refused: Refused, finished: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip("model.safetensors")(finished / "ckpt-00000010")
    assert "remove that directory to resume from ckpt-00000009" in refused("--resume")
    shutil.rmtree(finished / "ckpt-00000010")
    assert main([*flags(settings(model, data, finished)), "--resume"]) == 0
    capsys.readouterr()


def test_output_is_a_file(refused: Refused, tmp_path: Path) -> None:
    out = write(tmp_path / "file", b"precious")
    assert "is not a directory" in refused(out=str(out))
    assert "is not a directory" in refused(out=str(out / "below"))
    assert out.read_bytes() == b"precious"


def _process(arguments: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
        **kwargs,
    )


def failed(arguments: list[str], **kwargs: Any) -> str:
    """The one sentence of a process that must end in exit code 2."""
    done = _process(arguments, **kwargs)
    assert done.returncode == 2, done.stderr
    sentence = said(done.stderr)
    assert sentence.count("\n") == 1, done.stderr
    return sentence


def test_read_only_output(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "locked"
    out.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root writes there; /proc takes new directories from nobody
        out = Path("/proc/lowtide-run")
    assert "cannot write" in failed(flags(settings(model, data, out)))


def limit_files(size: int) -> Callable[[], None]:
    """A limit on the size of a file stands for the full disk: both fail in the middle of a write."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_disk_full_in_a_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    values = settings(model, data, tmp_path / "run")
    sentence = failed(flags(values), preexec_fn=limit_files(300_000))  # below the optimizer's 450 kB
    assert "ckpt-00000003" in sentence
    assert "--resume" in sentence
    assert not list((tmp_path / "run").glob("*ckpt*"))
    assert not list((tmp_path / "run").glob(".ckpt*"))
    assert _process([*flags(values), "--resume"]).returncode == 0


def test_disk_full_in_the_metrics(model: Path, data: Path, tmp_path: Path) -> None:
    values = settings(model, data, tmp_path / "run", steps=400, save_every=400, eval_every=400)
    assert "metrics.jsonl" in failed(flags(values), preexec_fn=limit_files(40_000))


def test_disk_full_in_the_tokens(model: Path, data: Path, tmp_path: Path) -> None:
    values = settings(model, data, tmp_path / "run")
    assert "tokens-" in failed(flags(values), preexec_fn=limit_files(10_000))
    assert main(flags(values)) == 0, "nothing that would be in the way was left"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that reached for the network would pass slowly where there is one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return
