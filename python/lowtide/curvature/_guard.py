# SPDX-License-Identifier: Apache-2.0
"""What evaluating a loss may not leave behind: modes, random states, global switches, all put back at the end.

Parameters and buffers need no guard: the model runs on tensors swapped in by :func:`torch.func.functional_call`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class RandomState:
    """States of the generators that a model, a loss or a data loader may draw from, and their fixed seeds.

    Args:
        devices: whose generators besides the CPU's count.
        generators: others, such as a data loader's own.
    """

    def __init__(self, devices: Iterable[torch.device], generators: Iterable[torch.Generator]) -> None:
        self._all = [torch.default_generator, *generators]
        cuda = {d.index or 0 for d in devices if d.type == "cuda"}
        self._all += [torch.cuda.default_generators[i] for i in sorted(cuda)]
        self._states = [g.get_state() for g in self._all]
        self._python, self._numpy = random.getstate(), np.random.get_state()

    def seed(self, number: int) -> None:
        """Let torch's generators start at ``number``; Python's and NumPy's too."""
        for g in self._all:
            g.manual_seed(number)
        random.seed(number)
        np.random.seed(number & 0xFFFFFFFF)

    def restore(self) -> None:
        """What they were when this object was made."""
        for g, state in zip(self._all, self._states, strict=True):
            g.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def modes(model: nn.Module, state: str) -> Iterator[None]:
    """With ``state="eval"``: every module in evaluation mode; afterwards each in the mode it had.

    Flags are set directly: ``train()`` and ``eval()`` may be overridden to do more, which could not be undone.
    """
    flags = [(m, m.training) for m in model.modules()]
    try:
        if state == "eval":
            for m, _ in flags:
                m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training


@contextmanager
def exact_derivatives(sdpa: str, cuda: bool, exact: bool) -> Iterator[None]:
    """Switches of torch that products need.

    Fused attention kernels have no second derivative, so exact products run attention by its formula (``sdpa="math"``) and
    ``nn.TransformerEncoderLayer`` without its fast path. On CUDA, TF32 is off: its rounding would drown a finite difference.
    """
    with ExitStack() as stack:
        if exact and sdpa == "math":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        if cuda:
            backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
                backend.allow_tf32 = False
        yield


def generators_of(data: object) -> list[torch.Generator]:
    """A data loader's own generators: its order must be the same in each pass, and go on afterwards where it was."""
    holders = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    holders.append(getattr(holders[2], "sampler", None))
    found = [g for g in (getattr(h, "generator", None) for h in holders) if isinstance(g, torch.Generator)]
    return list({id(g): g for g in found}.values())
