# SPDX-License-Identifier: Apache-2.0
"""Counting the bytes of training before anything is allocated."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim.groups import check_rank, rank_of
from lowtide.optim.stores import StateStore
from lowtide.quant._format import group_count, row_bytes

#: Full-rank methods: moments and how they are stored; the low-rank ones have two.
_STATES = {
    "adamw": (2, "fp32"), "adamw8bit": (2, "int8"), "adamw4bit": (2, "int4"),
    "adabelief": (2, "fp32"), "adabelief8bit": (2, "int8"),
    "lion": (1, "fp32"), "lion8bit": (1, "int8"), "sgd": (1, "fp32"), "sgd8bit": (1, "int8"),
    "galore": (2, "fp32"), "galore8bit": (2, "int8"), "qgalore": (2, "int8"), "fira": (2, "fp32"),
    "frugal": (2, "fp32"), "apollo": (2, "fp32"), "apollo-mini": (2, "fp32"), "ldadam": (2, "fp32"), "dct": (2, "fp32"),
    "grass": (2, "fp32"), "gradnormlorp": (2, "fp32"), "subtrack": (2, "fp32"), "golore": (2, "fp32"),
    "lotus": (2, "fp32"), "flora": (1, "fp32"),
    "adafactor": (0, "fp32"), "galore-adafactor": (0, "fp32"), "adam-mini": (1, "fp32"), "adam-mini8bit": (1, "int8"),
}  # fmt: skip
#: Of which sides of a matrix a second moment is kept, in fp32 (Adam-mini without heads: fewer with them).
_FACTORS = {
    "adafactor": "both",
    "galore-adafactor": "both",
    "adam-mini": "rows",
    "adam-mini8bit": "rows",
    "flora": "both",
}
#: Low-rank methods and what they keep of a subspace.
_BASES = {
    "galore": "dense", "galore8bit": "dense", "qgalore": "int4", "fira": "dense", "frugal": "indices",
    "apollo": "seed", "apollo-mini": "seed", "ldadam": "dense", "dct": "indices", "grass": "indices",
    "galore-adafactor": "dense", "gradnormlorp": "dense", "subtrack": "dense", "golore": "dense", "lotus": "dense",
    "flora": "seed",
}  # fmt: skip
#: Moments of the magnitude of each row.
_MAGNITUDES = {"gradnormlorp": 2}
#: Bits of the error that is fed back, by element of the weight.
_ERRORS = {"ldadam": 32, "dct": 8}
#: Bytes, by element of a moment, of the unit gradient that a schedule compares with.
_REFERENCES = {"lotus": 2}
#: What else the papers' figures seem to project, beside the linear weights of the layers (docs/training.md).
_PAPER_PROJECTS = {
    "galore": ("head",), "galore8bit": ("head",), "qgalore": ("head",),
    "apollo": ("head", "embedding"), "apollo-mini": ("head", "embedding"),
}  # fmt: skip
METHODS = tuple(_STATES)
GROUP = 256  # columns a scale of INT4/INT8 weights and bases serves

# The configurations of the GaLore paper (arXiv 2403.03507, table 5).
_LLAMA = {
    "llama-60m": (512, 1376, 8),
    "llama-130m": (768, 2048, 12),
    "llama-350m": (1024, 2736, 24),
    "llama-1b": (2048, 5461, 24),
    "llama-7b": (4096, 11008, 32),
}


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by kind; activations are not counted."""

    method: str
    parameters: int
    weights: int
    gradients: int
    states: int
    basis: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.weights + self.gradients + self.states + self.basis

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "method": self.method,
            "parameters": self.parameters,
            "weights": self.weights,
            "gradients": self.gradients,
            "states": self.states,
            "basis": self.basis,
            "total": self.total,
        }


@dataclass(frozen=True)
class _Param:
    shape: tuple[int, ...]
    low_rank: bool
    role: str = ""  # "embedding", "head" (where it is not tied)

    @property
    def numel(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n


def _llama(hidden: int, inter: int, layers: int, vocab: int, kv: int, q: int, tied: bool) -> Iterator[_Param]:
    yield _Param((vocab, hidden), False, "embedding")
    if not tied:
        yield _Param((vocab, hidden), False, "head")
    yield _Param((hidden,), False)
    for _ in range(layers):
        yield _Param((q, hidden), True)
        yield _Param((kv, hidden), True)
        yield _Param((kv, hidden), True)
        yield _Param((hidden, q), True)
        yield _Param((inter, hidden), True)
        yield _Param((inter, hidden), True)
        yield _Param((hidden, inter), True)
        yield _Param((hidden,), False)
        yield _Param((hidden,), False)


def _from_config(config: Mapping[str, Any]) -> list[_Param]:
    try:
        hidden, inter = int(config["hidden_size"]), int(config["intermediate_size"])
        layers, vocab, heads = (
            int(config["num_hidden_layers"]),
            int(config["vocab_size"]),
            int(config["num_attention_heads"]),
        )
    except KeyError as error:
        raise LowtideValueError(
            f"config has no {error.args[0]!r}: only LLaMA-like configs are known; pass the model itself instead"
        ) from None
    head = int(config.get("head_dim") or hidden // heads)
    kv = int(config.get("num_key_value_heads") or heads) * head
    return list(
        _llama(hidden, inter, layers, vocab, kv, heads * head, bool(config.get("tie_word_embeddings", False)))
    )


def _from_model(model: nn.Module) -> list[_Param]:
    from lowtide.optim.groups import param_groups
    from lowtide.optim.weights import shape

    return [
        _Param(tuple(shape(p)), "rank" in group)
        for group in param_groups(model, rank=1)
        for p in group["params"]
    ]


def _params(source: Any) -> list[_Param]:
    if isinstance(source, nn.Module):
        return _from_model(source)
    if isinstance(source, str) and source.lower() in _LLAMA:
        hidden, inter, layers = _LLAMA[source.lower()]
        return list(_llama(hidden, inter, layers, 32000, hidden, hidden, False))
    if isinstance(source, Mapping):
        return _from_config(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            return _from_config(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise LowtideValueError(
                f"model must be one of {', '.join(_LLAMA)}, a model directory or a config.json; cannot read {path}: {error}"
            ) from None
    if hasattr(source, "to_dict"):
        return _from_config(source.to_dict())
    raise LowtideTypeError(f"model must be a module, a config or a name, got {type(source).__name__}")


def _packed(rows: int, cols: int, bits: int, group: int) -> int:
    """Bytes of codes, fp32 scales and uint8 zero points (csrc/quant/group_format.h)."""
    return rows * (row_bytes(cols, bits) + 5 * group_count(cols, group))


def _error_bytes(bits: int, rows: int, cols: int, paper: bool) -> int:
    """Bytes of the error of one matrix, as the preset keeps it by default."""
    if bits == 8:
        return rows * cols if paper else _packed(rows, cols, 8, GROUP)
    return rows * cols * (bits // 16 if paper else bits // 8)


def _factor_bytes(kind: str, shape: tuple[int, ...], paper: bool) -> int:
    """Bytes of the second moments of the rows, or rows and columns, of one matrix or vector."""
    if kind == "":
        return 0
    rows = shape[0] if shape else 1
    cols = math.prod(shape[1:]) if kind == "both" and len(shape) > 1 else 0
    return (rows + cols) * (2 if paper else 4)


def _basis_bytes(kind: str, rank: int, short: int, paper: bool) -> int:
    """Bytes of the subspace of one matrix."""
    if kind == "int4":
        return rank * short // 2 if paper else _packed(rank, short, 4, GROUP)
    return {"dense": rank * short * (2 if paper else 4), "indices": 4 * rank, "seed": 0}[kind]


def memory(
    model: Any,
    method: str,
    *,
    rank: int | float = 128,
    weights: str | None = None,
    in_backward: bool = False,
    convention: str = "lowtide",
) -> MemoryReport:
    """Bytes that training takes, activations apart, counted from shapes alone.

    Args:
        model: a module; a config (mapping or transformers object); a model directory or config.json; or one of
            ``llama-60m, llama-130m, llama-350m, llama-1b, llama-7b``.
        method: one of :data:`METHODS`.
        rank: of the subspace, clamped per matrix; or a fraction of the shorter side. 1 for apollo-mini, whatever it says.
        weights: ``"fp32"``, ``"bf16"`` or ``"int8"`` (linear weights only, the rest fp32). Default: int8 for qgalore, else fp32.
        in_backward: gradients freed as they arrive: only the largest is counted.
        convention: ``"lowtide"``: what the optimizers of this library allocate. ``"paper"``: as the GaLore papers seem to
            estimate: everything in bf16 but INT8 weights, INT4 bases and the moments of low-bit methods (Q-GaLore's, which its
            code holds in 8 bits, count as bf16), the output head projected too (APOLLO: also the embedding; Fira: neither),
            scales and gradients not counted.

    Raises:
        LowtideValueError: unknown method, rank < 1, or an unreadable config.
    """
    if method not in METHODS:
        raise LowtideValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_rank(rank)
    rank = 1 if method == "apollo-mini" else rank
    if convention not in ("lowtide", "paper"):
        raise LowtideValueError(f"convention must be 'lowtide' or 'paper', got {convention!r}")
    weights = weights or ("int8" if method == "qgalore" else "fp32")
    if weights not in ("fp32", "bf16", "int8"):
        raise LowtideValueError(f"weights must be 'fp32', 'bf16' or 'int8', got {weights!r}")
    paper = convention == "paper"
    moments, store = _STATES[method][0], StateStore(_STATES[method][1])
    also = _PAPER_PROJECTS.get(method, ()) if paper else ()
    dense = 2 if paper or weights == "bf16" else 4
    count = {"weights": 0, "gradients": 0, "states": 0, "basis": 0}
    largest = 0
    params = _params(model)
    for p in params:
        project = method in _BASES and (p.low_rank or p.role in also)
        rows, cols = (p.shape[0], p.numel // p.shape[0]) if len(p.shape) > 1 else (1, p.numel)
        packed = weights == "int8" and p.low_rank
        count["weights"] += (
            (p.numel if paper else _packed(rows, cols, 8, GROUP)) if packed else p.numel * dense
        )
        grad = p.numel * (4 if packed else dense)
        count["gradients"] += grad
        largest = max(largest, grad)
        moment, moment_shape = p.numel, p.shape
        if project:
            short, long = min(rows, cols), max(rows, cols)
            r = rank_of(rank, rows, cols)
            moment, moment_shape = r * long, (rows, r) if rows >= cols else (r, cols)
            count["states"] += _error_bytes(_ERRORS.get(method, 0), rows, cols, paper)
            count["states"] += rows * _MAGNITUDES.get(method, 0) * (2 if paper else 4)
            count["states"] += _REFERENCES.get(method, 0) * moment
            count["basis"] += _basis_bytes(_BASES[method], r, short, paper)
        count["states"] += _factor_bytes(_FACTORS.get(method, ""), moment_shape, paper)
        if paper:
            half_bytes = 4 if method == "qgalore" else {"fp32": 4, "int8": 2, "int4": 1}[store.kind]
            count["states"] += moments * moment * half_bytes // 2
        else:
            count["states"] += moments * store.nbytes(moment)
    if paper:
        count["gradients"] = 0
    elif in_backward:
        count["gradients"] = largest
    return MemoryReport(method, sum(p.numel for p in params), **count)
