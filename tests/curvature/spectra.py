# SPDX-License-Identifier: Apache-2.0
"""Symmetric matrices with eigenvalues that a test chooses."""

from __future__ import annotations

import torch

from lowtide.curvature import MatrixOperator


def with_eigenvalues(values, dtype=torch.float64, seed=0):
    """An operator whose eigenvectors are random and whose eigenvalues are ``values``."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    matrix = (q * values) @ q.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))
