# SPDX-License-Identifier: Apache-2.0
"""What the memory planner knows of a model: the shapes of its parameters, and what a LLaMA saves for its backward pass."""

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

#: Hidden size, inner size of the MLP, layers, attention heads: table 5 of GaLore (arXiv 2403.03507); 3b: OpenLLaMA.
_LLAMA = {
    "llama-60m": (512, 1376, 8, 8),
    "llama-130m": (768, 2048, 12, 12),
    "llama-350m": (1024, 2736, 24, 16),
    "llama-1b": (2048, 5461, 24, 32),
    "llama-3b": (3200, 8640, 26, 32),
    "llama-7b": (4096, 11008, 32, 32),
}
NAMES = tuple(_LLAMA)


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
        shape: its logical shape. linear: whether it is the weight of a linear layer that low-rank methods project.
        role: ``"embedding"``, ``"head"`` (where it is not tied) or ``""``.
        nbytes: what it takes now, in a model that exists; else None.
        itemsize: bytes of an element of its gradient, likewise.
        packed: whether it is packed now. trains: whether it gets gradients.
    """

    shape: tuple[int, ...]
    linear: bool = False
    role: str = ""
    nbytes: int | None = None
    itemsize: int = 4
    packed: bool = False
    trains: bool = True

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """As (rows, columns): (first, rest); a vector is one row."""
        return (
            (self.shape[0], self.numel // max(self.shape[0], 1)) if len(self.shape) > 1 else (1, self.numel)
        )


@dataclass(frozen=True)
class Llama:
    """Sizes of a LLaMA-like model. ``queries`` and ``keys`` are columns: heads times head size."""

    hidden: int
    inner: int
    layers: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool = False

    def weights(self) -> Iterator[Weight]:
        """Its parameters."""
        h = self.hidden
        yield Weight((self.vocabulary, h), role="embedding")
        if not self.tied:
            yield Weight((self.vocabulary, h), role="head")
        yield Weight((h,))
        for _ in range(self.layers):
            for shape in (
                (self.queries, h), (self.keys, h), (self.keys, h), (h, self.queries),
                (self.inner, h), (self.inner, h), (h, self.inner),
            ):  # fmt: skip
                yield Weight(shape, linear=True)
            yield Weight((h,))
            yield Weight((h,))

    def activations(self, batch: int, seq: int, itemsize: int, checkpointed: bool) -> int:
        """Bytes that transformers' LLaMA with fused attention holds for its backward pass, for ``batch`` sequences of ``seq`` tokens.

        A norm saves its input (fp32), the normalized input and its output; attention queries, keys, values, its output and
        a number a head; the MLP four tensors of its inner size; the head a norm and the log-probabilities (fp32). With
        checkpoints at layers: their inputs, and the larger of the head and one layer, which is computed again.
        """
        norm = self.hidden * (4 + 2 * itemsize) + 4
        attention = itemsize * (2 * self.queries + 2 * self.keys) + 4 * self.heads
        layer = 2 * norm + attention + itemsize * 4 * self.inner
        head = norm + 4 * self.vocabulary
        if checkpointed:
            return batch * seq * (self.layers * itemsize * self.hidden + max(layer, head))
        return batch * seq * (self.layers * layer + head)


def _from_config(config: Mapping[str, Any]) -> Llama:
    try:
        hidden, inner, layers, vocabulary, heads = (
            int(config[key])
            for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
        )  # fmt: skip
        size = int(config.get("head_dim") or hidden // heads)
        keys = int(config.get("num_key_value_heads") or heads) * size
    except KeyError as error:
        raise LowtideValueError(
            f"config has no {error.args[0]!r}: only LLaMA-like configs are known; pass the model itself instead"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise LowtideValueError("config must hold the sizes of a LLaMA as integers > 0") from None
    sizes = (hidden, inner, layers, vocabulary, heads, keys)
    if min(sizes) < 1 or max(sizes) > 1 << 31 or layers > 10_000:
        raise LowtideValueError(f"config must hold the sizes of a LLaMA as integers > 0, got {sizes}")
    tied = bool(config.get("tie_word_embeddings", False))
    return Llama(hidden, inner, layers, heads, heads * size, keys, vocabulary, tied)


def _from_model(model: nn.Module) -> list[Weight]:
    from lowtide.optim import weights as store
    from lowtide.optim.groups import param_groups

    try:
        low = {id(p) for g in param_groups(model, rank=1) if "rank" in g for p in g["params"]}
    except LowtideValueError:  # no linear layer
        low = set()
    return [
        Weight(
            tuple(store.shape(p)),
            id(p) in low,
            nbytes=store.nbytes(p),
            itemsize=4 if store.is_quantized(p) else p.element_size(),
            packed=store.is_quantized(p),
            trains=p.quant.trainable if store.is_quantized(p) else p.requires_grad,
        )
        for p in model.parameters()
    ]


def read(source: Any) -> tuple[list[Weight], Llama | None]:
    """Parameters, and sizes if the source is a LLaMA's.

    Args:
        source: as ``model`` of :func:`lowtide.optim.memory`.

    Raises:
        LowtideTypeError, LowtideValueError: it is none of these, or cannot be read.
    """
    if isinstance(source, nn.Module):
        describe = getattr(getattr(source, "config", None), "to_dict", None)
        try:
            sizes = _from_config(describe()) if describe else None
        except LowtideValueError:
            sizes = None
        return _from_model(source), sizes
    if isinstance(source, str) and source.lower() in _LLAMA:
        hidden, inner, layers, heads = _LLAMA[source.lower()]
        llama = Llama(hidden, inner, layers, heads, hidden, hidden, 32000)
    elif isinstance(source, Mapping):
        llama = _from_config(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it holds no JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise LowtideValueError(
                f"model must be one of {', '.join(_LLAMA)}, a model directory or a config.json; cannot read {path}: {error}"
            ) from None
        llama = _from_config(config)
    elif hasattr(source, "to_dict"):
        llama = _from_config(source.to_dict())
    else:
        raise LowtideTypeError(f"model must be a module, a config or a name, got {type(source).__name__}")
    return list(llama.weights()), llama
