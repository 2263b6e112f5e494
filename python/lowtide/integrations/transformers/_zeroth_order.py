# SPDX-License-Identifier: Apache-2.0
"""The Trainer without gradients: steps of :mod:`lowtide.spsa`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.training_args import ParallelMode

import lowtide.spsa
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa import SPSA

#: Methods by name; those that are left out need another loop (FedKSeed) or one rate.
METHODS: dict[str, type[SPSA]] = {
    "spsa": lowtide.spsa.SPSA, "mezo": lowtide.spsa.MeZO, "fzoo": lowtide.spsa.FZOO, "lozo": lowtide.spsa.LOZO,
    "sparse-mezo": lowtide.spsa.SparseMeZO, "hizoo": lowtide.spsa.HiZOO, "conmezo": lowtide.spsa.ConMeZO,
    "qzo": lowtide.spsa.QZO, "quzo": lowtide.spsa.QuZO,
}  # fmt: skip


class ZOOptimizer(Optimizer):
    """An :class:`lowtide.spsa.SPSA` as the Trainer handles it: its step is made by ``ZOTrainer.training_step``, and :meth:`step` without
    a closure, which the Trainer calls after that, has nothing left to do.

    Attributes:
        optimizer: the SPSA that does the steps; groups and state are its.
    """

    def __init__(self, optimizer: SPSA) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Nothing: there are only the optimizer's."""

    @property
    def state(self) -> Any:
        """The optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        """Nothing: there is only the optimizer's."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> float | None:  # type: ignore[override]
        """One step with a closure; nothing without."""
        if closure is None:
            return None
        if self.optimizer.run_log is not None:
            self.optimizer.run_log.rewind(self.optimizer)  # after a crash it is ahead of the checkpoint
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, if somebody made some."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's; the log is flushed, it must not end before a checkpoint."""
        log = self.optimizer.run_log
        if log is not None and log.writer is not None:
            log.writer.flush()
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state_dict)

    def state_bytes(self) -> dict[str, int]:
        """Bytes held beside the model, by kind."""
        return self.optimizer.state_bytes()


class ZOTrainer(transformers.Trainer):
    """``transformers.Trainer`` that learns from evaluations of the loss (:class:`lowtide.spsa.SPSA`, MeZO and others): no gradients,
    no activations kept, memory of inference.

    A step evaluates the mean loss over its ``gradient_accumulation_steps`` batches at both ends of each direction. The
    schedule, evaluation, checkpoints and resuming are the Trainer's; a resumed run equals an uninterrupted one bit for bit. The
    loss that is logged is the mean over the evaluations. ``max_grad_norm`` is not looked at, there is no gradient to clip; ``clip`` of
    the optimizer limits slopes. The model is in eval mode while it trains (no dropout, as in the papers).

    Args:
        *args, **kwargs: of ``transformers.Trainer``. Of ``TrainingArguments`` ``learning_rate``, ``weight_decay`` (of matrices) and ``seed``
            go to the optimizer.
        zo_method: "spsa", "mezo", "fzoo", "lozo", "sparse-mezo", "hizoo", "conmezo", "qzo" (on a model of ``prepare_model(model,
            "int4")``), "quzo", or a subclass of :class:`lowtide.spsa.SPSA`.
        zo_options: arguments of its class, such as ``{"eps": 1e-3, "directions": 4, "clip": 10.0}``.
        log: path of the run's log (``.ltlog``), from which ``lowtide.spsa.replay`` makes the trained weights. Cut back on resume; a new
            run does not overwrite the log of another.

    Raises:
        LowtideValueError, LowtideTypeError: bad arguments, several processes or devices (``lowtide.spsa.comm`` is for those), fp16, DeepSpeed,
            FSDP.
    """

    def __init__(
        self,
        *args: Any,
        zo_method: str | type[SPSA] = "mezo",
        zo_options: Mapping[str, Any] | None = None,
        log: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        kind = METHODS.get(zo_method.lower().replace("_", "-")) if isinstance(zo_method, str) else zo_method
        if kind is None:
            raise LowtideValueError(f"zo_method must be one of {', '.join(METHODS)}, got {zo_method!r}")
        if not (isinstance(kind, type) and issubclass(kind, SPSA)):
            raise LowtideTypeError(f"zo_method must be a name or a subclass of SPSA, got {zo_method!r}")
        options = dict(zo_options or {})
        for key, remedy in (
            ("lr", "set TrainingArguments.learning_rate"),
            ("log", "pass log= to ZOTrainer"),
            ("module", "the model is the Trainer's"),
            ("comm", "write the loop with lowtide.spsa for several workers"),
            ("masters", "checkpoints of the Trainer hold the model's weights only"),
            ("privacy", "the Trainer's loss is a mean, write the loop with lowtide.spsa"),
        ):
            if key in options:
                raise LowtideValueError(f"zo_options: {key!r} cannot be given here; {remedy}")
        for key in ("optimizers", "optimizer_cls_and_kwargs"):
            if kwargs.get(key) not in (None, (None, None)):
                raise LowtideValueError(
                    f"{key} cannot be given to ZOTrainer, which makes its own; use zo_method and zo_options"
                )
        self._zo_kind, self._zo_options = kind, options
        self._zo_log = None if log is None else Path(log).expanduser()
        self._zo_batches: list[tuple[dict[str, Any], Any]] = []
        super().__init__(*args, **kwargs)
        _check_arguments(self.args)
        self.add_callback(_CloseLog(self))

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Make the optimizer of ``zo_method`` over the model's parameters."""
        if self.optimizer is None:
            module: Any = self.model if model is None else model
            options = {"weight_decay": self.args.weight_decay, "seed": self.args.seed, **self._zo_options}
            if self._zo_log is not None:
                self._zo_log.parent.mkdir(parents=True, exist_ok=True)
                options["log"] = self._zo_log
            kind: Any = self._zo_kind
            if issubclass(kind, lowtide.spsa.QZO):
                inner = kind(module, self.args.learning_rate, **options)
            else:
                named = module.named_parameters()
                inner = kind(named, self.args.learning_rate, module=module, **options)
            self.optimizer = ZOOptimizer(inner)
        optimizer: Optimizer = self.optimizer
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Keep the batch; with the last one of a step, make the step.

        Returns:
            The mean loss over the step's evaluations, or 0 for batches before the last.
        """
        self._zo_batches.append((self._prepare_inputs(inputs), num_items_in_batch))
        zero = torch.zeros((), device=self.args.device)
        if not self.accelerator.gradient_state.sync_gradients:
            return zero
        batches, self._zo_batches = self._zo_batches, []
        was_training = model.training
        model.eval()
        try:
            loss = _unwrap(self.optimizer).step(lambda: self._mean_loss(model, batches))
        finally:
            model.train(was_training)
        return zero + float(loss or 0.0)

    def _mean_loss(self, model: nn.Module, batches: list[tuple[dict[str, Any], Any]]) -> Tensor:
        """As the Trainer accumulates: sums of what was divided by the number of items, else means."""
        total: Tensor | None = None
        for inputs, items in batches:
            with self.compute_loss_context_manager():
                loss: Any = self.compute_loss(model, dict(inputs), num_items_in_batch=items)
            scaled = (
                self.model_accepts_loss_kwargs and items is not None
            ) or self.compute_loss_func is not None
            loss = loss.detach().float() / (1 if scaled else len(batches))
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def _clip_grad_norm(self, model: Any) -> None:
        """There is no gradient."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """There is no gradient."""


class _CloseLog(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes the end of the log when training ends."""

    def __init__(self, trainer: ZOTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the log."""
        _unwrap(self._trainer.optimizer).optimizer.close()


def _unwrap(optimizer: Any) -> ZOOptimizer:
    """What Accelerate wrapped."""
    while not isinstance(optimizer, ZOOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _check_arguments(args: Any) -> None:
    if args.fp16:
        raise LowtideValueError("fp16=True scales losses for gradients, and there are none; use bf16=True")
    if args.deepspeed:
        raise LowtideValueError(
            "deepspeed shards gradients and states, of which there are none; leave it out"
        )
    if args.fsdp:
        raise LowtideValueError("fsdp shards weights that probes must reach; leave it out")
    if args.parallel_mode == ParallelMode.DISTRIBUTED or args.n_gpu > 1:
        raise LowtideValueError(
            "ZOTrainer is for one process and one device; several share directions through lowtide.spsa.comm, a byte a step each"
        )
    if args.max_grad_norm not in (None, 0, 0.0, 1.0):  # 1.0 is the Trainer's default
        warnings.warn(
            f"max_grad_norm={args.max_grad_norm} is not looked at: there is no gradient to clip; zo_options={{'clip': ...}} limits slopes",
            UserWarning,
            stacklevel=3,
        )
