# SPDX-License-Identifier: Apache-2.0
"""Curvature of a loss: products with its Hessian, and what follows from them, with error bars."""

from __future__ import annotations

from lowtide.curvature import compat
from lowtide.curvature._check import OperatorCheck
from lowtide.curvature._coherence import Coherence, coherence
from lowtide.curvature._connectivity import LossPath, barrier, bezier
from lowtide.curvature._diagonal import DiagonalResult, diagonal
from lowtide.curvature._fisher import FisherOperator
from lowtide.curvature._gblm import PruningStatistics, pruning_statistics
from lowtide.curvature._ggn import GGNOperator
from lowtide.curvature._heads import CEHead, LogisticHead, MSEHead
from lowtide.curvature._hessian import HessianOperator
from lowtide.curvature._lanczos import Eigen, eigsh
from lowtide.curvature._landscape import Landscape, landscape
from lowtide.curvature._layout import Layout, Vector
from lowtide.curvature._linear_ce import linear_cross_entropy
from lowtide.curvature._linear_operator import LinearOperator, MatrixOperator
from lowtide.curvature._mfac import MFAC, StaticMFAC
from lowtide.curvature._problem import Problem
from lowtide.curvature._pruning import obd_saliency, obs_saliency, obs_update, prune_mask
from lowtide.curvature._scores import VarianceOfGradients, variance_of_gradients
from lowtide.curvature._slq import slq
from lowtide.curvature._spectrum import Criteria, Estimate, Outliers, Spectrum
from lowtide.curvature._stability import StabilityReport, batch_sharpness, stability_report
from lowtide.curvature._trace import BlockTrace, TraceResult, trace

__all__ = [
    "MFAC",
    "BlockTrace",
    "CEHead",
    "Coherence",
    "Criteria",
    "DiagonalResult",
    "Eigen",
    "Estimate",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "Landscape",
    "Layout",
    "LinearOperator",
    "LogisticHead",
    "LossPath",
    "MSEHead",
    "MatrixOperator",
    "OperatorCheck",
    "Outliers",
    "Problem",
    "PruningStatistics",
    "Spectrum",
    "StabilityReport",
    "StaticMFAC",
    "TraceResult",
    "VarianceOfGradients",
    "Vector",
    "barrier",
    "batch_sharpness",
    "bezier",
    "coherence",
    "compat",
    "diagonal",
    "eigsh",
    "landscape",
    "linear_cross_entropy",
    "obd_saliency",
    "obs_saliency",
    "obs_update",
    "prune_mask",
    "pruning_statistics",
    "slq",
    "stability_report",
    "trace",
    "variance_of_gradients",
]
