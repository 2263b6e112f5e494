# SPDX-License-Identifier: Apache-2.0
"""Counting the bytes of training before anything is allocated: the optimizer lays out its states without memory behind them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.architectures import Llama, Weight, read
from lowtide.optim.axes import projected_shape
from lowtide.optim.engine import Composed
from lowtide.optim.groups import check_rank
from lowtide.optim.residuals import Drop, ErrorFeedback
from lowtide.optim.stores import BasisStore
from lowtide.optim.subspaces import SampledIndices
from lowtide.optim.subspaces_blocks import Blocks
from lowtide.quant._format import group_count, row_bytes

#: Short names, as of ``lowtide finetune``, of optimizers here. Every other optimizer of :mod:`lowtide.optim` goes by its own name.
SHORT_NAMES = {
    "adamw": "AdamW", "adamw8bit": "AdamW8bit", "adamw4bit": "AdamW4bit", "adabelief": "AdaBelief",
    "adabelief8bit": "AdaBelief8bit", "lion": "Lion", "lion8bit": "Lion8bit", "sgd": "SGD", "sgd8bit": "SGD8bit",
    "adafactor": "Adafactor", "galore-adafactor": "GaLoreAdafactor", "adam-mini": "AdamMini", "adam-mini8bit": "AdamMini8bit",
    "galore": "GaLoreAdamW", "galore8bit": "GaLoreAdamW8bit", "qgalore": "QGaLoreAdamW", "fira": "FiraAdamW",
    "frugal": "FRUGAL", "apollo": "APOLLO", "apollo-mini": "APOLLOMini", "ldadam": "LDAdam", "dct": "DCTAdamW",
    "grass": "GRASSAdamW", "subtrack": "SubTrack", "golore": "GoLoreAdamW", "lotus": "LotusAdamW", "flora": "Flora",
    "gradnormlorp": "GradNormLoRP", "signsgd": "SignSGD", "signum": "Signum", "diffgrad": "DiffGrad", "diffgrad8bit": "DiffGrad8bit",
    "adamp": "AdamP", "sgdp": "SGDP", "adahessian": "AdaHessian", "sophiag": "SophiaG", "sophiah": "SophiaH",
    "mfac": "MFAC", "harpg": "HARPG", "nharpg": "NHARPG",
}  # fmt: skip
METHODS = tuple(SHORT_NAMES)
#: Arguments that a class cannot do without; bytes do not depend on them.
_DEMANDED: dict[str, dict[str, Any]] = {"GoLoreAdamW": {"switch_step": 1}, "SophiaG": {"batch_size": 1}}
#: What else the papers' figures seem to project, beside the linear weights of the layers (docs/training.md).
_PAPER_PROJECTS = {
    "GaLoreAdamW": ("head",), "GaLoreAdamW8bit": ("head",), "QGaLoreAdamW": ("head",),
    "APOLLO": ("head", "embedding"), "APOLLOMini": ("head", "embedding"),
}  # fmt: skip
GROUP = 256  # columns a scale of INT8 weights serves
WEIGHTS = ("fp32", "bf16", "int8")
GRADIENTS = ("all", "one", "accumulated")
ACTIVATIONS = ("none", "full", "checkpointed")

Method: TypeAlias = "str | Callable[[Iterable[Any]], Composed]"


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by kind; activations are 0 unless they were asked for."""

    method: str
    parameters: int
    weights: int
    gradients: int
    states: int
    basis: int
    activations: int = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.weights + self.gradients + self.states + self.basis + self.activations

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "total": self.total}


def optimizers() -> dict[str, type[Composed]]:
    """Every optimizer of :mod:`lowtide.optim` by the name of its class."""
    import lowtide.optim

    found = {name: getattr(lowtide.optim, name) for name in lowtide.optim.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Composed) and kind is not Composed
    }


def factory(method: Any) -> tuple[str, Callable[[Iterable[Any]], Composed]]:
    """The name of a method, and what makes its optimizer of groups. Errors: as :func:`memory`."""
    known = optimizers()
    if not isinstance(method, str) and not callable(method):
        raise LowtideTypeError(
            f"method must be a name or what makes an optimizer of groups, got {type(method).__name__}"
        )
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    kind = known.get(SHORT_NAMES.get(name, name)) if isinstance(method, str) else method
    if kind is None:
        others = sorted(set(known) - set(SHORT_NAMES.values()))
        raise LowtideValueError(
            f"method must be one of {', '.join([*METHODS, *others])} or an optimizer, got {method!r}"
        )
    return name, functools.partial(kind, **_DEMANDED.get(getattr(kind, "__name__", ""), {}))


@dataclass
class _Plan:
    """States of one parameter as they would be allocated: (bytes, elements, whether packed codes) of each tensor."""

    states: list[tuple[int, int, bool]]
    basis: int = 0
    projected: int = 0  # elements of the gradient within its subspace; 0 where there is none
    paper_basis: int = 0


class _Planner:
    """An optimizer over tensors without memory."""

    def __init__(self, make: Callable[[Iterable[Any]], Composed], rank: int | float) -> None:
        self._opt = make([{"params": [nn.Parameter(torch.empty(1, device="meta"))]}])
        if not isinstance(self._opt, Composed):
            raise LowtideTypeError(
                f"method must make an optimizer of lowtide.optim, got {type(self._opt).__name__}"
            )
        self._rank = rank
        self._seen: dict[tuple[tuple[int, ...], bool], _Plan] = {}
        self.low_rank = self._opt._low_rank
        transform = self._opt._axes.transform
        self.shared = 0 if transform is None else transform.shared_nbytes
        self.drops = isinstance(self._opt._axes.residual, Drop)

    @property
    def name(self) -> str:
        """Of the class."""
        return type(self._opt).__name__

    def plan(self, weight: Weight, project: bool) -> _Plan:
        """Of a parameter that is projected, if the method does such a thing."""
        key = (weight.shape, project and self.low_rank)
        if key not in self._seen:
            self._seen[key] = self._plan(*key)
        return self._seen[key]

    def _plan(self, shape: tuple[int, ...], project: bool) -> _Plan:
        axes, state = self._opt._axes, dict[str, Any]()
        p = nn.Parameter(torch.empty(shape, device="meta"))
        self._opt.add_param_group({"params": [p], **({"rank": self._rank} if project else {})})
        with torch.device("meta"):
            axes.create_state(self._opt.param_groups[-1], p, state)
            if "side" in state and axes.subspace.varies:  # whole while active
                state["rank"] = state["dim"]
                axes.create_moments(self._opt.param_groups[-1], state, (shape[0], p.numel() // shape[0]))
        tensors = {
            k: v for k, v in state.items() if isinstance(v, torch.Tensor) and not k.startswith("basis")
        }
        bits = {"int4": 4, "int8": 8}.get(axes.store.kind, 32)
        plan = _Plan(
            [
                (v.nbytes, v.numel() * (8 // bits if v.dtype == torch.uint8 else 1), v.dtype == torch.uint8)
                for k, v in tensors.items()
                if not k.endswith(".absmax")
            ]
        )
        plan.states += [(v.nbytes, 0, False) for k, v in tensors.items() if k.endswith(".absmax")]
        if "side" not in state:
            return plan
        rows, cols = shape[0], p.numel() // shape[0]
        if isinstance(axes.subspace, Blocks):  # on average over the turns
            share = axes.subspace.density
            plan.states = [(round(n * share), round(size * share), coded) for n, size, coded in plan.states]
        rank = state["rank"]
        plan.projected = math.prod(projected_shape(state, rows, cols))
        for dim in (rows, cols) if state["side"] == "full" else (state["dim"],):
            here, paper = _basis_bytes(axes.subspace, axes.basis, rank, dim, plan.projected)
            plan.basis, plan.paper_basis = plan.basis + here, plan.paper_basis + paper
        reference = axes.refresh.nbytes(plan.projected)
        plan.states.append((reference, reference // 2, False))
        if isinstance(axes.residual, ErrorFeedback):
            store = BasisStore(axes.residual.store)
            plan.states.append((store.nbytes(rows, cols), rows * cols, store.bits == 8))
        return plan


def _basis_bytes(subspace: Any, store: BasisStore, rank: int, dim: int, numel: int) -> tuple[int, int]:
    """As kept here, and in the papers' bf16."""
    if subspace.kind == "dense":
        return store.nbytes(rank, dim), rank * dim * 2 if store.bits == 0 else rank * dim * store.bits // 8
    if subspace.kind == "elements":
        return 4 * numel, 4 * numel
    if subspace.kind != "indices":
        return 0, 0
    each = 8 if isinstance(subspace, SampledIndices) else 4  # with their weights
    return each * rank, each * rank


def packed_bytes(rows: int, cols: int, bits: int, group: int) -> int:
    """Bytes of codes, fp32 scales and uint8 zero points (csrc/quant/group_format.h)."""
    return rows * (row_bytes(cols, bits) + 5 * group_count(cols, group))


def _weight_bytes(w: Weight, weights: str | None, paper: bool) -> tuple[int, int]:
    """Bytes of a parameter, and of an element of its gradient."""
    if weights is None and w.nbytes is not None and not paper:
        return w.nbytes, w.itemsize
    if weights == "int8" and w.linear:
        return (w.numel if paper else packed_bytes(*w.matrix, 8, GROUP)), 4
    size = 2 if paper or weights == "bf16" else 4
    return w.numel * size, size


def _count_paper(plan: _Plan, name: str) -> int:
    """States in the papers' convention: 2 bytes an element, codes as they are but those of Q-GaLore; no scales."""
    return sum(
        (min(nbytes, numel) if codes and name != "QGaLoreAdamW" else 2 * numel)
        for nbytes, numel, codes in plan.states
    )


def _activation_bytes(
    llama: Llama | None, kind: str, batch: int | None, seq: int | None, itemsize: int
) -> int:
    if kind == "none":
        return 0
    if llama is None:
        raise LowtideValueError(
            f"activations={kind!r} needs the sizes of a LLaMA: pass a config or a model that has one; or activations='none'"
        )
    for name, value in (("batch", batch), ("seq", seq)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LowtideValueError(
                f"{name} must be an integer >= 1 where activations are counted, got {value!r}"
            )
    assert batch is not None
    assert seq is not None
    return llama.activations(batch, seq, itemsize, kind == "checkpointed")


def memory(
    model: Any,
    method: Method,
    *,
    rank: int | float = 128,
    weights: str | None = None,
    gradients: str = "all",
    batch: int | None = None,
    seq: int | None = None,
    activations: str = "none",
    convention: str = "lowtide",
) -> MemoryReport:
    """Bytes that training takes, counted from shapes alone.

    Args:
        model: a module; a config (mapping or transformers object); a model directory or config.json; or one of
            ``llama-60m, llama-130m, llama-350m, llama-1b, llama-3b, llama-7b``.
        method: a short name (``"qgalore"``), the name of any optimizer of :mod:`lowtide.optim`, its class, or a function that
            makes one of groups.
        rank: of the subspace, clamped per matrix; or a fraction of the shorter side. Full-rank methods have none.
        weights: ``"fp32"``, ``"bf16"`` or ``"int8"`` (linear weights only, the rest fp32). Default: int8 for Q-GaLore, else as a
            module holds them, else fp32.
        gradients: ``"all"`` at once; ``"one"``: the largest, as :func:`lowtide.optim.in_backward` leaves; ``"accumulated"``: the
            most that lives in in_backward with ``accumulate`` of 3 or more and ``refresh_from="first"``.
        batch, seq: sequences at once, and their tokens; for activations.
        activations: ``"none"``: not counted; ``"full"``: what transformers' LLaMA saves for its backward pass; ``"checkpointed"``:
            with checkpoints at its layers. Logits, workspaces and allocators come on top.
        convention: ``"lowtide"``: what the optimizers of this library allocate. ``"paper"``: as the GaLore papers seem to
            estimate: everything in bf16 but INT8 weights, INT4 bases and the moments of low-bit methods (Q-GaLore's, which its
            code holds in 8 bits, count as bf16), the output head projected too (APOLLO: also the embedding; Fira: neither),
            scales and gradients not counted.

    Raises:
        LowtideValueError: unknown method, rank < 1, an unreadable config, or activations of what is no LLaMA.

    >>> import lowtide as lt
    >>> lt.optim.memory("llama-7b", "qgalore", rank=1024, gradients="one").total // 10**9
    12
    """
    name, make = factory(method)
    check_rank(rank)
    for key, value, known in (
        ("convention", convention, ("lowtide", "paper")), ("weights", weights, (None, *WEIGHTS)),
        ("gradients", gradients, GRADIENTS), ("activations", activations, ACTIVATIONS),
    ):  # fmt: skip
        if value not in known:
            raise LowtideValueError(f"{key} must be one of {', '.join(map(repr, known))}, got {value!r}")
    paper = convention == "paper"
    params, llama = read(model)
    planner = _Planner(make, rank)
    if planner.name == "QGaLoreAdamW":
        weights = weights or "int8"
    also = _PAPER_PROJECTS.get(planner.name, ()) if paper else ()
    count = {"weights": 0, "gradients": 0, "states": 0, "basis": 0}
    grads, kept, largest = 0, 0, 0
    for w in params:
        nbytes, size = _weight_bytes(w, weights, paper)
        count["weights"] += nbytes
        if not w.trains:
            continue
        plan = planner.plan(w, w.linear or w.role in also)
        grad = w.numel * size
        grads += grad
        summed = planner.drops and plan.projected > 0
        kept += 4 * plan.projected if summed else grad
        largest = max(largest, grad if gradients == "one" or summed else 0)
        count["basis"] += plan.paper_basis if paper else plan.basis
        count["states"] += _count_paper(plan, planner.name) if paper else sum(s[0] for s in plan.states)
    count["states"] += planner.shared
    if not paper:
        count["gradients"] = {"all": grads, "one": largest, "accumulated": kept + largest}[gradients]
    held = [w.itemsize for w in params if w.nbytes is not None and not w.packed]
    itemsize = 2 if weights == "bf16" or paper or (weights is None and held and max(held) == 2) else 4
    saved = _activation_bytes(llama, activations, batch, seq, itemsize)
    return MemoryReport(name, sum(w.numel for w in params), **count, activations=saved)
