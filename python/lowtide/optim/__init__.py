# SPDX-License-Identifier: Apache-2.0
"""Optimizers: one composition engine and the methods of the literature as presets of it.

>>> import torch, lowtide as lt
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
>>> groups = lt.optim.param_groups(model, rank=4, update_proj_gap=50, scale=1.0)
>>> opt = lt.optim.GaLoreAdamW(groups, lr=1e-2)
>>> for _ in range(3):
...     opt.zero_grad()
...     loss = model(torch.ones(4, 64)).square().mean()
...     loss.backward()
...     opt.step()
"""

from __future__ import annotations

from lowtide.errors import LowtideImportError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise LowtideImportError("lowtide.optim needs torch: pip install 'lowtide[torch]'") from error

from lowtide.optim.budget import Proposal, fit
from lowtide.optim.constraints import Constraint, NullSpace, Perpendicular, Projection
from lowtide.optim.convert import from_bitsandbytes, from_torchao, to_bitsandbytes, to_torchao
from lowtide.optim.curvature_sources import CurvatureSource, GaussNewtonBartlett, Hutchinson
from lowtide.optim.engine import Composed
from lowtide.optim.groups import head_groups, param_groups
from lowtide.optim.hessian_aided import HessianAidedMean
from lowtide.optim.in_backward import InBackward, in_backward
from lowtide.optim.memory import MemoryReport, memory
from lowtide.optim.newton import GradNormSmooth, NewtonStep
from lowtide.optim.parametrizations import WeightNorm
from lowtide.optim.presets import (
    APOLLO,
    FRUGAL,
    HARPG,
    MFAC,
    NHARPG,
    SGD,
    SGDP,
    AdaBelief,
    AdaBelief8bit,
    Adafactor,
    AdaHessian,
    AdamMini,
    AdamMini8bit,
    AdamP,
    AdamW,
    AdamW4bit,
    AdamW8bit,
    APOLLOMini,
    DCTAdamW,
    DiffGrad,
    DiffGrad8bit,
    FiraAdamW,
    Flora,
    GaLore,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreAdamW8bit,
    GoLoreAdamW,
    GradNormLoRP,
    GRASSAdamW,
    LDAdam,
    Lion,
    Lion8bit,
    LotusAdamW,
    QGaLoreAdamW,
    SGD8bit,
    SignSGD,
    Signum,
    SophiaG,
    SophiaH,
    SubTrack,
)
from lowtide.optim.refresh import Displacement, EveryT, LazyDoubling, RefreshRequest
from lowtide.optim.residuals import (
    Drop,
    ErrorFeedback,
    Residual,
    ScaledGradient,
    ScaledResidual,
    SignResidual,
)
from lowtide.optim.rules import (
    AdaBeliefRule,
    AdamRule,
    DiffGradRule,
    GradientRule,
    LionRule,
    Rule,
    SGDRule,
    SignRule,
)
from lowtide.optim.rules_curvature import AdaHessianRule, SophiaRule
from lowtide.optim.rules_factored import AdafactorRule, AdamMiniRule
from lowtide.optim.scale_invariant import ScaleInvariant
from lowtide.optim.sharpness import SAM
from lowtide.optim.stablemax import StableMaxCrossEntropy, log_stablemax, stablemax
from lowtide.optim.statistics import Measurement, measure, statistics
from lowtide.optim.stores import BasisStore, StateStore
from lowtide.optim.subspaces import (
    Cosines,
    ExactSVD,
    PowerQR,
    RandomElements,
    RandomGaussian,
    RandomHadamard,
    RandomIndices,
    RandomizedSVD,
    RandomOrthonormal,
    RandomRademacher,
    SampledIndices,
    Subspace,
    TopIndices,
)
from lowtide.optim.subspaces_blocks import Blocks
from lowtide.optim.subspaces_tracking import Fixed, Grassmann, Switch
from lowtide.optim.transforms import GradientTransform, InverseFisher
from lowtide.optim.transports import Reproject, Reset, Rotate, Stale, Transport

__all__ = [
    "APOLLO",
    "FRUGAL",
    "HARPG",
    "MFAC",
    "NHARPG",
    "SAM",
    "SGD",
    "SGDP",
    "APOLLOMini",
    "AdaBelief",
    "AdaBelief8bit",
    "AdaBeliefRule",
    "AdaHessian",
    "AdaHessianRule",
    "Adafactor",
    "AdafactorRule",
    "AdamMini",
    "AdamMini8bit",
    "AdamMiniRule",
    "AdamP",
    "AdamRule",
    "AdamW",
    "AdamW4bit",
    "AdamW8bit",
    "BasisStore",
    "Blocks",
    "Composed",
    "Constraint",
    "Cosines",
    "CurvatureSource",
    "DCTAdamW",
    "DiffGrad",
    "DiffGrad8bit",
    "DiffGradRule",
    "Displacement",
    "Drop",
    "ErrorFeedback",
    "EveryT",
    "ExactSVD",
    "FiraAdamW",
    "Fixed",
    "Flora",
    "GRASSAdamW",
    "GaLore",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "GaussNewtonBartlett",
    "GoLoreAdamW",
    "GradNormLoRP",
    "GradNormSmooth",
    "GradientRule",
    "GradientTransform",
    "Grassmann",
    "HessianAidedMean",
    "Hutchinson",
    "InBackward",
    "InverseFisher",
    "LDAdam",
    "LazyDoubling",
    "Lion",
    "Lion8bit",
    "LionRule",
    "LotusAdamW",
    "Measurement",
    "MemoryReport",
    "NewtonStep",
    "NullSpace",
    "Perpendicular",
    "PowerQR",
    "Projection",
    "Proposal",
    "QGaLoreAdamW",
    "RandomElements",
    "RandomGaussian",
    "RandomHadamard",
    "RandomIndices",
    "RandomOrthonormal",
    "RandomRademacher",
    "RandomizedSVD",
    "RefreshRequest",
    "Reproject",
    "Reset",
    "Residual",
    "Rotate",
    "Rule",
    "SGD8bit",
    "SGDRule",
    "SampledIndices",
    "ScaleInvariant",
    "ScaledGradient",
    "ScaledResidual",
    "SignResidual",
    "SignRule",
    "SignSGD",
    "Signum",
    "SophiaG",
    "SophiaH",
    "SophiaRule",
    "StableMaxCrossEntropy",
    "Stale",
    "StateStore",
    "SubTrack",
    "Subspace",
    "Switch",
    "TopIndices",
    "Transport",
    "WeightNorm",
    "fit",
    "from_bitsandbytes",
    "from_torchao",
    "head_groups",
    "in_backward",
    "log_stablemax",
    "measure",
    "memory",
    "param_groups",
    "stablemax",
    "statistics",
    "to_bitsandbytes",
    "to_torchao",
]
