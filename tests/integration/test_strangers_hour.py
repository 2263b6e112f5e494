# SPDX-License-Identifier: Apache-2.0
"""A stranger's hour: the commands of docs/integrations/transformers.md, on a model and a text of one's own, with a kill -9 in between."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integrations" / "transformers.md"


def documented() -> list[list[str]]:
    """The commands of the section, without the installation."""
    section = PAGE.read_text().split("## A stranger's hour")[1].split("\n## ")[0]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block
    lines = [shlex.split(line[2:]) for line in block[1].splitlines() if line.startswith("$ ")]
    assert lines[0][:2] == ["pip", "install"]
    return lines[1:]


def runnable(python: str, command: list[str], *more: str) -> list[str]:
    """A documented command as that interpreter's, with options of our own behind it."""
    if command[0] == "lowtide":
        return [python, "-m", "lowtide", *command[1:], *more]
    assert command[:2] == ["python", "examples/trainer_qgalore.py"]
    return [python, str(ROOT / command[1]), *command[2:], *more]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def complete(folder: Path) -> bool:
    """Whether the process has a checkpoint to go back to and has gone on since."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    metrics = folder / "metrics.jsonl"
    steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    return bool(states) and steps > min(int(p.parent.name.split("-")[1]) for p in states)


def kill_in_the_middle(command: list[str], folder: Path, out: Path) -> None:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not complete(out):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


def hour(folder: Path, *sizes: str, python: str = sys.executable) -> list[dict[str, Any]]:
    """The section's commands in ``folder``, with smaller sizes; returns the metrics of the resumed run."""
    from safetensors import safe_open

    start, resume, report = documented()
    assert resume == [*start, "--resume"]
    assert start[start.index("--out") + 1] == report[-1] == "run"
    run(runnable(python, start, *sizes, "--out", "whole"), folder)
    kill_in_the_middle(runnable(python, start, *sizes), folder, folder / "run")
    assert not (folder / "run" / "model").exists()
    run(runnable(python, resume, *sizes), folder)

    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in records if "loss" in r]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] == json.loads((folder / "run" / "summary.json").read_text())["step"]
    with (
        safe_open(folder / "whole" / "model" / "model.safetensors", "pt") as a,
        safe_open(folder / "run" / "model" / "model.safetensors", "pt") as b,
    ):
        assert set(a.keys()) == set(b.keys())
        assert all(a.get_tensor(k).equal(b.get_tensor(k)) for k in a.keys())  # noqa: SIM118
    run(runnable(python, report), folder)
    page = (folder / "run" / "report.html").read_text()
    assert "<svg" in page
    assert "QGaLoreAdamW" in page
    return records


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with ``notes.txt`` and ``my-model``: two layers of 64 features and a tokenizer of 300 pieces."""
    transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
    tokenizers = pytest.importorskip("tokenizers", reason="the Trainer (pip install lowtide[demo])")
    import torch

    text = (ROOT / "docs" / "training.md").read_text()
    (tmp_path / "notes.txt").write_text(text)
    pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer, inner.decoder = pieces, tokenizers.decoders.ByteLevel()
    inner.train_from_iterator(
        [text],
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pieces.alphabet(), show_progress=False
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.save_pretrained(tmp_path / "my-model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "my-model")
    return tmp_path


def check_small(folder: Path, python: str) -> None:
    sizes = ("--steps", "60", "--save-steps", "10", "--seq-len", "32", "--rank", "8", "--lr", "1e-3")
    records = hour(folder, *sizes, python=python)
    values = [r["val_loss"] for r in records if "val_loss" in r]
    assert values[-1] < values[0] - 0.1
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "run" / "model")
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}


def test_own_model_and_own_text(own: Path) -> None:
    check_small(own, sys.executable)


@pytest.fixture
def python_with_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of a fresh virtual environment in which the wheel was installed; other packages are this environment's."""
    given = os.environ.get("LOWTIDE_WHEEL")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    wheels = [Path(given)] if given else sorted((ROOT / "dist").glob(f"lowtide-*{tag}*.whl"))
    if not wheels:
        pytest.skip("there is no wheel of this Python in dist/ (make wheel) and LOWTIDE_WHEEL names none")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheels[-1])], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import lowtide; print(lowtide.__file__)"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert str(site) in found.stdout
    return python


@pytest.mark.slow
def test_on_the_wheel_in_a_fresh_environment(own: Path, python_with_wheel: str) -> None:
    check_small(own, python_with_wheel)


@pytest.mark.slow
@pytest.mark.assets
def test_smollm2_on_shakespeare(tmp_path: Path) -> None:
    """The 135M model through the Trainer with Q-GaLore; ``./my-model`` and ``notes.txt`` are the assets."""
    import lowtide as lt

    (tmp_path / "notes.txt").write_bytes(Path(lt.assets.fetch("shakespeare")).read_bytes()[:200_000])
    (tmp_path / "my-model").symlink_to(lt.assets.fetch("smollm2-135m"), target_is_directory=True)
    sizes = ("--steps", "12", "--save-steps", "4", "--seq-len", "64", "--batch-size", "1", "--lr", "5e-4")
    records = hour(tmp_path, *sizes)
    assert records[-1]["val_loss"] < records[0]["val_loss"]
    weights = next(r["bytes"]["weights"] for r in records if "bytes" in r)
    assert weights < 0.5 * 4 * 134_515_008  # of fp32; the embedding stays dense
