# SPDX-License-Identifier: Apache-2.0
"""The run directory that ``lowtide report`` reads, written by a callback of Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lowtide.errors import LowtideRuntimeError
from lowtide.integrations._run_directory import RunDirectory
from lowtide.integrations.loggers import Sink
from lowtide.optim import InBackward
from lowtide.spsa import SPSA
from lowtide.train import process


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
        self._run = RunDirectory(run_dir, every=every, sinks=sinks, package=lightning)
        self.run_dir = self._run.path
        self._losses: list[float] = []
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See :func:`check`."""
        check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write run.json; cut metrics.jsonl back to the step that training goes on from."""
        if not trainer.is_global_zero:
            return
        first = trainer.optimizers[0] if trainer.optimizers else None
        settings = {
            "optimizer": type(getattr(first, "optimizer", first)).__name__,
            "model": type(pl_module).__name__,
            "steps": int(trainer.estimated_stepping_batches),
            "precision": str(trainer.precision),
            "gradient_clip_val": trainer.gradient_clip_val,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }
        self._step = trainer.global_step
        self._losses.clear()
        self._run.open(settings, step=self._step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure this step if its turn has come."""
        if self._run.is_open:
            self._run.begin_step(self._step, trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A record, if this batch ended with a step."""
        if not self._run.is_open:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(float(loss))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        optimizer = trainer.optimizers[0]
        record: dict[str, Any] = {
            "lr": float(optimizer.param_groups[0]["lr"]),
            "seconds": self._run.seconds(),
            "rss": process.rss(),
        }
        if self._losses:  # Lightning has divided them by the number of accumulated batches
            record["loss"] = sum(self._losses) if pl_module.automatic_optimization else self._losses[-1]
        if (norm := getattr(optimizer, "grad_norm", None)) is not None:
            record["grad_norm"] = norm
        record.update(self._run.end_step(optimizer, pl_module))
        self._run.log(self._step, record)
        self._losses.clear()
        self._run.restart_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take ``val_loss`` if the module logged one."""
        value = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and value is not None:
            self._run.log(trainer.global_step, {"val_loss": float(value)})
        self._run.restart_clock()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the metrics and write summary.json."""
        self._run.close("finished", trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same, of a run that was stopped."""
        self._run.close("stopped", trainer.global_step)
