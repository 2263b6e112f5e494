# SPDX-License-Identifier: Apache-2.0
"""Where torch.compile stops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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


_lock = threading.Lock()
_within = 0
_before: Any = None


@contextmanager
def hooks_seen() -> Iterator[None]:
    """While this is active, compiled functions run uncompiled: hooks that came after a graph are not in it, and left out in silence.

    The stance is the whole process's, and contexts of several optimizers or threads overlap and end in any order: they are counted,
    the first sets it and the last takes it back.
    """
    global _within, _before
    with _lock:
        if _within == 0:
            _before = torch.compiler.set_stance("force_eager")  # at once; its exit puts back what was
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                _before.__exit__(None, None, None)
                _before = None
