# SPDX-License-Identifier: Apache-2.0
"""The training methods by name: which optimizer, which weights, how gradients are held."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowtide.train.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from lowtide.train.config import FinetuneConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table: `optimizer` names a class of `lowtide.optim`, or of `lowtide.spsa` where it is `zeroth_order`;
    `scale` is the default of low-rank groups."""

    optimizer: str
    about: str
    lr: float
    low_rank: bool = False
    weights: str = "fp32"
    in_backward: bool = False
    scale: float = 4.0
    eps: bool = True  # whether the rule has an epsilon
    zeroth_order: bool = False  # two evaluations of the loss a step, no gradients


WEIGHTS = ("fp32", "int8", "int4")

METHODS: Mapping[str, Method] = {
    "adamw": Method("AdamW", "AdamW with fp32 states (the reference)", lr=1e-4),
    "adamw8bit": Method("AdamW8bit", "AdamW with 8-bit block states", lr=1e-4),
    "adamw4bit": Method("AdamW4bit", "AdamW with 4-bit block states", lr=1e-4),
    "adam-mini8bit": Method("AdamMini8bit", "AdamW with one second moment a row, the first in 8-bit blocks", lr=1e-4),
    "lion8bit": Method("Lion8bit", "Lion with its one moment in 8-bit blocks", lr=1e-5, eps=False),
    "galore": Method("GaLoreAdamW", "AdamW in a low-rank subspace of the gradient", lr=1e-4, low_rank=True, in_backward=True),
    "galore8bit": Method(
        "GaLoreAdamW8bit", "GaLore with 8-bit block states", lr=1e-4, low_rank=True, in_backward=True
    ),
    "qgalore": Method(
        "QGaLoreAdamW",
        "GaLore with INT4 bases, 8-bit states and INT8 weights",
        lr=1e-4, low_rank=True, weights="int8", in_backward=True,
    ),
    "fira": Method(
        "FiraAdamW", "GaLore, and the rest of the gradient at its channels' rates",
        lr=1e-4, low_rank=True, in_backward=True, scale=1.0,
    ),
    "frugal": Method(
        "FRUGAL", "AdamW in random columns or rows, signSGD elsewhere", lr=1e-4, low_rank=True, in_backward=True, scale=1.0
    ),
    "apollo": Method(
        "APOLLO", "SGD with AdamW's rate for each channel, from a random subspace",
        lr=1e-4, low_rank=True, in_backward=True, scale=1.0,
    ),
    "apollo-mini": Method(
        "APOLLOMini", "SGD with one rate a matrix, from a subspace of rank 1",
        lr=1e-4, low_rank=True, in_backward=True, scale=128.0,
    ),
    "ldadam": Method(
        "LDAdam", "AdamW in a subspace that follows at each step, with error feedback",
        lr=1e-4, low_rank=True, in_backward=True, scale=1.0,
    ),
    "dct": Method(
        "DCTAdamW", "AdamW on the largest cosines of each gradient, with 8-bit error feedback",
        lr=1e-4, low_rank=True, in_backward=True, scale=1.0,
    ),
    "subtrack": Method(
        "SubTrack", "AdamW in a subspace that turns with the gradient, and Fira's residual",
        lr=1e-4, low_rank=True, in_backward=True, scale=1.0,
    ),
    "grass": Method("GRASSAdamW", "AdamW on the rows of largest norm", lr=1e-4, low_rank=True, in_backward=True),
    "gradnormlorp": Method(
        "GradNormLoRP", "AdamW on row magnitudes, and on directions in a low-rank subspace",
        lr=1e-4, low_rank=True, in_backward=True,
    ),
    "mezo": Method("MeZO", "the slope along a random direction, from two evaluations; no gradients", lr=1e-6, zeroth_order=True),
    "qzo": Method("QZO", "MeZO on the group scales of INT4 weights", lr=3e-3, weights="int4", zeroth_order=True),
}  # fmt: skip
WEIGHT_GROUP = {"int8": 256, "int4": 64}


def prepare_model(model: Any, config: FinetuneConfig) -> None:
    """Put the linear layers of `model` into the weight store of the run, in place.

    Frozen layers and the output head stay as they are: the one must not change, the other is often the embedding.
    """
    if config.weight_store == "fp32":
        return
    from torch import nn

    import lowtide.quant

    head = model.get_output_embeddings()
    dense = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is head or not module.weight.requires_grad)
    ]
    check_linear(model, config.method)
    lowtide.quant.quantize_model_(
        model, weights=config.weight_store, group=WEIGHT_GROUP[config.weight_store], skip=dense
    )


def prepare_logged(model: Any, manifest: Any) -> None:
    """Put the layers of `model` into the weight store that a run's manifest tells of, in place.

    What QZO trains are the scales of packed layers, and the groups' size says which store `prepare_model` took. Raises ConfigError
    for groups that it does not make.
    """
    import lowtide.quant
    from lowtide.train.errors import ConfigError

    dense = dict(model.named_modules())
    packed = {}
    for e in manifest:
        layer = e.name.removesuffix(".weight_scale")
        if layer != e.name and hasattr(dense.get(layer), "in_features"):
            packed[layer] = e.shape[-1]
    if not packed:
        return
    for store, group in WEIGHT_GROUP.items():
        if all(-(-dense[layer].in_features // group) == groups for layer, groups in packed.items()):
            others = [n for n, m in dense.items() if hasattr(m, "in_features") and n not in packed]
            lowtide.quant.quantize_model_(model, weights=store, group=group, skip=others)
            return
    raise ConfigError(
        "log: its packed weights have groups that `lowtide finetune` does not make; quantize the model as the run did and call "
        "lowtide.spsa.replay"
    )


def inner_weights(model: Any) -> list[str]:
    """Names of the linear weights that low-rank methods project: all that train but the output head's."""
    from torch import nn

    import lowtide.quant

    head = model.get_output_embeddings()
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if module is not head
        and (
            (isinstance(module, nn.Linear) and module.weight.requires_grad)
            or (isinstance(module, lowtide.quant.Linear) and module.weight.quant.trainable)
        )
    ]


def check_linear(model: Any, method: str) -> None:
    """Refuse a low-rank or packed method for a model that has no linear layer to use it on. Raises ModelError."""
    if not inner_weights(model):
        raise ModelError(
            f"{method} works on linear layers and {type(model).__name__} has none that train "
            "(GPT-2 keeps its own kind); use --method adamw or adamw8bit"
        )


def restore_model(model: nn.Module) -> None:
    """Turn packed layers into plain `nn.Linear` again, one at a time, in place."""
    from torch import nn

    import lowtide.quant

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, lowtide.quant.Linear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(layer.dequantize())
                plain.register_parameter("bias", layer.bias)
                setattr(parent, name, plain)


class Updater:
    """The optimizer of a run behind the few calls that the loop makes, in the backward pass or after it."""

    def __init__(self, model: nn.Module, config: FinetuneConfig) -> None:
        import lowtide.optim
        import lowtide.quant

        method = METHODS[config.method]
        kind = getattr(lowtide.optim, method.optimizer)
        if method.low_rank:
            check_linear(model, config.method)
            params: Any = lowtide.optim.param_groups(
                model,
                rank=config.rank,
                update_proj_gap=config.update_proj_gap,
                scale=config.low_rank_scale,
                # As the papers count: without the output head, whether or not it is tied to the embedding.
                target=[f"^{re.escape(name)}$" for name in inner_weights(model)],
            )
        else:
            packed = lowtide.quant.is_quant_weight
            params = [p for p in model.parameters() if (p.quant.trainable if packed(p) else p.requires_grad)]
        given = {name: value for name in ("betas", "eps") if (value := getattr(config, name)) is not None}
        optimizer = kind(
            params, lr=config.peak_lr, weight_decay=config.weight_decay, seed=config.seed, **given
        )
        self._in_backward = config.frees_gradients
        self._optimizer: Any = optimizer
        if self._in_backward:
            self._optimizer = lowtide.optim.in_backward(
                optimizer, model, max_grad_norm=config.grad_clip, refresh_from="first"
            )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter group for the next backward pass and update."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def clip(self, limit: float) -> None:
        """Scale all gradients so that their norm together is at most `limit`; within the backward pass that has happened."""
        if self._in_backward:
            return
        import torch

        from lowtide.optim import weights

        gradients = [
            g
            for group in self._optimizer.param_groups
            for p in group["params"]
            if (g := weights.gradient(p)) is not None
        ]
        factor = float(limit / (torch.nn.utils.get_total_norm(gradients) + 1e-6))
        if factor < 1:  # not for NaN: the optimizer's own policy decides about that
            torch._foreach_mul_(gradients, factor)

    def step(self) -> None:
        """Apply what the backward pass has not applied already, and drop the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def gradient_bytes(self) -> int:
        """Bytes of gradients after a backward pass; where it frees them, the most that lived at once."""
        return int(self._optimizer.state_bytes()["gradients"])

    def state_bytes(self) -> dict[str, int]:
        """Bytes of moments ("states") and of subspaces ("basis")."""
        counted = self._optimizer.state_bytes()
        return {kind: counted[kind] for kind in ("states", "basis")}

    def measured(self, due: bool) -> contextlib.AbstractContextManager[object]:
        """Around a step: measure it, if that is ``due``."""
        import lowtide.optim

        return lowtide.optim.measure(self._optimizer) if due else contextlib.nullcontext()

    def statistics(self) -> dict[str, Any]:
        """Of subspaces and low-bit weights, right after a step."""
        import lowtide.optim

        found = lowtide.optim.statistics(self._optimizer)
        return {kind: found[kind] for kind in ("subspace", "quantization") if kind in found}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state: tensors and plain values only."""
        state: dict[str, Any] = self._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state of `state_dict`."""
        self._optimizer.load_state_dict(state)
