# SPDX-License-Identifier: Apache-2.0
"""lt.quant.report: error and bits against brute force, the recorded figures, table, JSON, figure and command."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant._error import weight_error


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 96)
        self.up, self.down = nn.Linear(96, 40), nn.Linear(40, 96, bias=False)
        self.lm_head = nn.Linear(96, 20, bias=False)
        self.lm_head.weight = self.embed.weight


def brute_force(w: np.ndarray, v: np.ndarray, group: int) -> tuple[float, float, tuple[int, int], float]:
    w, v = w.astype(np.float64), v.astype(np.float64)
    worst, where = math.inf, (-1, -1)
    for r in range(w.shape[0]):
        for j, at in enumerate(range(0, w.shape[1], group)):
            a, b = w[r, at : at + group], v[r, at : at + group]
            n = ((a - b) ** 2).sum()
            if n and 10 * np.log10((a**2).sum() / n) < worst:
                worst, where = 10 * np.log10((a**2).sum() / n), (r, j)
    return 10 * np.log10((w**2).sum() / ((w - v) ** 2).sum()), np.abs(w - v).max(), where, worst


@pytest.mark.parametrize("shape", [(1, 5), (7, 64), (33, 100)])
def test_weight_error(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    v = w + (0.1 * rng.standard_normal(shape)).astype(np.float32)
    sqnr, largest, where, worst = brute_force(w, v, 32)
    for chunk in (1, 300, 1 << 20):
        monkeypatch.setattr("lowtide.quant._error._CHUNK", chunk)
        e = weight_error(torch.tensor(w), torch.tensor(v), 32)
        assert e.sqnr == pytest.approx(sqnr, rel=1e-12)
        assert e.largest == pytest.approx(largest, rel=1e-12)
        assert e.worst == where
        assert e.worst_sqnr == pytest.approx(worst, rel=1e-9)


def test_exact_and_hopeless_weights() -> None:
    w = torch.randn(4, 64)
    exact = weight_error(w, w, 32)
    assert (exact.sqnr, exact.worst, exact.worst_sqnr, exact.largest) == (math.inf, None, math.inf, 0.0)
    assert weight_error(w[:0], w[:0], 32).sqnr == math.inf
    v = w.clone()
    w[2, 40:] = 0
    w[2, 32:40] = 0
    hopeless = weight_error(w, v, 32)  # a group of zeros that came back as something
    assert hopeless.worst == (2, 1)
    assert hopeless.worst_sqnr == -math.inf
    assert weight_error(w * 0, v, 32).sqnr == -math.inf


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_against_brute_force(weights: str, scheme: str) -> None:
    model = Model()
    dense = copy.deepcopy(model)
    with lt.quant.recording():
        lt.quant.quantize_model_(model, weights, 32, scheme=scheme)
    recorded = lt.quant.report(model)
    assert [r.name for r in recorded.layers] == ["up", "down"]
    for reference in (dense, dense.state_dict()):
        r = lt.quant.report(model, reference=reference)
        assert r.to_dict() == recorded.to_dict()
    bits = 8 if weights == "int8" else 4
    signal = noise = 0.0
    for layer, name in zip(r.layers, ("up", "down"), strict=True):
        module, w = getattr(model, name), getattr(dense, name).weight.detach()
        v = module.dequantize()
        sqnr, largest, where, worst = brute_force(w.numpy(), v.numpy(), 32)
        assert layer.error.sqnr == pytest.approx(sqnr, rel=1e-12)
        assert layer.error.largest == pytest.approx(largest)
        assert layer.error.worst == where
        assert layer.error.worst_sqnr == pytest.approx(worst, rel=1e-9)
        assert layer.format == f"int{bits} {scheme} g32"
        q = lt.quant.quantize(w, bits, 32, scheme=scheme)
        assert layer.nbytes == q.nbytes
        assert layer.bits_per_weight == 8 * q.nbytes / w.numel()
        signal, noise = signal + layer.error.signal, noise + layer.error.noise
    assert r.sqnr == pytest.approx(10 * math.log10(signal / noise))
    assert r.bits_per_weight == 8 * r.nbytes / (2 * 96 * 40)
    assert r.dense_parameters == 20 * 96 + 40  # the tied head once, and a bias
    assert r.dense_bytes == 4 * r.dense_parameters
    assert r.worst(1)[0].error.sqnr == min(layer.error.sqnr for layer in r.layers)


def test_outlier_layers_count_once_with_their_side_tensor() -> None:
    model = Model()
    dense = copy.deepcopy(model)
    grads = {"up": torch.randn(40, 96), "down": torch.randn(96, 40)}
    with lt.quant.recording():
        lt.quant.gwq.quantize_model_(model, group=32, fraction=0.05, grads=grads)
    r = lt.quant.report(model)
    assert r.to_dict() == lt.quant.report(model, reference=dense).to_dict()
    assert [layer.name for layer in r.layers] == ["up", "down"]
    for layer in r.layers:
        module = getattr(model, layer.name)
        assert layer.nbytes == module.weight.nbytes
        assert layer.format == "int4 symmetric g32 + 5.00%"
    assert r.dense_parameters == 20 * 96 + 40


def test_without_figures_the_bits_are_still_told() -> None:
    model = lt.quant.quantize_model_(Model(), "int8", 32)
    r = lt.quant.report(model)
    assert r.sqnr is None
    assert r.worst() == ()
    assert r.bits_per_weight > 8
    assert all(row["sqnr_db"] is None for row in r.to_dict()["layers"])
    assert " - " in str(r)
    with pytest.raises(lt.LowtideValueError, match="reference="):
        r.plot("x.png")
    with lt.quant.recording():
        pass
    assert lt.quant.report(lt.quant.quantize_model_(Model(), "int8", 32)).sqnr is None


def test_recorded_figures_survive_copies_and_leave_the_state_dict_alone() -> None:
    model = Model()
    with lt.quant.recording():
        lt.quant.quantize_model_(model, "int8", 32)
    assert not any("error" in key for key in model.state_dict())
    assert lt.quant.report(copy.deepcopy(model)).to_dict() == lt.quant.report(model).to_dict()


def test_a_single_layer_is_a_model_too() -> None:
    dense = nn.Linear(64, 8)
    layer = lt.quant.Linear.from_linear(dense, bits=4, group=32)
    (row,) = lt.quant.report(layer, reference=dense).layers
    assert row.name == ""
    assert row.error.sqnr > 10


def test_table_and_json() -> None:
    model = Model()
    with lt.quant.recording():
        lt.quant.quantize_model_(model, "int4", 32)
    r = lt.quant.report(model)
    lines = str(r).splitlines()
    assert lines[0].split() == [
        "layer",
        "format",
        "weights",
        "bits",
        "SQNR",
        "dB",
        "worst",
        "group",
        "dB",
        "row,",
        "group",
    ]
    assert lines[2].startswith("up ")
    assert "3,840" in lines[2]
    assert f"{r.layers[0].error.sqnr:.2f}" in lines[2]
    assert lines[-2].startswith("all")
    assert f"{r.sqnr:.2f}" in lines[-2]
    assert len({len(line) for line in lines[2:4]}) == 1
    back = json.loads(json.dumps(r.to_dict(), allow_nan=False))
    assert back["layers"][0]["sqnr_db"] == r.layers[0].error.sqnr
    exact = copy.deepcopy(model)
    with torch.no_grad():
        reference = {"up.weight": exact.up.dequantize(), "down.weight": exact.down.dequantize()}
    r = lt.quant.report(exact, reference=reference)
    json.dumps(r.to_dict(), allow_nan=False)
    assert r.to_dict()["layers"][0]["noise"] == 0.0
    assert "exact" in str(r)


@pytest.mark.parametrize("layers", [2, 30])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot(layers: int, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws (pip install lowtide[demo])")
    model = nn.Sequential(*[nn.Linear(32, 8) for _ in range(layers)])
    with lt.quant.recording():
        lt.quant.quantize_model_(model, "int4", 32)
    path = lt.quant.report(model).plot(tmp_path / f"report{suffix}")
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lt.quant.quantize_model_(Model(), "int8", 32)
    with pytest.raises(lt.LowtideTypeError, match=r"nn\.Module"):
        lt.quant.report("model")
    with pytest.raises(lt.LowtideTypeError, match="reference must be"):
        lt.quant.report(model, reference=3)
    with pytest.raises(lt.LowtideValueError, match="no quantized layer"):
        lt.quant.report(Model())
    with pytest.raises(lt.LowtideValueError, match=r"reference has no float weight .* for up"):
        lt.quant.report(model, reference=model)
    with pytest.raises(lt.LowtideValueError, match=r"reference has no float weight .* for up"):
        lt.quant.report(model, reference={})
    r = lt.quant.report(model, reference=Model())
    with pytest.raises(lt.LowtideValueError, match=r"takes a file name ending in \.png"):
        r.plot(tmp_path / "x.txt")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(lt.LowtideImportError, match=r"pip install 'lowtide\[demo\]'"):
        r.plot(tmp_path / "x.png")
