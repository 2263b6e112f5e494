# SPDX-License-Identifier: Apache-2.0
"""Codebooks: weights as indices of learned codewords, single numbers (k-means) or short vectors (VQ).

>>> import torch, lowtide as lt
>>> w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
>>> q = lt.quant.codebook.fit(w, 256, dim=4)           # 8-bit index for 4 weights, and 256 x 4 codewords
>>> q.bits_per_weight
6.0
>>> lt.quant.codebook.fit(w, 16).bits_per_weight       # 4-bit index a weight, and 16 numbers
4.0625

Calibrating assignments and codewords together: :class:`CandidateMapping` (VQ4DiT, arXiv 2408.17131) and
:class:`JointMapping` (JLCM, arXiv 2309.17361).
"""

from __future__ import annotations

from lowtide.quant.codebook._kmeans import assign, kmeans, kmeans_init
from lowtide.quant.codebook._mapping import CandidateMapping, JointMapping, candidates, joint_mapping
from lowtide.quant.codebook._pack import pack, unpack
from lowtide.quant.codebook._tensor import Codebook, fit

__all__ = [
    "CandidateMapping",
    "Codebook",
    "JointMapping",
    "assign",
    "candidates",
    "fit",
    "joint_mapping",
    "kmeans",
    "kmeans_init",
    "pack",
    "unpack",
]
