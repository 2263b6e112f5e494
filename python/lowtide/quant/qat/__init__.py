# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: differentiable quantizers with the gradients that their papers publish.

Each estimator is a function over tensors and a module for :mod:`torch.nn.utils.parametrize`, so one line makes a
layer train through its quantized weight:

>>> import torch, lowtide as lt
>>> from torch.nn.utils import parametrize
>>> layer = torch.nn.Linear(8, 4)
>>> _ = parametrize.register_parametrization(layer, "weight", lt.quant.qat.StatsQ(bits=2))
>>> layer.weight.unique(dim=1).shape[0]
4

==================  ============================================  =================================================
estimator           forward                                       gradient
==================  ============================================  =================================================
:class:`StatsQ`     mid-rise levels, scale 2 mean|w| of a row     identity (OFQ, arXiv 2302.02210, section 4.1)
:class:`LSQ`        s round(clamp(w/s))                           inside the clip range 1; the scale learns too
:class:`ReSTE`      sign(w) mean|w|                               of sign(w)|w|^(1/o), o annealed from 1 to 3
:class:`BiPer`      a sign(sin(omega w))                          a omega cos(omega w)
==================  ============================================  =================================================

Around the optimizer's step: :class:`ConfidenceAnnealing` (OFQ's CGA), :class:`OscillationTracker` and
:class:`FreezeOscillating` (Nagel et al. 2022), :class:`GradientConflictFreeze` (GAQAT).
"""

from __future__ import annotations

from lowtide.quant.qat._attach import attach_, bake_, latent_weights
from lowtide.quant.qat.biper import BiPer, biper, biper_activation, biper_penalty, biper_sine, biper_tau
from lowtide.quant.qat.cga import ConfidenceAnnealing, near_boundary
from lowtide.quant.qat.gaqat import GradientConflictFreeze
from lowtide.quant.qat.lsq import LSQ, lsq, lsq_range, lsq_scale
from lowtide.quant.qat.oscillation import FreezeOscillating, OscillationTracker
from lowtide.quant.qat.reste import ReSTE, reste, reste_order
from lowtide.quant.qat.statsq import StatsQ, statsq, statsq_scale

__all__ = [
    "LSQ",
    "BiPer",
    "ConfidenceAnnealing",
    "FreezeOscillating",
    "GradientConflictFreeze",
    "OscillationTracker",
    "ReSTE",
    "StatsQ",
    "attach_",
    "bake_",
    "biper",
    "biper_activation",
    "biper_penalty",
    "biper_sine",
    "biper_tau",
    "latent_weights",
    "lsq",
    "lsq_range",
    "lsq_scale",
    "near_boundary",
    "reste",
    "reste_order",
    "statsq",
    "statsq_scale",
]
