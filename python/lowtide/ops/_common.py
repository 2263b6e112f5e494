# SPDX-License-Identifier: Apache-2.0
"""What every mutating wrapper does around its op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError

_increment = torch.autograd.graph.increment_version


def check_mutable(tensors: Sequence[Tensor], name: str) -> None:
    """Refuse an in-place change of a leaf that requires grad while autograd records."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad and t.is_leaf:
                raise LowtideRuntimeError(
                    f"{name} is a leaf tensor that requires grad and would be changed in place; "
                    "call this under torch.no_grad()"
                )


def mutated(*tensors: Tensor) -> None:
    """Bump version counters: stable-ABI kernels do not, and autograd would not notice the change."""
    for t in tensors:
        _increment(t)
