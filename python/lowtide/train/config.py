# SPDX-License-Identifier: Apache-2.0
"""The settings of a fine-tuning run: one frozen record that checks itself."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from lowtide.train.errors import ConfigError
from lowtide.train.methods import METHODS, WEIGHTS
from lowtide.train.schedule import SCHEDULES

# What a resumed run may set anew: it changes how the run is watched and kept, not one number of it.
FREE_ON_RESUME = frozenset(
    {
        "model",
        "data",
        "out",
        "save_every",
        "keep",
        "progress",
        "plot",
        "threads",
        "token_cache",
        "export",
        "release_memory",
        "log",
        "measure_every",
    }
)

#: Where metrics can go beside metrics.jsonl.
SINKS = ("tensorboard", "wandb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run. Construction raises `ConfigError` naming the first wrong setting.

    `model` is a local directory that transformers loads as a causal language model, `data` a .txt, .md or .jsonl
    file, `out` the run's own directory. `lr`, `betas`, `eps`, `update_proj_gap` and `scale` of None and `weights="auto"` take the
    method's default. `rank`, `update_proj_gap` and `scale` matter to low-rank methods only; GaLore's `scale` (its alpha) is 4 and not
    pre-training's 0.25 because embeddings and norms train at full rank with the same rate. With `mezo` and `qzo`, `eps` is the distance of the probes and `grad_clip` the largest slope that counts. `freeze` is a regular expression searched in parameter names: those
    parameters are not trained. `release_memory` makes malloc hand freed blocks back at once, for the whole process
    (glibc; 5 to 10 % of the time for a smaller resident set). `log` names sinks beside metrics.jsonl: "tensorboard", "wandb" (offline).
    Every `measure_every` steps, the first and the last, the subspaces and roundings of the step are measured (0: never): it changes no
    number of the run and takes a read of each gradient. Sizes count tokens (`seq_len`) and windows (`batch_size`).
    """

    model: str
    data: str
    out: str
    method: str = "qgalore"
    weights: str = "auto"
    lr: float | None = None
    rank: int = 128
    update_proj_gap: int | None = None
    scale: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float = 0.0
    grad_clip: float | None = None
    steps: int = 200
    batch_size: int = 4
    seq_len: int = 128
    schedule: str = "cosine"
    warmup: int | None = None
    seed: int = 0
    freeze: str | None = None
    gradient_checkpointing: bool = False
    in_backward: str = "auto"
    text_key: str = "text"
    val_fraction: float = 0.05
    eval_every: int = 50
    eval_batches: int = 8
    save_every: int = 100
    keep: int = 2
    token_cache: str | None = None
    export: bool = True
    plot: str | None = None
    progress: str = "auto"
    threads: int | None = None
    release_memory: bool = True
    log: tuple[str, ...] = ()
    measure_every: int = 10

    def __post_init__(self) -> None:
        for name in ("model", "data", "out"):
            value = getattr(self, name)
            object.__setattr__(self, name, str(Path(value).expanduser()) if value else value)
            self._require(bool(value), name, "a path", "give one")
        self._one_of("method", sorted(METHODS))
        self._one_of("weights", ("auto", *WEIGHTS))
        self._one_of("schedule", SCHEDULES)
        self._one_of("progress", ("auto", "on", "off"))
        self._one_of("in_backward", ("auto", "on", "off"))
        log: Any = self.log
        given = (log,) if isinstance(log, str) else tuple(log or ())
        object.__setattr__(self, "log", tuple(dict.fromkeys(given)))
        self._require(
            set(self.log) <= set(SINKS), "log", "one or more of " + ", ".join(SINKS), "leave it out for none"
        )
        self._integer("measure_every", 0, "10 is the default, 0 never measures")
        if self.lr is not None:
            self._positive("lr", f"{METHODS[self.method].lr:g} is the default of {self.method}")
        self._integer("rank", 1, "64 or 128 suit most models")
        if self.update_proj_gap is not None:
            self._integer(
                "update_proj_gap", 1, "200 suits most methods; leave it out for the method's default"
            )
        if self.scale is not None:
            self._positive("scale", f"{METHODS[self.method].scale:g} is the default of {self.method}")
        if self.betas is not None:
            object.__setattr__(
                self, "betas", tuple(self.betas) if isinstance(self.betas, (list, tuple)) else self.betas
            )
            self._require(
                isinstance(self.betas, tuple) and len(self.betas) == 2
                and all(_number(b) and 0 <= b < 1 for b in self.betas),
                "betas", "two numbers in [0, 1)", "0.9 0.999 is AdamW's default",
            )  # fmt: skip
        if self.eps is not None:
            self._positive("eps", "1e-8 is AdamW's default")
            if not METHODS[self.method].eps:
                raise ConfigError(f"eps does nothing for {self.method}, whose rule has none; leave it out")
        self._check_zeroth_order()
        ok = _number(self.weight_decay) and self.weight_decay >= 0
        self._require(ok, "weight_decay", "a finite number >= 0", "0 is the default")
        if self.grad_clip is not None:
            self._positive("grad_clip", "1.0 is usual; leave it out for no clipping")
        self._integer("steps", 1, "200 is the default")
        self._integer("batch_size", 1, "4 is the default")
        self._integer("seq_len", 2, "128 is the default")
        if self.warmup is not None:
            self._integer("warmup", 0, "a tenth of the steps is the default")
            ok = self.warmup <= self.steps
            self._require(ok, "warmup", f"at most the {self.steps} steps of the run", "give fewer")
        ok = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        self._require(ok, "seed", "an integer from 0 to 2^63 - 1", "0 is the default")
        if self.freeze is not None:
            try:
                re.compile(self.freeze)
            except re.error as error:
                raise ConfigError(
                    f"freeze: {self.freeze!r} is not a regular expression ({error}); to freeze the embedding give 'embed_tokens'"
                ) from None
        ok = _number(self.val_fraction) and 0 <= self.val_fraction < 1
        self._require(ok, "val_fraction", "a number in [0, 1)", "0.05 is the default, 0 means no validation")
        self._integer("eval_every", 1, "50 is the default")
        self._integer("eval_batches", 1, "8 is the default")
        self._integer("save_every", 1, "100 is the default")
        self._integer("keep", 1, "2 is the default")
        if self.threads is not None:
            self._integer("threads", 1, "leave it out for all cores")

    def _check_zeroth_order(self) -> None:
        method = METHODS[self.method]
        if not method.zeroth_order:
            if self.weights == "int4":
                raise ConfigError(
                    f"weights: int4 does not train with {self.method}; use int8, or --method qzo, which moves the scales of int4 weights"
                )
            return
        if self.betas is not None:
            raise ConfigError(f"betas do nothing for {self.method}, which keeps no moments; leave them out")
        if self.in_backward == "on":
            raise ConfigError(f"in_backward: {self.method} has no backward pass; leave it out")
        packed = self.weight_store != "fp32"
        self._require(
            packed == (method.weights != "fp32"), "weights",
            "int8 or int4 with qzo, fp32 with mezo", "leave it out for the method's default",
        )  # fmt: skip

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return METHODS[self.method].lr if self.lr is None else self.lr

    @property
    def low_rank_scale(self) -> float:
        """The factor on low-rank updates: the method's unless set."""
        return METHODS[self.method].scale if self.scale is None else self.scale

    @property
    def weight_store(self) -> str:
        """How linear weights are held: the method's way unless set."""
        return METHODS[self.method].weights if self.weights == "auto" else self.weights

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up: a tenth of the run unless set."""
        return self.steps // 10 if self.warmup is None else self.warmup

    @property
    def frees_gradients(self) -> bool:
        """Whether each parameter is updated, and its gradient freed, during the backward pass."""
        if self.in_backward == "auto":
            return METHODS[self.method].in_backward and self.grad_clip is None
        return self.in_backward == "on"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `FinetuneConfig(**config.to_dict())` gives the same settings."""
        values = dataclasses.asdict(self)
        values["betas"] = None if self.betas is None else list(self.betas)
        values["log"] = list(self.log)
        return values

    def frozen(self) -> dict[str, Any]:
        """The settings that a resumed run must repeat, with defaults resolved."""
        values = {key: value for key, value in self.to_dict().items() if key not in FREE_ON_RESUME}
        values.update(
            lr=self.peak_lr,
            scale=self.low_rank_scale,
            warmup=self.warmup_steps,
            in_backward=self.frees_gradients,
        )
        if self.schedule == "constant":  # such a run may be continued past its end
            del values["steps"]
        return values

    def _require(self, ok: bool, name: str, takes: str, remedy: str) -> None:
        if not ok:
            raise ConfigError(f"{name}: got {getattr(self, name)!r}, takes {takes}; {remedy}")

    def _one_of(self, name: str, choices: Any) -> None:
        self._require(
            getattr(self, name) in choices, name, "one of " + ", ".join(choices), "choose one of them"
        )

    def _positive(self, name: str, remedy: str) -> None:
        value = getattr(self, name)
        self._require(_number(value) and value > 0, name, "a finite number > 0", remedy)

    def _integer(self, name: str, least: int, remedy: str) -> None:
        value = getattr(self, name)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self._require(ok, name, f"an integer >= {least}", remedy)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
