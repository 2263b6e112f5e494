# SPDX-License-Identifier: Apache-2.0
"""The LoRA layers of a PEFT model that an initialiser may change, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideTypeError, LowtideValueError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def require_peft() -> Any:
    """The package ``peft``. Raises LowtideImportError."""
    try:
        import peft
    except ImportError:
        raise LowtideImportError(
            "lt.integrations.peft needs peft; run: pip install 'lowtide[peft]'"
        ) from None
    return peft


@dataclass(frozen=True)
class Site:
    """One LoRA layer: ``y = W0 x + scaling * B A x`` with W0 (out, in), A (rank, in), B (out, rank)."""

    name: str
    layer: Any
    base: nn.Linear
    rank: int
    scaling: float

    @property
    def weight(self) -> nn.Parameter:
        """W0."""
        weight: Any = self.base.weight
        assert isinstance(weight, nn.Parameter)
        return weight


def only_adapter(model: Any, adapter: str | None) -> str:
    """The name of the adapter to work on. Raises LowtideTypeError, LowtideValueError."""
    peft = require_peft()
    if not isinstance(model, peft.PeftModel):
        raise LowtideTypeError(
            f"model must be a peft.PeftModel, got {type(model).__name__}; make one with "
            "peft.get_peft_model(model, peft.LoraConfig(...))"
        )
    name = adapter if adapter is not None else model.active_adapter
    if not isinstance(name, str) or name not in model.peft_config:
        raise LowtideValueError(
            f"adapter must be one of {', '.join(map(repr, model.peft_config))}, got {name!r}; name one"
        )
    kind = model.peft_config[name].peft_type
    if kind != peft.PeftType.LORA:
        raise LowtideTypeError(f"adapter {name!r} is {kind}, and this needs LoRA: use peft.LoraConfig")
    return name


def lora_layers(model: Any, adapter: str) -> list[tuple[str, Any]]:
    """Names and LoRA layers that an adapter has, in the order of the model. Raises LowtideValueError if there is none."""
    from peft.tuners.lora import LoraLayer

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.r]
    if not layers:
        raise LowtideValueError(f"adapter {adapter!r} has no LoRA layer; check target_modules")
    return layers


def find_sites(model: Any, adapter: str, *, rank_limit: int = 1) -> list[Site]:
    """The LoRA layers of an adapter that was made and not trained yet.

    Args:
        model: a PeftModel.
        adapter: the adapter's name.
        rank_limit: that many times the rank must fit into the smaller side of each weight.

    Raises:
        LowtideTypeError, LowtideValueError, LowtideRuntimeError: a layer that cannot be initialised, named.
    """
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name)
    sites: list[Site] = []
    for name, layer in lora_layers(model, adapter):
        base = layer.get_base_layer()
        if type(base) is not nn.Linear or adapter not in layer.lora_A:
            raise LowtideTypeError(
                f"{name} is a {type(base).__name__} and only nn.Linear can be initialised; leave it out of target_modules"
            )
        if base.weight.dtype not in _FLOATS or base.weight.is_meta:
            raise LowtideTypeError(
                f"{name} has a weight of {base.weight.dtype} on {base.weight.device}; float32, bfloat16 or float16 "
                "weights in memory are needed"
            )
        if getattr(layer, "lora_variant", {}).get(adapter) is not None or layer.use_dora.get(adapter, False):
            raise LowtideValueError(
                f"{name} is a LoRA variant such as DoRA, whose output is not W0 x + s B A x; use a plain LoraConfig"
            )
        if layer.merged:
            raise LowtideRuntimeError(f"{name} is merged; call model.unmerge_adapter() first")
        if len(owners[id(base.weight)]) > 1:
            others = [n for n in owners[id(base.weight)] if not n.startswith(f"{name}.")]
            raise LowtideValueError(
                f"{name} shares its weight with {', '.join(others) or 'itself'}, which would change too; leave it out of "
                "target_modules"
            )
        rank = layer.r[adapter]
        if rank * rank_limit > min(base.weight.shape):
            raise LowtideValueError(
                f"r must be at most {min(base.weight.shape) // rank_limit} for {name} of shape "
                f"{tuple(base.weight.shape)}, got {rank}; lower r in LoraConfig or give a rank_pattern"
            )
        up = layer.lora_B[adapter].weight
        if not isinstance(up, Tensor) or bool(up.detach().ne(0).any()):
            raise LowtideValueError(
                f"{name}: lora_B is not zero, so adapter {adapter!r} was trained or initialised otherwise; make a fresh "
                "one with init_lora_weights=True"
            )
        sites.append(Site(name, layer, base, rank, float(layer.scaling[adapter])))
    return sites
