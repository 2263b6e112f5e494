# SPDX-License-Identifier: Apache-2.0
"""Loads the kernels of CUDA tensors where this build and torch have them, and remembers why not elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch
from torch import Tensor

#: ``LOWTIDE_CUDA_OPS``: 1 loads the module whatever torch is, 0 never does.
VARIABLE = "LOWTIDE_CUDA_OPS"


def load() -> str | None:
    """Register the CUDA kernels; the reason if they cannot be, which is no error: CPU tensors work without."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "0":
        return f"{VARIABLE}=0"
    if importlib.util.find_spec("lowtide._ops_cuda") is None:
        return "this build has no CUDA ops; build from source with LOWTIDE_CUDA=ON LOWTIDE_TORCH=1"
    if wanted != "1" and torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    try:
        importlib.import_module("lowtide._ops_cuda")
    except ImportError as error:
        return f"the CUDA ops need torch 2.13 or newer, this is {torch.__version__} ({error})"
    lend_host_kernels()
    return None


def lend_host_kernels() -> None:
    """Give CUDA tensors the ops that are made of small factorizations: copied to the host, computed there, copied back.

    A refresh every few hundred steps moves one gradient over the bus, and its bits are the CPU's.
    """
    torch.library.impl("lowtide::rsvd", "cuda", _rsvd)


def _rsvd(g: Tensor, rank: int, left: bool, prev: Tensor | None, *rest: int) -> Tensor:
    here = None if prev is None else prev.cpu()
    basis: Tensor = torch.ops.lowtide.rsvd(g.cpu(), rank, left, here, *rest)
    return basis.to(g.device)


def native(device: torch.device) -> bool:
    """Whether the ops have kernels for tensors of this device."""
    return device.type == "cpu" or (device.type == "cuda" and missing is None)


#: Why ``torch.ops.lowtide`` has no CUDA kernels, or None where it has.
missing = load()
