# SPDX-License-Identifier: Apache-2.0
"""The run directory that ``lowtide report`` reads, written by a callback of Lightning's Trainer."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

import lowtide
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.integrations.loggers import JSONL, Many, Sink
from lowtide.optim import InBackward, measure, statistics
from lowtide.spsa import SPSA
from lowtide.train import process
from lowtide.train.errors import output_error
from lowtide.train.files import write_json
from lowtide.train.metrics import read_metrics


def check(trainer: Trainer, module: LightningModule) -> None:
    """Refuse settings of the Trainer that an optimizer of lowtide would not see.

    Args:
        trainer: with its optimizers, as in ``on_fit_start`` and later.
        module: that it trains.

    Raises:
        LowtideRuntimeError: clipping or accumulation by the Trainer with :func:`lowtide.optim.in_backward`, another number of
            passes than the handle's, or SPSA in automatic optimization; names the remedy.
    """
    automatic = module.automatic_optimization
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, InBackward):
            if trainer.gradient_clip_val:
                raise LowtideRuntimeError(
                    f"gradient_clip_val={trainer.gradient_clip_val} finds no gradients with in_backward; leave it out and pass "
                    "max_grad_norm to in_backward"
                )
            if automatic and optimizer.accumulate != trainer.accumulate_grad_batches:
                raise LowtideRuntimeError(
                    f"accumulate_grad_batches={trainer.accumulate_grad_batches}, in_backward has accumulate={optimizer.accumulate}; "
                    "give both the same number"
                )
        if isinstance(optimizer, SPSA) and automatic:
            raise LowtideRuntimeError(
                f"{type(optimizer).__name__} needs no backward passes, which automatic optimization runs in every evaluation; set "
                "automatic_optimization=False and call self.optimizers().step(closure) in training_step"
            )


class RunCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Writes ``run.json``, ``metrics.jsonl`` and ``summary.json`` of a run, for ``lowtide report RUN``; and holds :func:`check`.

    A record an optimizer step: ``lr``, ``seconds``, ``rss``, ``loss`` (what ``training_step`` returns, the mean over accumulated
    batches) and each ``every`` steps ``bytes``, ``subspace`` and ``quantization`` of :func:`lowtide.optim.statistics`;
    ``val_loss`` if it was logged under that name. Of several optimizers the first is measured. A resumed run keeps the
    records up to its checkpoint and goes on behind them.

    Args:
        run_dir: the directory, made if missing.
        every: steps between measurements of memory, subspaces and rounding; they change no bit of a step.
        sinks: further places the records go to, such as ``lowtide.integrations.loggers.TensorBoard(folder)``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument. OutputError: the directory cannot be written.
    """

    def __init__(self, run_dir: str | Path, *, every: int = 10, sinks: tuple[Sink, ...] = ()) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise LowtideValueError(f"every must be an integer >= 1 (steps), got {every!r}")
        for sink in sinks:
            if not isinstance(sink, Sink):
                raise LowtideTypeError(
                    f"sinks must have log(step, values) and close(), got {type(sink).__name__}"
                )
        self.run_dir = Path(run_dir).expanduser()
        self._every, self._others = every, tuple(sinks)
        self._sink: Many | None = None
        self._measurement: Any = None
        self._losses: list[float] = []
        self._step, self._began = 0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See :func:`check`."""
        check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write run.json; cut metrics.jsonl back to the step that training goes on from."""
        if not trainer.is_global_zero:
            return
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.run_dir, error) from error
        first = trainer.optimizers[0] if trainer.optimizers else None
        settings = {
            "optimizer": type(getattr(first, "optimizer", first)).__name__,
            "model": type(pl_module).__name__,
            "steps": int(trainer.estimated_stepping_batches),
            "precision": str(trainer.precision),
            "gradient_clip_val": trainer.gradient_clip_val,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }
        write_json(
            self.run_dir / "run.json",
            {
                "format": "lowtide-run",
                "version": 1,
                "source": "lightning.Trainer",
                "settings": settings,
                "identity": {},
                "versions": _versions(),
            },
        )
        self._step = trainer.global_step
        self._sink = Many(JSONL(self.run_dir / "metrics.jsonl", resume_step=self._step), *self._others)
        self._losses.clear()
        self._began = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure this step if its turn has come."""
        if self._sink is not None and self._measurement is None and self._step % self._every == 0:
            self._measurement = measure(trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A record, if this batch ended with a step."""
        if self._sink is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(float(loss))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        optimizer = trainer.optimizers[0]
        now = time.perf_counter()
        record: dict[str, Any] = {
            "lr": float(optimizer.param_groups[0]["lr"]),
            "seconds": now - self._began,
            "rss": process.rss(),
        }
        if self._losses:  # Lightning has divided them by the number of accumulated batches
            record["loss"] = sum(self._losses) if pl_module.automatic_optimization else self._losses[-1]
        if (norm := getattr(optimizer, "grad_norm", None)) is not None:
            record["grad_norm"] = norm
        if self._measurement is not None:
            self._measurement.close()
            self._measurement = None
            record.update(statistics(optimizer, pl_module))
        self._sink.log(self._step, record)
        self._losses.clear()
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take ``val_loss`` if the module logged one."""
        value = trainer.callback_metrics.get("val_loss")
        if self._sink is not None and not trainer.sanity_checking and value is not None:
            self._sink.log(trainer.global_step, {"val_loss": float(value)})
        self._began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the metrics and write summary.json."""
        self._finish(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same, of a run that was stopped."""
        self._finish(trainer, "stopped")

    def _finish(self, trainer: Trainer, status: str) -> None:
        if self._measurement is not None:
            self._measurement.close()
            self._measurement = None
        if self._sink is None:
            return
        self._sink.close()
        self._sink = None
        records = list(read_metrics(self.run_dir / "metrics.jsonl"))

        def found(name: str) -> list[float]:
            return [r[name] for r in records if r.get(name) is not None]

        losses, val, seconds = found("loss"), found("val_loss"), sorted(found("seconds"))
        kinds: dict[str, int] = {}
        for record in records:
            for kind, count in record.get("bytes", {}).items():
                kinds[kind] = max(kinds.get(kind, 0), count)
        write_json(
            self.run_dir / "summary.json",
            {
                "status": status,
                "step": trainer.global_step,
                "val_loss_before": val[0] if val else None,
                "val_loss_after": val[-1] if val else None,
                "train_loss_first": losses[0] if losses else None,
                "train_loss_last": losses[-1] if losses else None,
                "seconds_per_step": seconds[len(seconds) // 2] if seconds else None,
                "peak_rss": max(found("rss"), default=None),
                "bytes": kinds,
                "versions": _versions(),
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
            },
        )


def _versions() -> dict[str, str]:
    return {
        "lowtide": lowtide.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
