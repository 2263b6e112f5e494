# SPDX-License-Identifier: Apache-2.0
"""Which optimizer a name means, lowtide's or transformers', and what ``optim_args`` may say about it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

import lowtide.optim
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.engine import Composed
from lowtide.train.methods import METHODS

GROUP_KEYS = ("rank", "update_proj_gap", "scale", "proj_type")
#: Options of :class:`~lowtide.optim.Composed` that every method takes.
COMMON = ("seed", "nonfinite", "stochastic", "maximize", "constraint")
RANK = 128  # of transformers and of `lowtide finetune`


@dataclasses.dataclass(frozen=True)
class Choice:
    """An optimizer as a name means it: class, defaults of low-rank groups and of the constructor."""

    name: str
    kind: type[Composed]
    low_rank: bool = False
    layerwise: bool = False
    group: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Keys of ``optim_args`` that have another name here.
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Keys that can have one value only: that of the format.
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    theirs: bool = False  # a name of transformers: its beta and epsilon arguments always count


_GALORE = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
_APOLLO = {"rank": RANK, "update_proj_gap": 200, "scale": 1.0, "proj_type": "std"}
_BF16 = {"bf16_stochastic_round": "stochastic"}


def _theirs() -> dict[str, Choice]:
    o = lowtide.optim
    rows = [
        Choice("adamw_torch", o.AdamW),
        Choice("adamw_torch_fused", o.AdamW),
        Choice("adamw_torch_8bit", o.AdamW8bit, renamed=_BF16, fixed={"block_size": 256}),
        Choice("adamw_torch_4bit", o.AdamW4bit, renamed=_BF16, fixed={"block_size": 128}),
        Choice("adamw_bnb_8bit", o.AdamW8bit),
        Choice("adamw_8bit", o.AdamW8bit),
        Choice("lion_32bit", o.Lion),
        Choice("lion_8bit", o.Lion8bit),
        Choice("sgd", o.SGD, options={"momentum": 0.0}),
        Choice(
            "adafactor",
            o.Adafactor,
            options={
                "relative_step": False, "scale_parameter": False, "form": "paper", "eps": (1e-30, 1e-3),
            },
        ),
    ]  # fmt: skip
    low = {
        "galore_adamw": o.GaLoreAdamW,
        "galore_adamw_8bit": o.GaLoreAdamW8bit,
        "galore_adafactor": o.GaLoreAdafactor,
        "apollo_adamw": o.APOLLO,
    }
    for name, kind in low.items():
        group = _APOLLO if kind is o.APOLLO else _GALORE
        rows += [
            Choice(name, kind, low_rank=True, group=group),
            Choice(f"{name}_layerwise", kind, low_rank=True, layerwise=True, group=group),
        ]
    return {row.name: dataclasses.replace(row, theirs=True) for row in rows}


_PAGED = "states are not paged here; use {near} (the same arithmetic), or galore_adamw_8bit for less of them"
#: Names of transformers without a counterpart, and what to use instead.
REMEDIES = {
    "paged_adamw_32bit": _PAGED.format(near="adamw_8bit"),
    "paged_adamw_8bit": _PAGED.format(near="adamw_8bit"),
    "paged_lion_32bit": _PAGED.format(near="lion_8bit"),
    "paged_lion_8bit": _PAGED.format(near="lion_8bit"),
    "lomo": "use galore_adamw_layerwise, or method='sgd' with layerwise=True, which is LOMO without its clipping by value",
    "adalomo": "use method='adafactor' with layerwise=True",
    "adamw_anyprecision": "use adamw_torch on a model in bfloat16: its weights are rounded stochastically",
    "adamw_torch_xla": "lowtide has kernels for CPU and CUDA; use adamw_torch there",
    "adamw_torch_npu_fused": "lowtide has kernels for CPU and CUDA; use adamw_torch there",
    "schedule_free_adamw": "use adamw_8bit with lr_scheduler_type='cosine'",
    "schedule_free_radam": "use adamw_8bit with lr_scheduler_type='cosine' and warmup",
    "schedule_free_sgd": "use sgd with lr_scheduler_type='cosine'",
    "stable_adamw": "use adafactor, whose updates are clipped by their root mean square",
}
#: Methods of :mod:`lowtide.optim` that the command line does not offer, as (class, low rank).
_MORE = {
    "sgd": ("SGD", False), "sgd8bit": ("SGD8bit", False), "lion": ("Lion", False), "adam-mini": ("AdamMini", False),
    "adafactor": ("Adafactor", False), "adabelief": ("AdaBelief", False), "adabelief8bit": ("AdaBelief8bit", False),
    "signum": ("Signum", False), "galore-adafactor": ("GaLoreAdafactor", True), "golore": ("GoLoreAdamW", True),
    "lotus": ("LotusAdamW", True), "flora": ("Flora", True),
}  # fmt: skip


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _ours() -> dict[str, Choice]:
    """By plain name; a class of the table has its own name too (``FiraAdamW`` is ``fira``)."""
    rows = [
        Choice(
            name, getattr(lowtide.optim, row.optimizer), row.low_rank,
            group={"rank": RANK, "scale": row.scale} if row.low_rank else {},
        )
        for name, row in METHODS.items()
        if not row.zeroth_order
    ]  # fmt: skip
    for name, (optimizer, low_rank) in _MORE.items():
        rows.append(
            Choice(
                name, getattr(lowtide.optim, optimizer), low_rank, group={"rank": RANK} if low_rank else {}
            )
        )
    return {_plain(key): row for row in rows for key in (row.kind.__name__, row.name)}


def choose(method: str | type[Optimizer] | None, optim: Any) -> Choice:
    """What ``method`` means or, where it is None, transformers' ``optim``.

    Raises:
        LowtideValueError, LowtideTypeError: nothing here does that; names the remedy.
    """
    ours, theirs = _ours(), _theirs()
    if isinstance(method, type):
        method = method.__name__
    if method is not None and not isinstance(method, str):
        raise LowtideTypeError(
            f"method must be a name such as 'qgalore' or a class of lowtide.optim, got {method!r}"
        )
    argument, name = ("method", method) if method is not None else ("optim", getattr(optim, "value", optim))
    if name in theirs:
        return theirs[name]
    if method is not None and _plain(name) in ours:
        return ours[_plain(name)]
    row = METHODS.get(name.lower())
    if method is not None and row is not None and row.zeroth_order:
        raise LowtideValueError(
            f"method {name!r} has no gradients to give the Trainer; use lowtide.integrations.transformers.ZOTrainer"
        )
    if name in REMEDIES:
        raise LowtideValueError(f"{argument}={name!r} has no counterpart in lowtide: {REMEDIES[name]}")
    known = sorted(theirs) if method is None else sorted({row.name for row in ours.values()})
    near = difflib.get_close_matches(name.lower(), known, 1)
    remedy = (
        f"did you mean {near[0]!r}?"
        if near
        else "leave optimizer_cls_and_kwargs out to use transformers' own"
    )
    raise LowtideValueError(
        f"{argument}={name!r} has no counterpart in lowtide, which knows {', '.join(known)}: {remedy}"
    )


def parse_optim_args(text: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """``"rank=64, scale=0.1, proj_type=std"`` as a dict with integers, floats, booleans, None and strings.

    Raises:
        LowtideValueError: a part is not key=value, or a key occurs twice.
    """
    if not text:
        return {}
    if isinstance(text, Mapping):
        return {key: _value(v) if isinstance(v, str) else v for key, v in text.items()}
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals or not key or not value:
            raise LowtideValueError(
                f"optim_args must be key=value pairs with commas between, such as 'rank=64, scale=0.25', got {part.strip()!r} in {text!r}"
            )
        if key in found:
            raise LowtideValueError(f"optim_args gives {key!r} twice in {text!r}; leave one out")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "yes": True, "no": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def arguments(kind: type[Composed]) -> dict[str, Any]:
    """What the constructor of ``kind`` takes beside parameters and rate, with the defaults."""
    found: dict[str, Any] = dict.fromkeys(COMMON)
    for cls in kind.__mro__:
        if cls is Composed:
            break
        if "__init__" in vars(cls):
            for p in list(inspect.signature(cls).parameters.values()):
                if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ("params", "lr"):
                    found.setdefault(p.name, p.default)
    return found


def split_options(
    choice: Choice, optim_args: Mapping[str, Any], options: Mapping[str, Any], layerwise: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(keys of low-rank groups, constructor's, layerwise handle's) from ``optim_args`` and ``options``.

    Args:
        layerwise: names of the handle's options, where there is a handle.

    Raises:
        LowtideValueError: a key that nothing reads, or one given in both places.
    """
    given: dict[str, Any] = {}
    for where, source in (("optim_args", optim_args), ("options", options)):
        for key, value in source.items():
            if key in choice.fixed:
                if value != choice.fixed[key]:
                    raise LowtideValueError(
                        f"{key} of {choice.name} is {choice.fixed[key]} here, got {value!r}; leave it out"
                    )
                continue
            name = choice.renamed.get(key, key)
            if name in given:
                raise LowtideValueError(
                    f"{key!r} is given in optim_args and as an option; leave one of them out"
                )
            _check_key(choice, where, name, layerwise)
            given[name] = value
    group = {**choice.group, **{k: given.pop(k) for k in GROUP_KEYS if k in given}}
    handle = {k: given.pop(k) for k in layerwise if k in given}
    return group, {**choice.options, **given}, handle


def _check_key(choice: Choice, where: str, key: str, layerwise: tuple[str, ...]) -> None:
    own = [
        *arguments(choice.kind),
        *(GROUP_KEYS if choice.low_rank else ()),
        *layerwise,
        *choice.fixed,
        *choice.renamed,
    ]
    if key in own:
        return
    if key == "lr":
        raise LowtideValueError(
            f"{where}: the learning rate is TrainingArguments.learning_rate; leave lr out"
        )
    if key in GROUP_KEYS:
        raise LowtideValueError(
            f"{where}: {key!r} is for low-rank methods and {choice.name} is none; leave it out, or use galore_adamw"
        )
    if key in ("clip", "refresh_from"):
        raise LowtideValueError(f"{where}: {key!r} is for updates in the backward pass; add layerwise=True")
    near = difflib.get_close_matches(key, own, 1)
    remedy = f"did you mean {near[0]!r}?" if near else "leave it out"
    raise LowtideValueError(
        f"{where}: {key!r} is not known to {choice.name} ({choice.kind.__name__}), which takes {', '.join(sorted(own))}: {remedy}"
    )
