# SPDX-License-Identifier: Apache-2.0
"""Named methods: each picks one value on every axis of the engine and says which paper it is."""

from __future__ import annotations

from lowtide.optim.presets.curvature import MFAC, AdaHessian, SophiaG, SophiaH
from lowtide.optim.presets.factored import Adafactor, AdamMini, AdamMini8bit, GaLoreAdafactor
from lowtide.optim.presets.feedback import DCTAdamW, GRASSAdamW, LDAdam
from lowtide.optim.presets.full_rank import (
    SGD,
    AdaBelief,
    AdaBelief8bit,
    AdamW,
    AdamW4bit,
    AdamW8bit,
    Lion,
    Lion8bit,
    SGD8bit,
)
from lowtide.optim.presets.galore import GaLoreAdamW, GaLoreAdamW8bit, QGaLoreAdamW
from lowtide.optim.presets.policy_gradient import HARPG, NHARPG
from lowtide.optim.presets.residual import APOLLO, FRUGAL, APOLLOMini, FiraAdamW
from lowtide.optim.presets.rules import SGDP, AdamP, DiffGrad, DiffGrad8bit, GaLore, SignSGD, Signum
from lowtide.optim.presets.tracking import Flora, GoLoreAdamW, LotusAdamW, SubTrack
from lowtide.optim.presets.weight_norm import GradNormLoRP

__all__ = [
    "APOLLO",
    "FRUGAL",
    "HARPG",
    "MFAC",
    "NHARPG",
    "SGD",
    "SGDP",
    "APOLLOMini",
    "AdaBelief",
    "AdaBelief8bit",
    "AdaHessian",
    "Adafactor",
    "AdamMini",
    "AdamMini8bit",
    "AdamP",
    "AdamW",
    "AdamW4bit",
    "AdamW8bit",
    "DCTAdamW",
    "DiffGrad",
    "DiffGrad8bit",
    "FiraAdamW",
    "Flora",
    "GRASSAdamW",
    "GaLore",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "GoLoreAdamW",
    "GradNormLoRP",
    "LDAdam",
    "Lion",
    "Lion8bit",
    "LotusAdamW",
    "QGaLoreAdamW",
    "SGD8bit",
    "SignSGD",
    "Signum",
    "SophiaG",
    "SophiaH",
    "SubTrack",
]
