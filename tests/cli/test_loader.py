# SPDX-License-Identifier: Apache-2.0
"""Loading and writing models; memory of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file

from lowtide.train import loader, process

from .helpers import make_model


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_loaded_model_does_not_lean_on_its_files(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    before = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    model = loader.load_model(path)
    assert process.mapped_ranges(path) == []
    (path / "model.safetensors").write_bytes(bytes((path / "model.safetensors").stat().st_size))
    for name, tensor in model.named_parameters():
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor, before[name]), name


def test_tied_weights_stay_tied_and_count_once(model: Path) -> None:
    loaded = loader.load_model(model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    total = sum(p.nbytes for p in loaded.parameters()) + sum(b.nbytes for b in loaded.buffers())
    assert loader.weight_bytes(loaded) == total


def test_an_exported_model_is_complete(model: Path, tmp_path: Path) -> None:
    loader.export_model(loader.load_model(model), model, tmp_path / "out" / "model")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model"}
    names = {p.name for p in (tmp_path / "out" / "model").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name, tensor in load_file(tmp_path / "out" / "model" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(model / "model.safetensors")[name])


def test_identity_sees_weights_and_config(tmp_path: Path) -> None:
    one, same, other = (make_model(tmp_path / str(i), seed=s) for i, s in enumerate((0, 0, 1)))
    assert loader.identity(one) == loader.identity(same) != loader.identity(other)
    (same / "config.json").write_text((same / "config.json").read_text() + " ")
    assert loader.identity(one) != loader.identity(same)


def test_peak_memory_can_be_measured_anew() -> None:
    held = torch.ones(64 << 20, dtype=torch.uint8)
    high = process.peak_rss()
    del held
    process.trim()
    if not process.reset_peak_rss():
        pytest.skip("this kernel does not let a process reset its peak")
    assert process.rss() <= process.peak_rss() < high
