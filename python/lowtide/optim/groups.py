# SPDX-License-Identifier: Apache-2.0
"""Parameter groups in GaLore's vocabulary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lowtide.errors import LowtideValueError

PROJ_TYPES = ("std", "reverse_std", "left", "right", "full")


LOW_RANK_KEYS = ("rank", "update_proj_gap", "scale", "proj_type")
#: Keys that torch, its schedulers, samplers of learning rates and users put into groups; no update depends on them.
_FOREIGN_KEYS = (
    "params", "param_names", "param_ids", "name", "initial_lr", "min_lr", "max_lr", "swa_lr", "lr_scale",
    "base_momentum", "max_momentum",
)  # fmt: skip
#: What other libraries call it, and where it is here.
_ELSEWHERE = {
    "alpha": "it is called scale here",
    "density": "give rank as a fraction",
    "proj": "it is an argument of APOLLO",
    "scale_type": "it is an argument of APOLLO",
    "quant": "bases are packed by QGaLoreAdamW",
    "quant_n_bit": "it is called proj_bits, an argument of QGaLoreAdamW",
    "quant_group_size": "it is called proj_group_size, an argument of QGaLoreAdamW",
    "cos_threshold": "it is an argument of QGaLoreAdamW",
    "gamma_proj": "it is an argument of QGaLoreAdamW",
    "queue_size": "it is an argument of QGaLoreAdamW",
}


def check_known(group: Mapping[str, Any], own: Iterable[str]) -> None:
    """Refuse keys that nothing would read; ``own`` are those of the optimizer."""
    known = [*own, *LOW_RANK_KEYS, *_FOREIGN_KEYS]
    for key in group:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, 1)
        remedy = _ELSEWHERE.get(key) or (f"did you mean {near[0]!r}?" if near else "leave it out")
        raise LowtideValueError(
            f"group key {key!r} is not known; groups take {', '.join(sorted({*own, *LOW_RANK_KEYS}))}: {remedy}"
        )


def check_rank(rank: Any) -> None:
    """Refuse what is neither a number of directions nor a fraction of the shorter side."""
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole and not (isinstance(rank, float) and 0.0 < rank < 1.0):
        raise LowtideValueError(
            f"rank must be an integer >= 1 or a fraction of the shorter side in (0, 1), got {rank!r}; leave the key out "
            "for full-rank parameters"
        )


def check_low_rank_keys(group: dict[str, Any]) -> None:
    """Validate rank, update_proj_gap, scale and proj_type of a group."""
    check_rank(group["rank"])
    gap = group.get("update_proj_gap", 200)
    if not isinstance(gap, int) or isinstance(gap, bool) or gap < 1:
        raise LowtideValueError(f"update_proj_gap must be an integer >= 1 (steps), got {gap!r}")
    if group.get("proj_type", "std") not in PROJ_TYPES:
        raise LowtideValueError(
            f"proj_type must be one of {', '.join(PROJ_TYPES)}, got {group['proj_type']!r}"
        )
    scale = group.get("scale", 1.0)
    if not isinstance(scale, (int, float)) or not 0.0 < float(scale) < float("inf"):
        raise LowtideValueError(f"scale must be a finite number > 0, got {scale!r}")


def rank_of(rank: int | float, rows: int, cols: int) -> int:
    """The number of directions that ``rank`` (a number or a fraction) means for a matrix."""
    short = min(rows, cols)
    return min(rank, short) if isinstance(rank, int) else max(1, round(rank * short))


def param_groups(
    model: nn.Module,
    rank: int | float = 128,
    *,
    update_proj_gap: int | None = None,
    scale: float | None = None,
    proj_type: str | None = None,
    target: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into low-rank and full-rank groups.

    Low rank go the weights of linear layers (``nn.Linear`` and ``lt.quant.Linear``) but an output head that shares its
    weight with an embedding; everything else (embeddings, norms, biases) trains at full rank, as in the GaLore recipes.

    Args:
        model: any module.
        rank: rank of the subspace; clamped per matrix to its smaller side. Or a fraction of that side, in (0, 1).
        update_proj_gap: steps between refreshes of a subspace. Default: the optimizer's own (200 for GaLore).
        scale: multiplies the back-projected update (GaLore's alpha). Default: the optimizer's own (0.25 for GaLore).
        proj_type: ``"std"`` projects the shorter side; ``"reverse_std"``, ``"left"``, ``"right"``, ``"full"`` (both: moments
            are rank x rank, two bases are kept) as in galore-torch. Default: the optimizer's own (``"full"`` for GradNormLoRP,
            else ``"std"``).
        target: regular expressions searched in parameter names: only these linear weights go low rank. Default: all.

    Returns:
        Groups for any optimizer of :mod:`lowtide.optim`; each carries ``param_ids``, the positions in
        ``model.named_parameters()`` that address random numbers.

    Raises:
        LowtideValueError: a bad key, or ``target`` matches no linear weight.
    """
    from lowtide.quant import is_quant_weight

    keys: dict[str, Any] = {"rank": rank}
    if proj_type is not None:
        keys["proj_type"] = proj_type
    if update_proj_gap is not None:
        keys["update_proj_gap"] = update_proj_gap
    if scale is not None:
        keys["scale"] = float(scale)
    check_low_rank_keys(keys)
    patterns = [target] if isinstance(target, str) else list(target or [""])
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    linear = {
        id(m.weight)
        for m in model.modules()
        if isinstance(getattr(m, "weight", None), nn.Parameter)
        and (isinstance(m, nn.Linear) or is_quant_weight(m.weight))
    }
    low: dict[str, Any] = {"params": [], "param_names": [], "param_ids": [], **keys}
    full: dict[str, Any] = {"params": [], "param_names": [], "param_ids": []}
    for index, (name, p) in enumerate(model.named_parameters()):
        if not (p.quant.trainable if is_quant_weight(p) else p.requires_grad):
            continue
        is_low = id(p) in linear - embeddings and any(re.search(pattern, name) for pattern in patterns)
        group = low if is_low else full
        group["params"].append(p)
        group["param_names"].append(name)
        group["param_ids"].append(index)
    if not low["params"]:
        raise LowtideValueError(
            f"target {target!r} matches no linear weight of {type(model).__name__}; use full-rank parameters instead"
        )
    return [g for g in (low, full) if g["params"]]


def head_groups(
    model: nn.Module,
    heads: int,
    kv_heads: int | None = None,
    *,
    query: str = r"(q_proj|wq|query)\.weight$",
    key: str = r"(k_proj|wk|key)\.weight$",
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters for :class:`~lowtide.optim.AdamMini`: query and key weights get one second moment a
    head, everything else one a row.

    Args:
        model: any module. heads: attention heads of a query weight, whose rows they divide.
        kv_heads: of a key weight; ``heads`` unless given.
        query, key: regular expressions searched in parameter names.

    Returns:
        Groups that carry ``param_ids``, the positions in ``model.named_parameters()``, and ``blocks`` where heads count.

    Raises:
        LowtideValueError: heads that do not divide the rows of a weight, or no weight with these names.
    """
    for count, what in ((heads, "heads"), (heads if kv_heads is None else kv_heads, "kv_heads")):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise LowtideValueError(f"{what} must be an integer >= 1, got {count!r}")
    kinds = [(query, heads), (key, heads if kv_heads is None else kv_heads)]
    groups: dict[int, dict[str, Any]] = {}
    for index, (name, p) in enumerate(model.named_parameters()):
        if not p.requires_grad:
            continue
        blocks = next((n for pattern, n in kinds if re.search(pattern, name)), 0)
        if blocks and p.shape[0] % blocks:
            raise LowtideValueError(
                f"heads must divide the rows of {name}, got {blocks} for shape {tuple(p.shape)}"
            )
        empty: dict[str, Any] = {"params": [], "param_names": [], "param_ids": [], "blocks": blocks}
        group = groups.setdefault(blocks, empty)
        group["params"].append(p)
        group["param_names"].append(name)
        group["param_ids"].append(index)
    if not any(groups):
        raise LowtideValueError(
            f"no weight of {type(model).__name__} is called like a query or key; give query and key patterns"
        )
    return list(groups.values())
