# SPDX-License-Identifier: Apache-2.0
"""LoRA-GA: an adapter whose first step follows that of full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide._arrays import check_uint
from lowtide.errors import LowtideValueError
from lowtide.integrations.peft._gradients import Loss, mean_gradients, model_loss, without_adapter
from lowtide.integrations.peft._sites import Site, find_sites, only_adapter
from lowtide.integrations.peft._svd import check_svd, singular

_DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")
_SCALES = ("stable", "gd", "unit", "weightS")


@dataclass(frozen=True)
class LoRAGAReport:
    """What :func:`lora_ga_` did.

    Attributes:
        layers: names of the layers, in the order of the model.
        energy: for each, the share of the mean gradient's squared norm in its first 2 r singular directions.
        offset: for each, ``||s B A||_F / ||W0||_F``: how much of the weight moved into the adapter.
    """

    layers: tuple[str, ...]
    energy: tuple[float, ...]
    offset: tuple[float, ...]


def lora_ga_(
    model: Any,
    batches: Iterable[Any],
    loss: Loss = model_loss,
    *,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    svd: str = "randomized",
    per_pass: int | None = None,
    adapter: str | None = None,
    seed: int = 0,
) -> LoRAGAReport:
    """Initialise a fresh LoRA adapter by LoRA-GA (Wang et al., NeurIPS 2024, arXiv 2407.05000, algorithm 1), in place.

    With U S Vᵀ the mean gradient of W0, A and B are made of singular vectors, and ``W0 -= s B A``: the model computes what
    it did before, up to rounding, and the first gradient step moves it as closely as rank 2 r can to where full
    fine-tuning would. A and B are orthonormal vectors times one number each, as in the paper (peft's
    ``init_lora_weights="lora_ga"`` also multiplies B by the singular values).

    W0 changes, so PEFT's saved adapter does not fit the original model. Save the adapter before training, too,
    and let PEFT write the difference, a plain LoRA of twice the rank::

        lora_ga_(model, batches)
        model.save_pretrained("run/initial")
        ...  # training
        model.save_pretrained("run/final", path_initial_model_for_weight_conversion="run/initial")

    Args:
        model: a ``peft.PeftModel`` with an untrained LoRA adapter on ``nn.Linear`` layers.
        batches: what ``loss`` takes, a list if ``per_pass`` is given; the paper uses 64 of 2 samples.
        loss: ``loss(model, batch)`` gives a scalar; by default ``model(**batch).loss``.
        direction: ``"ArB2r"``: A from the first r right vectors, B from left vectors r+1 to 2 r; ``"A2rBr"``: the other way
            round; ``"ArBr"``: alternating; ``"random"``: two disjoint random sets of the 2 r.
        scale: ``"stable"``: A and B times ``out^(1/4) / sqrt(gamma)``; ``"gd"``: divided by s; ``"unit"``: as they are;
            ``"weightS"``: times the mean root of the weight's first r singular values over s.
        gamma: of ``"stable"``, > 0.
        svd: ``"randomized"`` or ``"exact"``.
        per_pass: how many gradients are held at a time (float32, on the CPU); each such number costs one more pass over
            the batches. ``None``: all in one pass.
        adapter: its name; the active one by default.
        seed: of the randomized SVD and of ``"random"``.

    Raises:
        LowtideImportError: peft is not installed.
        LowtideTypeError, LowtideValueError, LowtideRuntimeError: a bad argument, an adapter that is not fresh, a layer or a
            loss that cannot be used. Nothing has changed then.
    """
    for value, name, known in ((direction, "direction", _DIRECTIONS), (scale, "scale", _SCALES)):
        if value not in known:
            raise LowtideValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if not isinstance(gamma, (int, float)) or not math.isfinite(gamma) or gamma <= 0:
        raise LowtideValueError(f"gamma must be a number > 0, got {gamma!r}")
    check_svd(svd)
    seed = check_uint(seed, "seed", 63)
    adapter = only_adapter(model, adapter)
    sites = find_sites(model, adapter, rank_limit=2)
    index = {site.name: i for i, site in enumerate(sites)}
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    with without_adapter(model):
        weights = [(site.name, site.weight) for site in sites]
        for name, G in mean_gradients(model, weights, batches, loss, per_pass=per_pass):
            site = sites[index[name]]
            u, s, vh = singular(G, 2 * site.rank, svd, seed=seed, param=index[name])
            rows, columns = _choice(direction, site.rank, seed, index[name])
            by = _factor(scale, gamma, site, seed, index[name])
            whole = float(G.double().square().sum())
            energy = float(s.double().square().sum()) / whole if whole > 0 else 1.0
            found[name] = vh[rows] * by, u[:, columns] * by, energy
    with torch.no_grad():
        offsets = [_install(site, adapter, *found[site.name][:2]) for site in sites]
    return LoRAGAReport(tuple(index), tuple(found[name][2] for name in index), tuple(offsets))


def _choice(direction: str, r: int, seed: int, param: int) -> tuple[Tensor, Tensor]:
    """Which right vectors make A and which left vectors make B, r indices below 2 r each."""
    if direction == "ArBr":
        return torch.arange(1, 2 * r, 2), torch.arange(0, 2 * r, 2)
    order = torch.arange(2 * r)
    if direction == "random":
        from lowtide.random import sample

        order = torch.as_tensor(sample((2 * r,), seed=seed, param=param)).argsort()
    return (order[r:], order[:r]) if direction == "A2rBr" else (order[:r], order[r:])


def _factor(scale: str, gamma: float, site: Site, seed: int, param: int) -> float:
    if scale == "stable":
        return float(site.weight.shape[0] ** 0.25 / math.sqrt(gamma))
    if scale == "gd":
        return 1.0 / site.scaling
    if scale == "unit":
        return 1.0
    W = site.weight.detach().to("cpu", torch.float32)
    _, s, _ = singular(W, site.rank, "randomized", seed=seed, param=param)
    return float((s / site.scaling).sqrt().mean())


def _install(site: Site, adapter: str, A: Tensor, B: Tensor) -> float:
    down, up, weight = site.layer.lora_A[adapter].weight, site.layer.lora_B[adapter].weight, site.weight
    down.copy_(A)
    up.copy_(B)
    # From the adapter as it is stored, so that a bfloat16 one leaves no difference but the weight's own rounding.
    offset = site.scaling * (up.float() @ down.float()).to(weight.device)
    size = float(weight.float().norm())
    weight.copy_(weight.float() - offset)
    return float(offset.norm()) / size if size > 0 else math.inf
