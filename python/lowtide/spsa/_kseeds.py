# SPDX-License-Identifier: Apache-2.0
"""FedKSeed (2312.06353): all directions of a run come from K seeds, so its history is K numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.spsa._masters import Masters
from lowtide.spsa._schedule import KSEED_STEP, StepUpdate, float32


def rebuild_(masters: Masters, base: Sequence[Tensor], accumulators: NDArray[np.float64], lr: float) -> None:
    """Make the weights from where they began: ``w = w0 - lr sum_k A_k z_k``, K regenerations whatever the number of steps.

    This is what FedKSeed's server does each round. It equals the steps one by one but for rounding: the run that is to
    be equal on several machines must rebuild on all of them.

    Args:
        masters: overwritten; their method has ``seeds`` = K.
        base: the tensors w0 in the manifest's order, of the masters' shapes and dtypes.
        accumulators: float64, (K,): sums of the slopes of each seed.
        lr: the run's learning rate.

    Raises:
        LowtideValueError: K or a tensor does not fit; nothing was changed.
    """
    k = masters.method.seeds
    if k == 0 or accumulators.shape != (k,) or not np.isfinite(accumulators).all():
        raise LowtideValueError(f"accumulators must be {k} finite numbers, got shape {accumulators.shape}")
    if [(t.shape, t.dtype) for t in base] != [(t.shape, t.dtype) for t in masters.tensors]:
        raise LowtideValueError("base must be the tensors the run began with, in the manifest's order")
    used = np.flatnonzero(accumulators)
    directions = tuple((KSEED_STEP, int(i), float32(-lr * float(accumulators[i]))) for i in used)
    groups = 1 + max(e.group for e in masters.manifest)
    more = tuple((1.0, tuple(c for _, _, c in directions)) for _ in range(groups - 1))
    with torch.no_grad():
        for t, w0 in zip(masters.tensors, base, strict=True):
            t.copy_(w0)
    masters.apply([StepUpdate(0, 1.0, directions, more)])
