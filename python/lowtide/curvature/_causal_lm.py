# SPDX-License-Identifier: Apache-2.0
"""The loss of causal language models, with logits in chunks where the model allows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowtide.curvature._guard import modes
from lowtide.curvature._linear_ce import linear_cross_entropy
from lowtide.curvature._losses import run_model, split
from lowtide.curvature._losses_classes import CrossEntropy
from lowtide.errors import LowtideValueError


class CausalLM(CrossEntropy):
    """Next-token cross-entropy, a token being a sample; labels of -100 do not count.

    A batch is token ids ``(B, T)``, a pair (ids, labels), or a mapping with ``input_ids``, perhaps ``attention_mask`` and
    ``labels`` (Hugging Face's; labels are shifted here, as models there do). Without labels they are the ids, where the
    attention mask is 1. Outputs are the logits of the tokens that have a successor, ``(B (T - 1), V)``.

    Of Hugging Face models, loss and Gauss-Newton products take the last hidden states and the output matrix instead, and
    the logits exist for a chunk of tokens at a time. That is done where a first comparison shows that the logits are their
    product (some models cap or scale them), and where a batch holds nothing but ids, mask and labels.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chunked: bool | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, 0-dim."""
        if not self.chunked(model, batch):
            return super().__call__(model, batch)
        hidden, weight = self.hidden_and_weight(model, batch)
        return linear_cross_entropy(hidden, weight, self.labels(batch), causal=True)

    def chunked(self, model: nn.Module, batch: Any) -> bool:
        """Whether logits need not be whole; decided with the first batch."""
        if self._chunked is None:
            self._chunked = self._is_product(model, batch)
        return self._chunked

    def hidden_and_weight(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Last hidden states ``(B, T, D)`` and the output matrix ``(V, D)``."""
        hidden: Tensor = model.base_model(**self._inputs(model, batch)).last_hidden_state  # type: ignore[operator]
        weight: Tensor = model.get_output_embeddings().weight  # type: ignore[operator]
        return hidden, weight

    def labels(self, batch: Any) -> Tensor:
        """Labels ``(B, T)``, not shifted."""
        return self._parts(batch)[1]

    def _is_product(self, model: nn.Module, batch: Any) -> bool:
        base, get = getattr(model, "base_model", None), getattr(model, "get_output_embeddings", None)
        head: Any = get() if callable(get) else None
        if (
            not isinstance(base, nn.Module)
            or base is model
            or type(head) is not nn.Linear
            or getattr(head, "bias", None) is not None
        ):
            return False
        inputs = self._inputs(model, batch)
        if set(inputs) - {"input_ids", "attention_mask", "use_cache"}:
            return False
        few = {k: v[:1, :8] if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with torch.no_grad(), modes(model, "eval"):  # dropout would make two passes differ
            logits = model(**few).logits
            ours = base(**few).last_hidden_state @ head.weight.T
        if logits.shape != ours.shape:
            return False
        # One product of the same numbers: rounding in float32 is below 1e-5 of the largest.
        return float((logits - ours).abs().max()) <= 1e-5 * float(ours.abs().max())

    def _parts(self, batch: Any) -> tuple[Any, Tensor]:
        if isinstance(batch, Tensor):
            return batch, batch
        if not isinstance(batch, Mapping):
            return split(batch)
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        if "input_ids" not in inputs:
            raise LowtideValueError(
                f"data: a batch of loss_fn='causal_lm' must hold 'input_ids', got the keys {sorted(batch)}"
            )
        labels = batch.get("labels")
        if labels is None:
            labels = inputs["input_ids"]
            mask = inputs.get("attention_mask")
            labels = labels if mask is None else labels.masked_fill(mask == 0, self.module.ignore_index)
        return inputs, labels

    def _inputs(self, model: nn.Module, batch: Any) -> Any:
        inputs = self._parts(batch)[0]
        if hasattr(getattr(model, "config", None), "use_cache"):
            named = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
            return {**named, "use_cache": False}
        return inputs

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits ``(B (T - 1), V)``."""
        inputs = self._parts(batch)[0]
        if hasattr(getattr(model, "config", None), "use_cache"):
            inputs = {
                **(inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}),
                "use_cache": False,
            }
        logits = run_model(model, inputs)
        return logits[:, :-1].reshape(-1, logits.shape[-1])

    def target(self, batch: Any) -> Tensor:
        """Labels of the next tokens, ``(B (T - 1),)``."""
        return self._parts(batch)[1][:, 1:].reshape(-1)

    def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator | None = None) -> Any:
        """A mapping with drawn labels."""
        inputs, labels = self._parts(batch)
        drawn = labels.clone()
        drawn[:, 1:] = self._draw(outputs, self.target(batch), generator).view(labels.shape[0], -1)
        named = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
        return {**named, "labels": drawn}

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.value`."""
        return F.cross_entropy(
            outputs.float() if outputs.dtype != torch.float64 else outputs, self.target(batch)
        )

    def __repr__(self) -> str:
        return "causal_lm"
