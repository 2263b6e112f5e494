# SPDX-License-Identifier: Apache-2.0
"""Curvature of a loss: products with its Hessian, and what follows from them, with error bars."""

from __future__ import annotations

from lowtide.curvature._heads import CEHead, LogisticHead, MSEHead
from lowtide.curvature._lanczos import Eigen, eigsh
from lowtide.curvature._layout import Layout, Vector
from lowtide.curvature._linear_operator import LinearOperator, MatrixOperator

__all__ = [
    "CEHead",
    "Eigen",
    "Layout",
    "LinearOperator",
    "LogisticHead",
    "MSEHead",
    "MatrixOperator",
    "Vector",
    "eigsh",
]
