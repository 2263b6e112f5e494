# SPDX-License-Identifier: Apache-2.0
"""Batteries of checks to hold your own code against, the ones that this library holds itself against.

>>> import torch, lowtide as lt
>>> lt.testing.optimizer_contract(lambda params, **k: torch.optim.AdamW(params, **{"lr": 1e-2, **k}))
"""

from __future__ import annotations

from lowtide.errors import LowtideImportError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise LowtideImportError("lowtide.testing needs torch: pip install 'lowtide[torch]'") from error

from lowtide.testing.optimizer import OPTIMIZER_CHECKS, optimizer_contract

__all__ = ["OPTIMIZER_CHECKS", "optimizer_contract"]
