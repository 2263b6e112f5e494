# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning run: load, train, watch, save, resume bit for bit."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowtide.train import checkpoint, loader, process, text
from lowtide.train.batches import BatchOrder, Windows, split, validation_batches
from lowtide.train.config import FinetuneConfig
from lowtide.train.errors import CheckpointError, DivergedError, ModelError, first_line, out_of_memory
from lowtide.train.methods import METHODS, Updater, prepare_model, restore_model
from lowtide.train.metrics import MetricsWriter, read_metrics, truncate_metrics
from lowtide.train.plot import check_plot, plot_run
from lowtide.train.progress import Progress
from lowtide.train.schedule import learning_rate
from lowtide.train.signals import StopSignals
from lowtide.train.sinks import check_sinks, open_sinks
from lowtide.train.summary import summarize, versions
from lowtide.train.tokens import load_tokens, tokens_key
from lowtide.train.workspace import Workspace, check_same_run
from lowtide.train.zeroth_order import ZerothOrderUpdater

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]


class Finetuner:
    """Fine-tunes a causal language model on a text file, as `FinetuneConfig` says.

    Every number of the run is a function of the settings, the model and the text: batches and dropout are drawn
    from (seed, step), so a run that was interrupted or killed and continued with `resume=True` writes the weights,
    optimizer states and losses of an uninterrupted one, bit for bit, on the same machine and thread count.

    Under `config.out` it leaves `run.json`, `metrics.jsonl` (a record a step), `ckpt-*` (the newest `keep`),
    `summary.json` and `model/`, which transformers loads. Errors are subclasses of `LowtideError`, each one
    sentence with the remedy; nothing that was there before is overwritten.

    `on_step` gets each record of the metrics as it is written; `handle_signals` makes SIGINT and SIGTERM end the
    run after the step with a checkpoint (main thread only); `say` gets notes worth a line.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        resume: bool = False,
        on_step: Callable[[Record], None] | None = None,
        handle_signals: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.resume = resume
        self._on_step = on_step
        self._handle_signals = handle_signals
        self._say = say or (lambda _: None)

    def run(self) -> Record:
        """Run to the end, or to the first signal; returns the summary, whose "status" is "finished" or "interrupted".

        Raises ConfigError, DataError, ModelError, OutputError, CheckpointError or DivergedError.
        """
        config = self.config
        text.check_file(Path(config.data))
        loader.check_directory(Path(config.model))
        if config.plot is not None:
            check_plot(config.plot)
        check_sinks(config.log)
        with Workspace(Path(config.out), resume=self.resume) as workspace:
            identity = {
                "model": loader.identity(Path(config.model)),
                "tokens": tokens_key(Path(config.data), Path(config.model), config.text_key),
            }
            if self.resume:  # before anything heavy is loaded
                check_same_run(workspace.recorded(), config.frozen(), identity, workspace.path)
            with _Run(config, workspace, identity, resume=self.resume, say=self._say) as run:
                return run.train(self._on_step, self._handle_signals)


class _Run:
    """One process's part of a run: everything loaded, and the loop."""

    def __init__(
        self,
        config: FinetuneConfig,
        workspace: Workspace,
        identity: dict[str, str],
        *,
        resume: bool,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.workspace = workspace
        self.identity = identity
        source = Path(config.model)
        cache = Path(config.token_cache).expanduser() if config.token_cache else workspace.path
        tokens = load_tokens(
            Path(config.data), source, cache, text_key=config.text_key, key=identity["tokens"]
        )
        self.train_windows, self.val_windows = split(
            tokens, seq_len=config.seq_len, val_fraction=config.val_fraction
        )
        self.order = BatchOrder(self.train_windows, batch_size=config.batch_size, seed=config.seed)

        import torch

        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.release_memory:
            process.return_freed_memory()
        self.model: Any = loader.load_model(source)
        loader.check_fit(self.model, seq_len=config.seq_len, largest_token=int(tokens.max()))
        self.trained, self.total = loader.freeze(self.model, config.freeze)
        prepare_model(self.model, config)
        if config.gradient_checkpointing:
            loader.checkpoint_activations(self.model)
        method = METHODS[config.method]
        self.zeroth_order = method.zeroth_order
        self.updater: Any = (
            ZerothOrderUpdater(self.model, config, method, workspace.log)
            if method.zeroth_order
            else Updater(self.model, config)
        )
        self.step = 0
        self.ran = False
        self.last_saved: int | None = None
        self.say = say
        if resume:
            self._restore()
        else:
            about = {"versions": versions(), "model": config.model, "data": config.data}
            workspace.begin(config.frozen(), self.identity, about)
        process.trim()
        self.loading_peak = process.peak_rss()
        process.reset_peak_rss()
        self.loaded_rss = process.rss()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Free the model before the caller goes on."""
        if self.zeroth_order and self.updater is not None:
            self.updater.close()
        del self.model, self.updater

    def _restore(self) -> None:
        import torch

        where, settings = self.workspace.path, self.config.frozen()
        found = checkpoint.checkpoints(where)
        if found:
            step, path = found[-1]
            state = checkpoint.load_info(path)
            info = state.get("info")
            if state.get("step") != step or not isinstance(info, dict):
                raise CheckpointError(
                    f"{path} was renamed: it holds step {state.get('step')!r}; give it its own name back"
                )
            check_same_run(info, settings, self.identity, path)
            try:
                self.model.load_state_dict(checkpoint.load_tree(path, "model", state))
                self.updater.load_state_dict(checkpoint.load_tree(path, "optimizer", state))
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(
                    f"{path} does not fit this model and method ({first_line(error)}); start a new run in another --out"
                ) from error
            self.step = self.last_saved = step
            threads = info.get("threads")
            if threads != torch.get_num_threads():
                self.say(
                    f"resuming with {torch.get_num_threads()} threads a run of {threads}: "
                    "its numbers may differ in the last bits from an uninterrupted run"
                )
        else:
            self.say(f"{where} holds no checkpoint yet; starting from the first step")
        truncate_metrics(self.workspace.metrics, self.step if found else -1)

    def train(self, on_step: Callable[[Record], None] | None, handle_signals: bool) -> Record:
        """The loop."""
        config = self.config
        with (
            MetricsWriter(self.workspace.metrics) as metrics,
            Progress(config.progress, steps=config.steps, start=self.step) as progress,
            StopSignals(handle_signals) as stop,
            open_sinks(config, self.workspace, self.identity, self.step) as sinks,
            _deterministic(),
        ):

            def write(record: Record) -> None:
                metrics.write(record)
                sinks.log(record["step"], {name: value for name, value in record.items() if name != "step"})
                if on_step is not None:
                    on_step(record)

            if self.step == 0 and len(self.val_windows):
                progress.note("validating")
                write({"step": 0, "val_loss": self._validate()})
            while self.step < config.steps and not stop.requested:
                progress.note("training")
                record = self._train_step(self.step)
                self.step += 1
                last = self.step == config.steps
                if len(self.val_windows) and (last or self.step % config.eval_every == 0):
                    progress.note("validating")
                    record["val_loss"] = self._validate()
                write(record)
                if last or self.step % config.save_every == 0:
                    progress.note("saving")
                    self._save(metrics)
                progress.advance(record)
            if self.step and self.step != self.last_saved:
                progress.note("saving")
                self._save(metrics)
        return self._finish(interrupted=self.step < config.steps)

    def _train_step(self, step: int) -> Record:
        import torch

        config = self.config
        begin = time.perf_counter()
        lr = learning_rate(
            step,
            peak=config.peak_lr,
            steps=config.steps,
            warmup=config.warmup_steps,
            schedule=config.schedule,
        )
        self.updater.set_lr(lr)
        torch.manual_seed(_step_seed(config.seed, step))
        every = config.measure_every
        due = every > 0 and (step == 0 or (step + 1) % every == 0 or step + 1 == config.steps)
        batch = self.order(step)
        if self.zeroth_order:
            self.model.eval()  # dropout would be noise in the slope
            value, gradient_bytes = self.updater.minimize(lambda: self._loss(batch)), 0
            self._check(value, step)
        else:
            with self.updater.measured(due):
                value, gradient_bytes = self._first_order(batch, step)
        seconds = time.perf_counter() - begin
        return {
            "step": step + 1,
            "loss": value,
            "lr": lr,
            "seconds": seconds,
            "tokens_per_second": config.batch_size * config.seq_len / seconds,
            "rss": process.rss(),
            "peak_rss": process.peak_rss(),
            "bytes": {
                "weights": loader.weight_bytes(self.model),
                "gradients": gradient_bytes,
                **self.updater.state_bytes(),
            },
            **(self.updater.statistics() if due else {}),
        }

    def _first_order(self, batch: np.ndarray[Any, np.dtype[np.int64]], step: int) -> tuple[float, int]:
        """Loss, backward pass and update; returns the loss and the bytes of gradients."""
        import torch

        self.model.train()
        loss = self._loss(batch)
        value = float(loss.detach())
        self._check(value, step)
        torch.autograd.backward(loss)
        del loss
        gradient_bytes = self.updater.gradient_bytes()
        if self.config.grad_clip is not None:
            self.updater.clip(self.config.grad_clip)
        self.updater.step()
        return value, gradient_bytes

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {step + 1} and {self._kept()}; {self._gentler()}"
            )

    def _loss(self, batch: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        import torch

        ids = torch.from_numpy(batch)
        try:
            loss: torch.Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        except (RuntimeError, TypeError) as error:
            if self.ran or self.config.weight_store == "fp32" or out_of_memory(error):
                raise
            raise ModelError(
                f"INT8 weights are packed and {type(self.model).__name__} reads the weight of a linear layer itself "
                f"({first_line(error)}); use --weights fp32"
            ) from error
        self.ran = True
        return loss

    def _validate(self) -> float:
        """Mean loss over the fixed validation windows; raises DivergedError if it is not finite."""
        import torch

        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for indices in validation_batches(
                self.val_windows, batch_size=self.config.batch_size, batches=self.config.eval_batches
            ):
                total += float(self._loss(self.val_windows.take(indices))) * len(indices)
                count += len(indices)
        if not math.isfinite(total):
            raise DivergedError(
                f"the validation loss is {total} after step {self.step} and {self._kept()}; {self._gentler()}"
            )
        return total / count

    def _kept(self) -> str:
        if self.last_saved is None:
            return "no checkpoint was written"
        return f"the checkpoint of step {self.last_saved} is kept"

    def _gentler(self) -> str:
        return f"start again in another --out with a smaller --lr than {self.config.peak_lr:g}, or with --grad-clip 1.0"

    def _save(self, metrics: MetricsWriter) -> None:
        import torch

        weights = self.model.state_dict()
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DivergedError(
                    f"the weights of {name} are not finite after step {self.step} and {self._kept()}; "
                    f"{self._gentler()}"
                )
        metrics.sync()
        checkpoint.save(
            self.workspace.path,
            self.step,
            model=weights,
            optimizer=self.updater.state_dict(),
            info={
                "settings": self.config.frozen(),
                "identity": self.identity,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "next_sample": self.step * self.config.batch_size,
                "seed": self.config.seed,
            },
        )
        self.last_saved = self.step
        checkpoint.prune(self.workspace.path, self.config.keep)

    def _finish(self, *, interrupted: bool) -> Record:
        config = self.config
        records = list(read_metrics(self.workspace.metrics))
        if not interrupted and config.export:
            if self.zeroth_order:
                self.updater.close()
            self.updater = None  # its memory is free for the dense weights
            restore_model(self.model)
            loader.export_model(self.model, Path(config.model), self.workspace.model)
        summary = summarize(
            config,
            records,
            status="interrupted" if interrupted else "finished",
            step=self.step,
            checkpoint=None
            if self.last_saved is None
            else checkpoint.directory(self.workspace.path, self.last_saved).name,
            trained=self.trained,
            total=self.total,
            tokens={"train": len(self.train_windows.tokens), "validation": len(self.val_windows.tokens)},
            loading_peak_rss=self.loading_peak,
            loaded_rss=self.loaded_rss,
        )
        if not interrupted:
            self.workspace.write_summary(summary)
            if config.plot is not None:
                title = f"{Path(config.model).name} on {Path(config.data).name}: {config.method}"
                plot_run(records, Path(config.plot).expanduser(), title=title)
        return summary


def _step_seed(seed: int, step: int) -> int:
    """Seed of torch's generator for one step's dropout: a word of Philox keyed by (seed, step), apart from the batches'."""
    return int(np.random.Philox(key=np.array([seed, step], dtype=np.uint64), counter=1 << 64).random_raw())


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic torch kernels where torch has them, without its costly filling of empty tensors."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill


__all__ = ["Finetuner", "Windows"]
