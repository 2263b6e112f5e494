# SPDX-License-Identifier: Apache-2.0
"""From parameter groups to the manifest and the masters of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._masters import check_master
from lowtide.spsa._packed import quant_of

#: Keys of a group besides torch's own.
GROUP_KEYS = {"params", "param_names", "lr", "weight_decay", "scale", "keep", "floor", "packed", "initial_lr"}


def check_group(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse unknown keys and impossible values of a parameter group."""
    unknown = set(group) - GROUP_KEYS
    if unknown:
        raise LowtideValueError(
            f"params: unknown group keys {', '.join(sorted(unknown))}; known are {', '.join(sorted(GROUP_KEYS))}"
        )
    for key in ("lr", "weight_decay"):
        value = float(group.get(key, defaults[key]))
        if not 0.0 <= value < math.inf:
            raise LowtideValueError(f"{key} must be a finite number >= 0, got {value!r}")
    scale = group.get("scale", defaults["scale"])
    if scale not in ("norm", "rms") and not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        raise LowtideValueError(f"scale must be a finite number, 'norm' or 'rms', got {scale!r}")
    keep = group.get("keep", defaults["keep"])
    if keep is not None and not 0.0 < float(keep) <= 1.0:
        raise LowtideValueError(
            f"keep must be the fraction of elements that may move, in (0, 1], or None, got {keep!r}"
        )
    floor = float(group.get("floor", defaults["floor"]))
    if math.isnan(floor) or floor == math.inf:
        raise LowtideValueError(f"floor must be a number or -inf, got {floor!r}")


def trained(groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, Tensor, str | None]]:
    """(group, tensor, name or None) of what is trained: all but parameters that do not require grad. Packed codes never do:
    groups with ``packed`` train them."""
    found = []
    for g, group in enumerate(groups):
        names = group.get("param_names") or [None] * len(group["params"])
        for p, name in zip(group["params"], names, strict=True):
            quant = quant_of(p)
            if quant is not None:
                wanted = bool(group["packed"]) and quant.trainable
            else:
                wanted = p.requires_grad or not isinstance(p, nn.Parameter)
            if wanted:
                found.append((g, p, name))
    return found


def names_of(module: nn.Module | None) -> dict[int, list[str]]:
    """All names of each parameter and buffer of a model, by id of the tensor."""
    names: dict[int, list[str]] = {}
    if module is not None:
        for source in (module.named_parameters, module.named_buffers):
            for name, t in source(remove_duplicate=False):
                names.setdefault(id(t), []).append(name)
    return names


def threshold_of(w: Tensor, keep: float | None) -> float:
    """The magnitude below which the fraction ``keep`` of the elements lies (Sparse-MeZO, section 3.2); exact order
    statistic, representable in float32."""
    n = w.numel()
    if keep is None or keep >= 1.0 or n == 0:
        return math.inf
    k = max(1, math.ceil(keep * n))
    return float(w.detach().float().abs().flatten().kthvalue(k).values)


def _rms(w: Tensor) -> float:
    if not w.numel():
        return 0.0
    # In parts: doubles of a whole embedding would be the peak of a run.
    parts = torch.split(w.detach().reshape(-1), 1 << 20)
    return math.sqrt(sum(float(x.double().square().sum()) for x in parts) / w.numel())


def build_manifest(
    groups: Sequence[Mapping[str, Any]], masters: Sequence[Tensor], module: nn.Module | None
) -> Manifest:
    """The manifest of the trained tensors of ``groups``; ``masters`` are their values in the same order.

    ``scale="rms"`` makes s the tensor's root mean square; ``"norm"`` proportional to it, with a mean of 1 over all elements of s².
    """
    rows = trained(groups)
    by_id = names_of(module)
    for g, p, name in rows:
        if quant_of(p) is not None and (groups[g]["keep"] or groups[g]["scale"] in ("norm", "rms")):
            raise LowtideValueError(
                f"params: {name or 'a parameter'} holds packed codes, which have no magnitudes: leave out keep, 'norm' and 'rms'"
            )
    relative = any(g["scale"] == "norm" for g in groups)
    rms = [max(_rms(w), 1e-3) if relative else 1.0 for w in masters]
    sizes = [0 if w.dtype == torch.uint8 else w.numel() for w in masters]
    total = sum(sizes)
    mean = math.sqrt(sum(r * r * n for r, n in zip(rms, sizes, strict=True)) / max(total, 1))
    entries = []
    for i, ((g, p, name), w, size) in enumerate(zip(rows, masters, rms, strict=True)):
        known = by_id.get(id(p), [])
        first = name or (known[0] if known else f"param{i}")
        group = groups[g]
        scale = group["scale"]
        entries.append(
            Entry(
                name=first,
                param=i,
                shape=tuple(w.shape),
                dtype=str(w.dtype).removeprefix("torch."),
                group=g,
                # MeZO leaves out biases and norms: they are the vectors.
                decay=w.ndim >= 2,
                scale=size / mean if scale == "norm" else _rms(w) if scale == "rms" else float(scale),
                threshold=threshold_of(w, group["keep"]),
                aliases=tuple(n for n in known if n != first),
                floor=float(group["floor"]),
            )
        )
    return Manifest(tuple(entries))


def master_tensors(
    rows: Sequence[tuple[int, Tensor, str | None]], masters: str | Mapping[str, Tensor], names: Sequence[str]
) -> list[Tensor]:
    """What the run changes: the model's own tensors, float32 copies of them, or given tensors by name."""
    live = [p for _, p, _ in rows]
    if masters == "model":
        kept = [p.detach() for p in live]
    elif masters == "float32":
        kept = [p.detach().to(torch.float32, copy=True) for p in live]
    elif isinstance(masters, Mapping):
        kept = []
        for name, p in zip(names, live, strict=True):
            t = masters.get(name)
            if t is None or t.shape != p.shape:
                got = "nothing" if t is None else f"shape {tuple(t.shape)}"
                raise LowtideValueError(
                    f"masters: {name} must be a tensor of shape {tuple(p.shape)}, got {got}"
                )
            kept.append(t.detach())
    else:
        raise LowtideTypeError(
            f"masters must be 'model', 'float32' or a mapping from names to tensors, got {masters!r}"
        )
    for name, p, t in zip(names, live, kept, strict=True):
        if quant_of(p) is None:
            check_master(name, t)
    return kept
