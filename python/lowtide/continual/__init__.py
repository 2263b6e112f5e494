# SPDX-License-Identifier: Apache-2.0
"""Continual learning without replay: each task is trained where it does not disturb those before.

A memory looks at a layer's inputs after each task and gives the optimizer of the next one a constraint
(:class:`lowtide.optim.NullSpace`). Any optimizer of :mod:`lowtide.optim` takes it.
"""

from __future__ import annotations

from lowtide.errors import LowtideImportError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise LowtideImportError("lowtide.continual needs torch: pip install 'lowtide[torch]'") from error

from lowtide.continual._memory import Memory
from lowtide.continual.cuber import CUBER
from lowtide.continual.gpm import GPM, SGP
from lowtide.continual.metrics import Transfer, transfer
from lowtide.continual.null_space import NSGP, AdamNSCL
from lowtide.continual.osf import OSF, OSFLinear, factorize_, merge_
from lowtide.continual.trust import TRGP

__all__ = [
    "CUBER",
    "GPM",
    "NSGP",
    "OSF",
    "SGP",
    "TRGP",
    "AdamNSCL",
    "Memory",
    "OSFLinear",
    "Transfer",
    "factorize_",
    "merge_",
    "transfer",
]
