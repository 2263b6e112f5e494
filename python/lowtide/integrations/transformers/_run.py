# SPDX-License-Identifier: Apache-2.0
"""The run directory that ``lowtide report`` reads, written by a callback of the Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import transformers

from lowtide.integrations._run_directory import RunDirectory
from lowtide.integrations.loggers import Sink
from lowtide.train import process

#: The Trainer's names of what the run directory calls otherwise.
_NAMES = {"learning_rate": "lr", "eval_loss": "val_loss"}
_LEAVE = (
    "epoch", "total_flos", "step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second",
    "eval_model_preparation_time",
)  # fmt: skip


class RunCallback(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes ``run.json``, ``metrics.jsonl`` and ``summary.json`` of a Trainer's run, for ``lowtide report RUN``.

    A record a step: ``seconds``, ``rss``, ``lr`` and, each ``every`` steps, ``bytes``, ``subspace`` and ``quantization`` of
    :func:`lowtide.optim.statistics`; ``loss`` and ``grad_norm`` where the Trainer logs (``logging_steps``), ``val_loss`` where it evaluates.
    A resumed run keeps the records up to its checkpoint and goes on behind them. With layerwise updates the Trainer sees no
    gradients and logs a norm of 0; here, and in its log, stands the one that was clipped.

    Args:
        run_dir: the directory, made if missing; ``TrainingArguments.output_dir`` does.
        every: steps between measurements of memory, subspaces and rounding. They change no bit of a step; see
            :func:`lowtide.optim.measure` for what they cost.
        sinks: further places the records go to, such as ``lowtide.integrations.loggers.TensorBoard(folder)``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument. OutputError: the directory cannot be written.
    """

    def __init__(self, run_dir: str | Path, *, every: int = 10, sinks: tuple[Sink, ...] = ()) -> None:
        self._run = RunDirectory(run_dir, every=every, sinks=sinks, package=transformers)
        self.run_dir = self._run.path
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._norm: float | None = None

    # ------------------------------------------------------------------ the run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write run.json; cut metrics.jsonl back to the step that training goes on from."""
        if not state.is_world_process_zero:
            return
        optimizer = _innermost(kwargs.get("optimizer"))
        model = kwargs.get("model")
        settings = {
            "optimizer": type(optimizer).__name__,
            "model": getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__,
            "steps": state.max_steps,
            **{k: _json(v) for k, v in args.to_dict().items()},
        }
        self._pending = None
        self._run.open(settings, step=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step before is complete; measure this one if its turn has come."""
        self._flush()
        self._run.restart_clock()
        self._run.begin_step(state.global_step, kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count while the gradients are still there."""
        if not self._run.is_open:
            return
        optimizer = kwargs["optimizer"]
        record: dict[str, Any] = {
            "lr": float(optimizer.param_groups[0]["lr"]),
            "rss": process.rss(),
        }
        self._norm = getattr(getattr(optimizer, "optimizer", optimizer), "grad_norm", None)
        if self._norm is not None:
            record["grad_norm"] = self._norm
        record.update(self._run.end_step(optimizer, kwargs.get("model")))
        self._pending = (state.global_step + 1, record)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step's time is taken before the Trainer logs, evaluates and saves."""
        if self._pending is not None:
            self._pending[1]["seconds"] = self._run.seconds()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take what the Trainer logs of the step."""
        if not self._run.is_open or not logs or "train_runtime" in logs:
            return
        if self._norm is not None and logs.get("grad_norm") == 0.0:
            logs["grad_norm"] = self._norm
            if state.log_history and "grad_norm" in state.log_history[-1]:
                state.log_history[-1]["grad_norm"] = self._norm
        numbers = {
            _NAMES.get(k, k): float(v)
            for k, v in logs.items()
            if k not in _LEAVE and isinstance(v, (int, float))
        }
        if (
            self._pending is None or self._pending[0] != state.global_step
        ):  # an evaluation before the first step
            self._flush()
            self._pending = (state.global_step, {})
        self._pending[1].update(numbers)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint must not be ahead of the metrics."""
        self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the metrics and write summary.json."""
        self._flush()
        done = state.global_step >= state.max_steps
        self._run.close("finished" if done else "stopped", state.global_step, steps=state.max_steps)

    def _flush(self) -> None:
        if self._pending is not None:
            self._run.log(*self._pending)
        self._pending = None


def _innermost(optimizer: Any) -> Any:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _json(value: Any) -> Any:
    """A setting as JSON takes it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    return str(value)
