# SPDX-License-Identifier: Apache-2.0
"""Where torch.compile stops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

# The lazy form: torch.compiler.disable imports torch._dynamo, half a second, where it decorates.
_disable: Any = getattr(torch, "_disable_dynamo", None) or torch.compiler.disable


def uncompiled(function: F) -> F:
    """Keep torch.compile out of ``function``: a graph ends before it. Compiled functions that it calls stay compiled.

    For steps of optimizers: kernels over lists of tensors, in which there is nothing to fuse, addressed by counters that a graph would
    be compiled anew for, and around them rounding that a fused kernel would change.
    """
    wrapped: F = _disable(function)
    return wrapped


def hooks_seen() -> AbstractContextManager[None]:
    """While this is active, compiled functions run uncompiled: hooks that came after a graph are not in it, and left out in silence."""
    stance: Any = torch.compiler.set_stance("force_eager")
    return cast("AbstractContextManager[None]", stance)
