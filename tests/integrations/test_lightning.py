# SPDX-License-Identifier: Apache-2.0
"""Lightning: automatic and manual optimization, checkpoints that go on bit for bit, the run directory."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="pip install lowtide[lightning]")

import lightning
import torch
from torch import Tensor, nn

import lowtide as lt

Factory = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*num_workers.*|.*many workers.*")
        yield


def make(weights: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(65, 96), nn.Tanh(), nn.Linear(96, 33))
    if weights is not None:
        lt.quant.quantize_model_(net, weights=weights, group=64, skip=())
    return net


class Automatic(lightning.LightningModule):
    def __init__(self, factory: Factory, weights: str | None = None) -> None:
        super().__init__()
        self.net, self.factory = make(weights), factory

    def loss(self, x: Tensor) -> Tensor:
        return (self.net(x).float() - x[:, :33].sin()).square().mean()

    def training_step(self, x: Tensor, index: int) -> Any:
        return self.loss(x)

    def validation_step(self, x: Tensor, index: int) -> None:
        self.log("val_loss", self.loss(x))

    def configure_optimizers(self) -> Any:
        optimizer = self.factory(self.net)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Manual(Automatic):
    def __init__(self, factory: Factory, weights: str | None = None) -> None:
        super().__init__(factory, weights)
        self.automatic_optimization = False

    def training_step(self, x: Tensor, index: int) -> Any:
        optimizer = self.optimizers()
        loss = self.loss(x)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        return loss


class ZerothOrder(Manual):
    def training_step(self, x: Tensor, index: int) -> Any:
        loss = self.optimizers().step(lambda: self.loss(x))
        self.lr_schedulers().step()
        return torch.tensor(loss)


def adamw8bit(net: nn.Module) -> Any:
    return lt.optim.AdamW8bit(net.parameters(), lr=1e-2, min_8bit_size=0)


def qgalore(net: nn.Module) -> Any:
    groups = lt.optim.param_groups(net, rank=8, update_proj_gap=3, scale=1.0)
    return lt.optim.QGaLoreAdamW(groups, lr=1e-2)


def spsa(net: nn.Module) -> Any:
    return lt.spsa.SPSA(net.named_parameters(), lr=1e-3, module=net)


def layerwise(**options: Any) -> Factory:
    return lambda net: lt.optim.in_backward(adamw8bit, net, **options)


def data() -> Any:
    x = torch.randn(64, 65, generator=torch.Generator().manual_seed(3))
    return torch.utils.data.DataLoader(x, batch_size=16)


def trainer(epochs: int, folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0, **options,
    )  # fmt: skip


CASES: dict[str, tuple[type[Automatic], Factory, str | None, dict[str, Any]]] = {
    "8-bit moments, clipped, accumulated, bf16": (
        Automatic, adamw8bit, None, {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "precision": "bf16-mixed"},
    ),
    "INT8 weights, INT4 bases, clipped": (Automatic, qgalore, "int8", {"gradient_clip_val": 0.05}),
    "in_backward, accumulated": (Automatic, layerwise(accumulate=2), None, {"accumulate_grad_batches": 2}),
    "manual": (Manual, qgalore, None, {}),
    "manual, in_backward, clipped": (Manual, layerwise(max_grad_norm=0.05), None, {}),
    "manual, zeroth order": (ZerothOrder, spsa, None, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_goes_on_bit_for_bit(case: str, tmp_path: Path) -> None:
    kind, factory, weights, options = CASES[case]
    whole = kind(factory, weights)
    trainer(2, tmp_path, **options).fit(whole, data())
    first = kind(factory, weights)
    start = {k: t.clone() for k, t in first.state_dict().items()}
    run = trainer(1, tmp_path, **options)
    run.fit(first, data())
    run.save_checkpoint(tmp_path / "one.ckpt")
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    second = kind(factory, weights)
    trainer(2, tmp_path, **options).fit(
        second, data(), ckpt_path=str(tmp_path / "one.ckpt"), weights_only=True
    )
    want, got = whole.state_dict(), second.state_dict()
    assert [k for k in want if not torch.equal(got[k], want[k])] == []
    assert any(not torch.equal(start[k], want[k]) for k in want)


def test_clipping_and_accumulation_equal_a_plain_loop(tmp_path: Path) -> None:
    module = Automatic(qgalore, "int8")
    trainer(1, tmp_path, gradient_clip_val=0.05, accumulate_grad_batches=2).fit(module, data())
    plain = Automatic(qgalore, "int8")
    (optimizer,), (row,) = plain.configure_optimizers()
    for i, x in enumerate(data()):
        (plain.loss(x) / 2).backward()
        if i % 2:
            assert nn.utils.clip_grad_norm_(plain.parameters(), 0.05) > 0.05
            optimizer.step()
            optimizer.zero_grad()
            row["scheduler"].step()
    want, got = plain.state_dict(), module.state_dict()
    assert [k for k in want if not torch.equal(got[k], want[k])] == []


def test_the_run_directory(tmp_path: Path) -> None:
    run = trainer(1, tmp_path, accumulate_grad_batches=2, callbacks=[lt.integrations.lightning.RunCallback(tmp_path / "run", every=2)])  # fmt: skip
    module = Automatic(qgalore, "int8")
    run.fit(module, data(), data())
    run.save_checkpoint(tmp_path / "one.ckpt")
    again = trainer(2, tmp_path, accumulate_grad_batches=2, callbacks=[lt.integrations.lightning.RunCallback(tmp_path / "run", every=2)])  # fmt: skip
    again.fit(Automatic(qgalore, "int8"), data(), data(), ckpt_path=str(tmp_path / "one.ckpt"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "seconds" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    with torch.no_grad():
        start = Automatic(qgalore, "int8")
        first = [float(start.loss(x)) for x in data()][:2]
    assert steps[0]["loss"] == pytest.approx(sum(first) / 2, rel=1e-6)
    assert [r["step"] for r in records if "val_loss" in r] == [2, 4]
    assert [("bytes" in r) for r in steps] == [True, False, True, False]
    assert steps[0]["subspace"]["matrices"] == 2
    assert 0 < steps[0]["subspace"]["energy"] <= 1
    assert steps[0]["bytes"]["gradients"] > 0
    run_json = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run_json["settings"]["optimizer"] == "QGaLoreAdamW"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["step"] == 4
    assert summary["train_loss_last"] == steps[-1]["loss"]


@pytest.mark.parametrize(
    ("kind", "factory", "options", "message"),
    [
        (Automatic, layerwise(), {"gradient_clip_val": 1.0}, "max_grad_norm to in_backward"),
        (Automatic, layerwise(), {"accumulate_grad_batches": 2}, "the same number"),
        (Automatic, spsa, {}, "automatic_optimization=False"),
    ],
)
def test_what_cannot_work_together_is_refused(
    kind: type[Automatic], factory: Factory, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    callback = lt.integrations.lightning.RunCallback(tmp_path / "run")
    with pytest.raises(lt.LowtideRuntimeError, match=message):
        trainer(1, tmp_path, callbacks=[callback], **options).fit(kind(factory), data())
    assert not (tmp_path / "run").exists()


def test_zeroth_order_in_automatic_optimization_is_warned_of(tmp_path: Path) -> None:
    """It learns the same, and computes gradients for nobody."""
    module, manual = Automatic(spsa), ZerothOrder(spsa)
    with pytest.warns(RuntimeWarning, match="ran a backward pass"):
        trainer(1, tmp_path).fit(module, data())
    trainer(1, tmp_path).fit(manual, data())
    want, got = manual.state_dict(), module.state_dict()
    assert [k for k in want if not torch.equal(got[k], want[k])] == []


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(lt.LowtideValueError, match="every must be"):
        lt.integrations.lightning.RunCallback(tmp_path, every=0)
    with pytest.raises(lt.LowtideTypeError, match="sinks must have"):
        lt.integrations.lightning.RunCallback(tmp_path, sinks=(print,))
