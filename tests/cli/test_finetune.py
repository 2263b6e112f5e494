# SPDX-License-Identifier: Apache-2.0
"""Runs of every method on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

from lowtide.cli import main
from lowtide.train import FinetuneConfig, Finetuner

from .helpers import METHODS, flags, numbers, records, settings


def finetune(model: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return Finetuner(FinetuneConfig(**settings(model, data, out, **changes))).run()


@pytest.mark.parametrize(
    ("method", "weights"), [*((m, "auto") for m in METHODS), ("adamw8bit", "int8"), ("qgalore", "fp32")]
)
def test_every_method_learns_and_says_what_it_did(
    method: str, weights: str, model: Path, data: Path, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    config = FinetuneConfig(
        **settings(
            model, data, tmp_path / "run", method=method, weights=weights, steps=30, lr=1e-2, scale=1.0
        )
    )
    summary = Finetuner(config, on_step=seen.append).run()
    assert summary["status"] == "finished"
    assert summary["step"] == 30
    assert summary["val_loss_after"] < summary["val_loss_before"] - 1.0, (
        "30 steps at this rate learn byte frequencies"
    )
    assert seen == records(tmp_path / "run")
    assert [r["step"] for r in seen] == list(range(31))
    assert [r["step"] for r in seen if "val_loss" in r] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert all(
        set(r) >= {"loss", "lr", "seconds", "tokens_per_second", "rss", "peak_rss", "bytes"} for r in seen[1:]
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert [p.name for p in sorted((tmp_path / "run").glob("ckpt-*"))] == ["ckpt-00000027", "ckpt-00000030"]
    assert not list((tmp_path / "run").glob(".ckpt*"))
    counted = summary["bytes"]
    assert counted["weights"] > 0
    assert counted["gradients"] > 0
    assert sum(counted.values()) > counted["weights"]


@pytest.mark.parametrize("method", METHODS)
def test_the_exported_model_is_the_trained_one(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    summary = finetune(model, data, tmp_path / "a", method=method)
    again = finetune(tmp_path / "a" / "model", data, tmp_path / "b", method="adamw", steps=1)
    assert again["val_loss_before"] == pytest.approx(summary["val_loss_after"], rel=1e-6)


def test_jsonl_and_text_of_the_same_words_train_alike(model: Path, data: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "tides.jsonl"
    jsonl.write_text(json.dumps({"body": data.read_text(), "id": 1}) + "\n\n")
    finetune(model, data, tmp_path / "a")
    finetune(model, jsonl, tmp_path / "b", text_key="body")
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def test_documents_are_joined_by_the_end_token(model: Path, tmp_path: Path) -> None:
    from lowtide.train.tokens import load_tokenizer, tokenize

    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "ab"}\n{"text": ""}\n{"text": "c"}\n')
    ids = tokenize(path, load_tokenizer(model), "text")
    assert [int(i) == 0 for i in ids] == [False, False, True, True, False]


def test_pieces_of_a_long_text_join_to_all_of_it(tmp_path: Path) -> None:
    from lowtide.train import text

    path = tmp_path / "long.md"
    content = "".join(f"line {i}\n" + "\n" * (i % 3) for i in range(30000)) + "x" * 3_000_000 + "\nend"
    path.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    pieces = [piece for document in text.documents(path, "text") for piece in document]
    assert "".join(pieces) == content
    assert len(pieces) > 4
    assert max(map(len, pieces)) <= 2 << 20


def test_tokens_are_made_once_and_made_again_when_damaged(model: Path, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    finetune(model, data, tmp_path / "a", token_cache=str(cache))
    (file,) = cache.iterdir()
    good = file.read_bytes()
    stamp = file.stat().st_mtime_ns
    finetune(model, data, tmp_path / "b", token_cache=str(cache))
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(good[:100])
    finetune(model, data, tmp_path / "c", token_cache=str(cache))
    assert file.read_bytes() == good
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b") == numbers(tmp_path / "c")


@pytest.mark.parametrize("method", ["adamw", "qgalore"])
def test_frozen_parameters_stay(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    summary = finetune(model, data, tmp_path / "run", method=method, freeze="embed|mlp")
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "run" / "model" / "model.safetensors"),
    )
    for name in before:
        frozen = "embed" in name or "mlp" in name
        if method == "adamw" or "embed" in name:  # frozen linear weights of qgalore are rounded once to INT8
            assert torch.equal(before[name], after[name]) == frozen, name
    assert summary["trained"] < summary["total"]


def test_gradient_clipping_holds_the_norm(model: Path, data: Path, tmp_path: Path) -> None:
    finetune(model, data, tmp_path / "a", method="galore", in_backward="off")
    finetune(model, data, tmp_path / "b", method="galore", grad_clip=1e30)
    finetune(model, data, tmp_path / "c", method="galore", grad_clip=1e-3)
    losses = [[r.get("loss") for r in numbers(tmp_path / run)] for run in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_gradient_clipping_within_the_backward_pass(model: Path, data: Path, tmp_path: Path) -> None:
    after = finetune(model, data, tmp_path / "a", method="galore", grad_clip=1e-2)
    within = finetune(model, data, tmp_path / "b", method="galore", grad_clip=1e-2, in_backward="on")
    losses = [[r["loss"] for r in numbers(tmp_path / run) if "loss" in r] for run in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert within["bytes"]["gradients"] < after["bytes"]["gradients"]


def test_in_backward_trains_like_after_it_and_holds_less(model: Path, data: Path, tmp_path: Path) -> None:
    after = finetune(model, data, tmp_path / "a", method="galore", in_backward="off")
    within = finetune(model, data, tmp_path / "b", method="galore", in_backward="on")
    assert [r.get("loss") for r in numbers(tmp_path / "a")] == [
        r.get("loss") for r in numbers(tmp_path / "b")
    ]
    assert within["bytes"]["gradients"] < after["bytes"]["gradients"]


def test_gradient_checkpointing_changes_no_bit(model: Path, data: Path, tmp_path: Path) -> None:
    finetune(model, data, tmp_path / "a")
    finetune(model, data, tmp_path / "b", gradient_checkpointing=True)
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def test_without_validation(model: Path, data: Path, tmp_path: Path) -> None:
    summary = finetune(model, data, tmp_path / "run", val_fraction=0, schedule="constant", export=False)
    assert summary["val_loss_before"] is None
    assert records(tmp_path / "run")[0]["step"] == 1
    assert not (tmp_path / "run" / "model").exists()


def test_command_prints_a_report_and_draws(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "loss.png"
    values = settings(model, data, tmp_path / "run", plot=str(picture), progress="on")
    assert main(flags(values)) == 0
    out, err = capsys.readouterr()
    assert "validation loss" in out
    assert "peak RSS" in out
    assert "loss" in err
    assert "tokens/s" in err
    assert "10/10" in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
    assert main(flags({**values, "out": str(tmp_path / "b"), "progress": "auto"})) == 0
    assert capsys.readouterr().err == "", "quiet where stderr is no terminal"
