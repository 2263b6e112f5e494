# SPDX-License-Identifier: Apache-2.0
"""What ``Trainer(optimizer_cls_and_kwargs=...)`` takes, for every optimizer of :mod:`lowtide.optim`."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from torch.optim import Optimizer
from transformers.training_args import ParallelMode

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.integrations.transformers._groups import packed, parameter_groups, target_weights
from lowtide.integrations.transformers._vocabulary import (
    Choice,
    arguments,
    choose,
    parse_optim_args,
    split_options,
)
from lowtide.optim import in_backward
from lowtide.optim.engine import Composed
from lowtide.optim.in_backward import InBackward

_HANDLE = ("clip", "refresh_from")


class LayerwiseOptimizer(InBackward):
    """What the Trainer calls for updates in the backward pass: makes the handle of :func:`lowtide.optim.in_backward`.

    Args:
        model: the module that trains.
        optimizer_cls: class of :mod:`lowtide.optim`. groups: its parameter groups.
        accumulate, max_grad_norm, clip, refresh_from: as in :func:`lowtide.optim.in_backward`.
        **options: of ``optimizer_cls``, ``lr`` among them.
    """

    # Trainers ask for a class; the handle checks model and optimizer before there is an object.
    def __new__(  # type: ignore[misc]
        cls, model: nn.Module, *, optimizer_cls: type[Composed], groups: list[dict[str, Any]], accumulate: int = 1,
        max_grad_norm: float | None = None, clip: str = "exact", refresh_from: str = "all", **options: Any,
    ) -> InBackward:  # fmt: skip
        return in_backward(
            optimizer_cls(groups, **options),
            model,
            accumulate=accumulate,
            max_grad_norm=max_grad_norm,
            clip=clip,
            refresh_from=refresh_from,
        )


def optimizer_cls_and_kwargs(
    model: nn.Module,
    args: transformers.TrainingArguments,
    *,
    method: str | type[Optimizer] | None = None,
    layerwise: bool | None = None,
    **options: Any,
) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class and the arguments of an optimizer for ``transformers.Trainer(optimizer_cls_and_kwargs=...)``.

    Of ``args`` it reads what the Trainer reads: ``learning_rate``, ``weight_decay`` (not for biases and norms), ``adam_beta1``,
    ``adam_beta2``, ``adam_epsilon``, ``seed``, ``optim`` (where ``method`` is None), ``optim_target_modules``, ``optim_args``, and for
    layerwise updates ``gradient_accumulation_steps`` and ``max_grad_norm``.

    Args:
        model: the model that the Trainer gets, quantized already where it should be (:func:`prepare_model`).
        args: the Trainer's arguments.
        method: a name of ``lowtide finetune --method`` ("qgalore", "fira", "adamw4bit", ...; case, - and _ do not matter), a class of
            :mod:`lowtide.optim` or its name; their low-rank defaults are those of the command line. Or a name of
            transformers. None: ``args.optim``, a name of transformers, with transformers' defaults (rank 128, update_proj_gap 200,
            scale 0.25 or, APOLLO, 1).
        layerwise: update in the backward pass and free each gradient at once (:func:`lowtide.optim.in_backward`, also
            with accumulation and clipping). The Trainer logs a gradient norm of 0 then; :class:`RunCallback` logs the
            true one. None: as the name says.
        **options: like ``optim_args``: ``rank``, ``update_proj_gap``, ``scale``, ``proj_type`` of low-rank groups, any argument of the
            optimizer; with layerwise updates ``clip`` and ``refresh_from``.

    Returns:
        A subclass of ``torch.optim.Optimizer`` and its arguments; ``cls(**kwargs)`` makes one without a Trainer. The Trainer takes the
        groups out of the arguments: call this once for each Trainer.

    Raises:
        LowtideValueError, LowtideTypeError: a name without counterpart, an unknown key, no module that matches, or settings
            that cannot work together; names the remedy.
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    choice = choose(method, args.optim)
    clips = args.max_grad_norm is not None and args.max_grad_norm > 0
    if layerwise is None:
        layerwise = choice.layerwise
    _check_settings(args, choice, layerwise, packed(model))
    group, own, handle = split_options(
        choice, parse_optim_args(args.optim_args), options, _HANDLE if layerwise else ()
    )
    own = {**_adam(choice, args), **own}
    decay = float(own.pop("weight_decay", args.weight_decay))
    own.setdefault("seed", args.seed)
    low = target_weights(model, args.optim_target_modules) if choice.low_rank else set()
    groups = parameter_groups(model, low, group, decay)
    own["lr"] = args.learning_rate
    choice.kind([dict(g) for g in groups], **own)  # what is wrong is said now, not when the Trainer begins
    if not layerwise:
        return choice.kind, {"params": groups, **own}
    return LayerwiseOptimizer, {
        "model": model, "optimizer_cls": choice.kind, "groups": groups, "accumulate": args.gradient_accumulation_steps,
        "max_grad_norm": args.max_grad_norm if clips else None, **handle, **own,
    }  # fmt: skip


def _adam(choice: Choice, args: transformers.TrainingArguments) -> dict[str, Any]:
    """Betas and epsilon where the rule has them: of transformers' names always, of ours where they were set."""
    known = arguments(choice.kind)
    found: dict[str, Any] = {}
    betas = (args.adam_beta1, args.adam_beta2)
    if "betas" in known and (choice.theirs or betas != (0.9, 0.999)):
        found["betas"] = betas
    scalar = known.get("eps", ()) is None or isinstance(known.get("eps"), float)
    if scalar and (choice.theirs or args.adam_epsilon != 1e-8):
        found["eps"] = args.adam_epsilon
    return found


def _check_settings(
    args: transformers.TrainingArguments, choice: Choice, layerwise: bool, has_packed: bool
) -> None:
    if args.fp16:
        raise LowtideValueError(
            "fp16=True scales the loss, which lowtide's optimizers do not take back; use bf16=True"
        )
    if args.deepspeed:
        raise LowtideValueError(
            "deepspeed partitions parameters and builds the optimizer itself; leave it out: 8-bit or low-rank states do without"
        )
    if args.optim_target_modules is not None and not choice.low_rank:
        raise LowtideValueError(
            f"optim_target_modules are of low-rank methods and {choice.name} is none; leave them out, or use galore_adamw"
        )
    distributed = args.parallel_mode == ParallelMode.DISTRIBUTED
    if layerwise and distributed:
        raise LowtideValueError(
            "layerwise updates under the Trainer are for one process, whose gradients nobody averages; pass layerwise=False, or "
            "write the loop with lowtide.optim.in_backward(process_group=...)"
        )
    if has_packed and distributed:
        raise LowtideValueError(
            "packed weights are not averaged by DistributedDataParallel; leave prepare_model out, or use one process"
        )
