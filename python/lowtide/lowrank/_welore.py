# SPDX-License-Identifier: Apache-2.0
"""WeLore: how low the rank of each weight may be, by one threshold on all singular values; and the compressed model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.lowrank._linear import LowRankLinear

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Spectrum = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MatrixPlan:
    """What becomes of one weight.

    Attributes:
        name: of its layer, dotted. shape: (out, in).
        rank: singular values at or above the threshold; layers that stay (N-LRC) keep the others all the same.
        low_rank: whether the layer is in the class LRC, which is factored and fine-tuned, or N-LRC, which stays.
        spectrum: float32, all singular values, largest first, shifted and scaled to [0, 1].
    """

    name: str
    shape: tuple[int, int]
    rank: int
    low_rank: bool
    spectrum: Spectrum = field(repr=False, compare=False)

    @property
    def reduction(self) -> float:
        """Share of the full rank below the threshold."""
        return 1 - self.rank / min(self.shape)

    @property
    def parameters(self) -> int:
        """Of the weight as it will be."""
        return self.rank * sum(self.shape) if self.low_rank else math.prod(self.shape)


@dataclass(frozen=True)
class WeLorePlan:
    """The ranks of all weights; ``print`` it for a table.

    Attributes:
        matrices: in the order of the model.
        threshold: normalised singular values below are dropped; ``None`` for uniform ranks.
        skipped: parameters of the model that the plan does not touch.
    """

    matrices: tuple[MatrixPlan, ...]
    threshold: float | None
    skipped: int

    @property
    def reduction(self) -> float:
        """Share of all singular values that fall below the threshold: the ``ratio`` that was asked for, within rounding."""
        return 1 - sum(m.rank for m in self.matrices) / sum(min(m.shape) for m in self.matrices)

    @property
    def dense_parameters(self) -> int:
        """Of the planned weights as they are."""
        return sum(math.prod(m.shape) for m in self.matrices)

    @property
    def parameters(self) -> int:
        """Of the planned weights as they will be."""
        return sum(m.parameters for m in self.matrices)

    @property
    def trainable_parameters(self) -> int:
        """Of the factored weights, which are what is fine-tuned."""
        return sum(m.parameters for m in self.matrices if m.low_rank)

    def at(self, ratio: float, *, minimum: float | None = None, uniform: bool = False) -> WeLorePlan:
        """The plan for another ratio, from the same spectra. Arguments and errors as in :func:`welore_plan`."""
        return _plan(
            {m.name: m.shape for m in self.matrices},
            {m.name: m.spectrum for m in self.matrices},
            self.skipped,
            ratio,
            minimum,
            uniform,
        )

    def __str__(self) -> str:
        rows = [("layer", "shape", "rank", "of", "given up", "class", "parameters")]
        for m in self.matrices:
            cells = (str(m.rank), str(min(m.shape)), f"{m.reduction:.1%}", "LRC" if m.low_rank else "N-LRC")
            rows.append((m.name, f"{m.shape[0]} x {m.shape[1]}", *cells, f"{m.parameters:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) if i in (0, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]  # fmt: skip
        lines.insert(1, "-" * max(map(len, lines)))
        lines.append(lines[1])
        kept = self.parameters / max(1, self.dense_parameters)
        limit = "" if self.threshold is None else f", threshold {self.threshold:.4f}"
        lines.append(
            f"{self.reduction:.1%} of all singular values given up{limit}; {sum(m.low_rank for m in self.matrices)} of "
            f"{len(self.matrices)} matrices factored"
        )
        lines.append(
            f"{self.parameters:,} of {self.dense_parameters:,} parameters ({kept:.1%}), {self.trainable_parameters:,} of "
            f"them trainable; {self.skipped:,} others stay"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, JSON-safe; spectra are left out."""
        return {
            "threshold": self.threshold,
            "reduction": self.reduction,
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "skipped_parameters": self.skipped,
            "matrices": [
                {"name": m.name, "shape": list(m.shape), "rank": m.rank, "low_rank": m.low_rank}
                for m in self.matrices
            ],
        }

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write a figure (.png, .svg or .pdf): spectra with the threshold, and the rank that each weight keeps.

        Raises:
            LowtideImportError: matplotlib is not installed. LowtideValueError: another suffix.
        """
        from lowtide.lowrank._welore_plot import plot

        return plot(self, Path(path), title)


def welore_plan(
    model: nn.Module, ratio: float, *, minimum: float | None = None, uniform: bool = False,
    skip: Sequence[str] = ("lm_head",),
) -> WeLorePlan:  # fmt: skip
    """Ranks by WeLore (Jaiswal et al. 2024, arXiv 2407.11239, section 3.1): one threshold for the normalised spectra of all weights.

    Each matrix's singular values are shifted and scaled to [0, 1]. The threshold is the value below which ``ratio`` of them all
    lie; a matrix keeps those of its own that do not. (The paper scans thresholds; sorting gives the same one.)

    Args:
        model: its ``nn.Linear`` layers are planned; subclasses are not.
        ratio: share of all singular values to give up, in [0, 1).
        minimum: a matrix is factored (class LRC) if it gives up more than this share of its own rank; the paper takes 0 for
            compression and 0.4999 for fine-tuning. ``None``: if the factors have fewer parameters than the matrix, which at
            0.5 is the same for square ones. The others (N-LRC) stay as they are.
        uniform: give up the same share of every matrix instead: what the paper compares with.
        skip: layers to leave out: full dotted names, last parts of names, or names of enclosing modules.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, no layer, a weight that is tied, not finite, or on the meta device.

    >>> import torch, lowtide as lt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    >>> with torch.no_grad(): _ = model[0].weight.copy_(torch.randn(64, 4) @ torch.randn(4, 64))
    >>> [m.rank for m in lt.lowrank.welore_plan(model, 0.5).matrices]
    [4, 60]
    """
    _check(ratio, minimum)
    layers = _layers(model, skip)
    _check_layers(model, layers)
    planned = {id(layer.weight) for layer in layers.values()}
    return _plan(
        {name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
        {name: _spectrum(layer) for name, layer in layers.items()},
        sum(p.numel() for p in model.parameters() if id(p) not in planned),
        ratio,
        minimum,
        uniform,
    )


def welore_compress_(model: nn.Module, plan: WeLorePlan, *, freeze: bool = True) -> nn.Module:
    """Replace the planned low-rank layers by :class:`LowRankLinear`, one at a time, in place.

    Args:
        model: the model that was planned.
        plan: of :func:`welore_plan`.
        freeze: let only the factors require grad (the paper fine-tunes nothing else, section 3.3).

    Returns:
        ``model``.

    Raises:
        LowtideTypeError, LowtideValueError: the plan is of another model; this one is unchanged.
    """
    if not isinstance(plan, WeLorePlan):
        raise LowtideTypeError(
            f"plan must be a WeLorePlan, got {type(plan).__name__}; make it with welore_plan"
        )
    layers = _layers(model, ())
    for m in plan.matrices:
        got = layers.get(m.name)
        if got is None or tuple(got.weight.shape) != m.shape:
            what = "no such nn.Linear" if got is None else f"one of shape {tuple(got.weight.shape)}"
            raise LowtideValueError(
                f"plan has {m.name} of shape {m.shape} and model has {what}; plan this model"
            )
    factored = {m.name: m.rank for m in plan.matrices if m.low_rank}
    _check_layers(model, {name: layers[name] for name in factored})
    if freeze:
        model.requires_grad_(False)
    for name, rank in factored.items():
        layer = LowRankLinear.from_linear(layers.pop(name), rank)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer)
    return model


# ---- parts


def _check(ratio: Any, minimum: Any) -> None:
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 <= ratio < 1:
        raise LowtideValueError(f"ratio must be a number in [0, 1), got {ratio!r}")
    if minimum is not None and (
        not isinstance(minimum, (int, float)) or isinstance(minimum, bool) or not 0 <= minimum < 1
    ):
        raise LowtideValueError(f"minimum must be a number in [0, 1) or None, got {minimum!r}")


def _skipped(name: str, skip: Sequence[str]) -> bool:
    return any(
        name == s or name.endswith("." + s) or name.startswith(s + ".") or f".{s}." in name for s in skip
    )


def _layers(model: Any, skip: Sequence[str]) -> dict[str, nn.Linear]:
    """The ``nn.Linear`` layers by name; one with two names has the first."""
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if type(model) is nn.Linear:
        raise LowtideTypeError(
            "model is itself an nn.Linear; use lt.lowrank.LowRankLinear.from_linear(model, rank)"
        )
    skip = [skip] if isinstance(skip, str) else list(skip)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and not _skipped(name, skip)
    }
    if not layers:
        raise LowtideValueError(f"{type(model).__name__} has no nn.Linear outside of skip")
    return layers


def _check_layers(model: nn.Module, layers: dict[str, nn.Linear]) -> None:
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name)
    for name, layer in layers.items():
        W = layer.weight
        if len(owners[id(W)]) > 1:
            others = ", ".join(n for n in owners[id(W)] if n != f"{name}.weight")
            raise LowtideValueError(
                f"{name}.weight is tied to {others}: factoring one of them would untie them; add {name!r} to skip"
            )
        if W.is_meta or W.dtype not in _FLOATS:
            raise LowtideTypeError(
                f"{name}.weight is {W.dtype} on {W.device}; float32, bfloat16 or float16 weights in memory are needed"
            )
        if W.numel() == 0 or not bool(W.isfinite().all()):
            raise LowtideValueError(
                f"{name}.weight is empty or has elements that are not finite; add {name!r} to skip"
            )


def _spectrum(layer: nn.Linear) -> Spectrum:
    values = torch.linalg.svdvals(layer.weight.detach().float()).cpu().numpy()
    low, high = float(values[-1]), float(values[0])
    if high - low <= 1e-5 * high:  # all the same but for rounding: nothing to prefer, everything is kept
        return np.ones_like(values)
    scaled: Spectrum = (values - low) / np.float32(high - low)
    return scaled


def _plan(
    shapes: dict[str, tuple[int, int]], spectra: dict[str, Spectrum], skipped: int, ratio: float,
    minimum: float | None, uniform: bool,
) -> WeLorePlan:  # fmt: skip
    _check(ratio, minimum)
    threshold = None
    if uniform:
        ranks = {name: max(1, round((1 - ratio) * s.size)) for name, s in spectra.items()}
    else:
        pool = np.sort(np.concatenate(list(spectra.values())))
        threshold = float(pool[min(round(ratio * pool.size), pool.size - 1)])
        ranks = {name: max(1, int((s >= threshold).sum())) for name, s in spectra.items()}

    def low(rank: int, m: int, n: int) -> bool:
        return rank * (m + n) < m * n if minimum is None else 1 - rank / min(m, n) > minimum

    matrices = tuple(
        MatrixPlan(name, shape, ranks[name], low(ranks[name], *shape), spectra[name])
        for name, shape in shapes.items()
    )
    return WeLorePlan(matrices, threshold, skipped)
