# SPDX-License-Identifier: Apache-2.0
"""LoRA-SB: an adapter of r² trained numbers whose steps are those of full fine-tuning, projected."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowtide._arrays import check_uint
from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideValueError
from lowtide.integrations.peft._gradients import Loss, mean_gradients, model_loss, without_adapter
from lowtide.integrations.peft._sites import find_sites, lora_layers, only_adapter
from lowtide.integrations.peft._svd import check_svd, singular

#: PEFT's name of the file that ``save_pretrained`` writes.
_FILE = "adapter_model.safetensors"


class FixedLinear(nn.Module):
    """``y = A x`` with A (rank, in) a buffer: PEFT may ask for gradients of all adapters, this one has none to give."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., rank)."""
        return nn.functional.linear(x, self.weight)


class LatentLinear(nn.Module):
    """``y = B R x`` with B (out, rank) a buffer, orthonormal columns, and R (rank, rank) trained.

    To PEFT it is a layer with the weight ``B R``: merging, and loading what was saved without this library, just work.
    ``state_dict`` holds that weight, and B and R besides.

    Attributes:
        basis: B. latent: R. gradient_scale: the gradient of R is multiplied by it.
    """

    basis: Tensor
    bias = None

    def __init__(self, basis: Tensor, latent: Tensor, gradient_scale: float) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.latent = nn.Parameter(latent)
        self.gradient_scale = gradient_scale

    @property
    def weight(self) -> Tensor:
        """B R, (out, rank)."""
        return self.basis @ self._latent()

    def _latent(self) -> Tensor:
        # The same value, another gradient: what is added is exactly zero.
        fixed = self.latent.detach()
        return fixed + (self.latent - fixed) * self.gradient_scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., rank) -> (..., out)."""
        return nn.functional.linear(nn.functional.linear(x, self._latent()), self.basis)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        if prefix + "weight" in state_dict and prefix + "latent" not in state_dict:
            errors.append(
                f"{prefix}weight is that of a plain LoRA adapter and this one is LoRA-SB's: load it into a new peft model"
            )
            return
        rest = {k: v for k, v in state_dict.items() if k != prefix + "weight"}
        super()._load_from_state_dict(rest, prefix, metadata, strict, missing, unexpected, errors)


def lora_sb_(
    model: Any,
    batches: Iterable[Any],
    loss: Loss = model_loss,
    *,
    lr: float,
    update: str = "sign",
    svd: str = "randomized",
    per_pass: int | None = None,
    adapter: str | None = None,
    seed: int = 0,
) -> Any:
    """Turn a fresh LoRA adapter into one of LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557, sections 3.2 to 3.4), in place.

    The weight becomes ``W0 + s B R A``; only R, r × r, is trained. With ``dW`` the first step of full fine-tuning, and U S Vᵀ
    its best approximation of rank r, ``B = U``, ``A = Vᵀ`` and ``R = S / s``: the adapter starts where that step leads, so the
    model's function changes. R's gradient is divided by s²: a step of R then moves the weight by the projection
    ``B Bᵀ G Aᵀ A`` of the full gradient G, whatever s is (theorem 3 there; the inverses of BᵀB and A Aᵀ are identities).

    ``save_pretrained`` writes a plain LoRA adapter that PEFT loads anywhere, with R and B beside it, from which
    :func:`restore_lora_sb_` makes it trainable again.

    Args:
        model: a ``peft.PeftModel`` with an untrained LoRA adapter on ``nn.Linear`` layers.
        batches: what ``loss`` takes, a list if ``per_pass`` is given; the paper uses 50 to 170 samples.
        loss: ``loss(model, batch)`` gives a scalar; by default ``model(**batch).loss``.
        lr: of the first step, > 0. The paper's code takes the training's over the number of warm-up steps.
        update: ``"sign"``: ``dW = -lr sign(mean gradient)``, as Adam's first step is; ``"gradient"``: ``-lr`` times it.
        svd: ``"randomized"`` or ``"exact"``; a matrix of signs has a flat spectrum, of which the randomized one with its three
            iterations finds most.
        per_pass, adapter, seed: as in :func:`lora_ga_`.

    Returns:
        ``model``.

    Raises:
        LowtideImportError: peft is not installed.
        LowtideTypeError, LowtideValueError, LowtideRuntimeError: a bad argument, an adapter that is not fresh, a layer or a
            loss that cannot be used. Nothing has changed then.
    """
    if not isinstance(lr, (int, float)) or isinstance(lr, bool) or not math.isfinite(lr) or lr <= 0:
        raise LowtideValueError(f"lr must be a number > 0, got {lr!r}")
    if update not in ("sign", "gradient"):
        raise LowtideValueError(f"update must be 'sign' or 'gradient', got {update!r}")
    check_svd(svd)
    seed = check_uint(seed, "seed", 63)
    adapter = only_adapter(model, adapter)
    sites = find_sites(model, adapter)
    for site in sites:
        _check_plain(site.name, site.layer, adapter, site.scaling)
    index = {site.name: i for i, site in enumerate(sites)}
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with without_adapter(model):
        weights = [(site.name, site.weight) for site in sites]
        for name, G in mean_gradients(model, weights, batches, loss, per_pass=per_pass):
            step = (G.sign() if update == "sign" else G).mul_(-lr)
            u, s, vh = singular(step, sites[index[name]].rank, svd, seed=seed, param=index[name])
            found[name] = u, s.diag() / sites[index[name]].scaling, vh
    for site in sites:
        _install(site.layer, adapter, *found[site.name])
    return model


def restore_lora_sb_(model: Any, directory: str | os.PathLike[str], *, adapter: str | None = None) -> Any:
    """Make a saved LoRA-SB adapter trainable as it was: B and A fixed, R to be trained.

    ::

        model = peft.PeftModel.from_pretrained(base, "run", is_trainable=True)
        lt.integrations.peft.restore_lora_sb_(model, "run")

    Args:
        model: what PEFT loaded from ``directory``; without this call it is a plain LoRA adapter.
        directory: where ``save_pretrained`` wrote the adapter.
        adapter: its name; the active one by default.

    Returns:
        ``model``.

    Raises:
        LowtideRuntimeError: the file cannot be read or is damaged.
        LowtideTypeError, LowtideValueError: no LoRA-SB adapter, or one of another model. Nothing has changed then.
    """
    adapter = only_adapter(model, adapter)
    path = Path(directory) / _FILE
    stored = _read(path)
    found: list[tuple[Any, Tensor, Tensor, Tensor]] = []
    for name, layer in lora_layers(model, adapter):
        _check_plain(name, layer, adapter, float(layer.scaling[adapter]))
        down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        if f"{name}.lora_B.latent" not in stored or f"{name}.lora_B.basis" not in stored:
            raise LowtideValueError(
                f"directory: {path} has no LoRA-SB factors for {name}; it is a plain LoRA adapter"
            )
        basis, latent = stored[f"{name}.lora_B.basis"].to(up), stored[f"{name}.lora_B.latent"].to(up)
        r = down.shape[0]
        if basis.shape != up.shape or latent.shape != (r, r):
            raise LowtideValueError(
                f"directory: {path} has factors {tuple(basis.shape)} and {tuple(latent.shape)} for {name}, and the adapter "
                f"takes {tuple(up.shape)} and {(r, r)}; load that adapter first"
            )
        # The product was rounded once more than its factors.
        near = 1e-5 if up.dtype == torch.float32 else 2e-2
        size = float(up.float().norm()) + 1e-30
        if not float((basis.float() @ latent.float() - up.float()).norm()) <= near * size:
            raise LowtideValueError(
                f"directory: the factors of {name} in {path} do not multiply to the adapter's weight; load it with "
                "peft.PeftModel.from_pretrained from there first"
            )
        found.append((layer, basis, latent, down))
    for layer, basis, latent, down in found:
        _install(layer, adapter, basis, latent, down)
    return model


def _check_plain(name: str, layer: Any, adapter: str, scaling: float) -> None:
    if layer.lora_bias.get(adapter, False):
        raise LowtideValueError(f"{name} has a bias in its adapter; make it with lora_bias=False")
    if scaling == 0:
        raise LowtideValueError(f"{name} has a scaling of 0; give LoraConfig a lora_alpha that is not 0")
    if type(layer.lora_A[adapter]) is not nn.Linear:
        raise LowtideValueError(
            f"{name} is a {type(layer.lora_A[adapter]).__name__} already, not a plain adapter"
        )


def _install(layer: Any, adapter: str, basis: Tensor, latent: Tensor, down: Tensor) -> None:
    like = layer.lora_A[adapter].weight
    place = {"device": like.device, "dtype": like.dtype}
    scale = 1.0 / float(layer.scaling[adapter]) ** 2
    layer.lora_A[adapter] = FixedLinear(down.detach().to(**place, copy=True).contiguous())
    layer.lora_B[adapter] = LatentLinear(
        basis.detach().to(**place, copy=True).contiguous(), latent.detach().to(**place, copy=True), scale
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter file by the names of their layers."""
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError:
        raise LowtideImportError(
            "restore_lora_sb_ needs safetensors; run: pip install 'lowtide[peft]'"
        ) from None
    if not path.is_file():
        raise LowtideRuntimeError(f"directory: there is no file {path}; save_pretrained writes it")
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LowtideRuntimeError(
            f"directory: {path} cannot be read ({what}); it is damaged, copy it again"
        ) from error
