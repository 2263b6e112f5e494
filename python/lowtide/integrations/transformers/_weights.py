# SPDX-License-Identifier: Apache-2.0
"""Packed weights under the Trainer: quantize before it, turn back after it, and do not mistake one for the other."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import lowtide.quant
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.train.methods import WEIGHT_GROUP
from lowtide.train.methods import restore_model as _restore

METHOD = "lowtide"


class PackedConfig(QuantizationConfigMixin):
    """What ``config.json`` of a checkpoint with packed weights says about them."""

    def __init__(self, weights: str = "int8", group: int = 256, **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.weights, self.group = weights, group


class PackedCheckpoint(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """Keeps ``from_pretrained`` from taking codes for weights."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            LowtideRuntimeError: always.
        """
        raise LowtideRuntimeError(
            "this directory is a checkpoint of a Trainer run with packed weights, which from_pretrained would take for ordinary ones; "
            "resume it with the Trainer on the model it started from, after prepare_model, or load what was saved after restore_model"
        )

    def is_serializable(self) -> bool:
        """The model is saved as it is."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights train."""
        return True


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(PackedConfig)
    register_quantizer(METHOD)(PackedCheckpoint)


def prepare_model(
    model: Any, weights: str = "int8", *, group: int | None = None, skip: list[str] | None = None
) -> Any:
    """Pack the linear layers of a transformers model for training in place, as Q-GaLore does; before the Trainer gets it.

    The output head and frozen layers stay dense. ``save_pretrained``, and so each checkpoint of the Trainer, then holds codes and
    scales: what resuming bit for bit needs. Its ``config.json`` says so under ``quantization_config``. For weights that everybody
    loads call :func:`restore_model` first; ``lowtide.quant.save_model(model, path)`` writes lowtide's own packed file.

    Args:
        model: a ``PreTrainedModel``.
        weights: ``"int8"`` or ``"int4"``.
        group: columns that share a scale; 256 (int8) or 64 (int4) unless given.
        skip: more layers that stay dense, as in :func:`lowtide.quant.quantize_model_`.

    Returns:
        ``model``.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument; the model is unchanged.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise LowtideTypeError(f"model must be a transformers model, got {type(model).__name__}")
    if weights not in WEIGHT_GROUP:
        raise LowtideValueError(f"weights must be one of {', '.join(WEIGHT_GROUP)}, got {weights!r}")
    group = WEIGHT_GROUP[weights] if group is None else group
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    dense = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is head or not module.weight.requires_grad)
    ]
    lowtide.quant.quantize_model_(model, weights=weights, group=group, skip=[*dense, *(skip or [])])
    config: Any = model.config
    config.quantization_config = {"quant_method": METHOD, "weights": weights, "group": group}
    return model


def restore_model(model: Any) -> Any:
    """Turn packed layers into plain float32 ``nn.Linear`` again, one at a time, in place: ``save_pretrained`` is ordinary then.

    Returns:
        ``model``.
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    _restore(model)
    config = getattr(model, "config", None)
    found = getattr(config, "quantization_config", None)
    if isinstance(found, dict) and found.get("quant_method") == METHOD:
        del config.quantization_config  # type: ignore[union-attr]
    return model
