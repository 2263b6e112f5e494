# SPDX-License-Identifier: Apache-2.0
"""What the wrappers of the ops share: in-place changes told to autograd, fake kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

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


def fake(name: str) -> Callable[[_Kernel], _Kernel]:
    """Register the fake kernel of an op: what ``torch.library.register_fake`` does.

    torch notes from which line that is called and searches all loaded modules once for each file; called from here,
    it searches once and not once a module of this package, which was a third of the import time.
    """

    def register(kernel: _Kernel) -> _Kernel:
        torch.library.register_fake(name, kernel)
        return kernel

    return register
