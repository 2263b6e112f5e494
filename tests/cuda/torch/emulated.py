# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of `torch.ops.lowtide` with no GPU.

`_ops_emulated` (cmake/torch_cuda.cmake) registers the object files of `_ops_cuda` for the key CUDA, but runs the PTX
of their kernels on the CPU and takes CPU tensors for a device's; a redispatch to that key reaches them. Kernels may
touch the tensors of their call only, and new memory holds NaNs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

import lowtide.ops
from lowtide.ops._cuda import lend_host_kernels

MODULE = Path(
    os.environ.get("LOWTIDE_EMULATED_OPS")
    or Path(__file__).parents[3] / "build" / "cuda" / "_ops_emulated.abi3.so"
)
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

assert lowtide.ops is not None  # the schemas


def load() -> None:
    """Register the kernels, once a process."""
    if not has_kernel("random_sample"):
        loader = importlib.machinery.ExtensionFileLoader("_ops_emulated", str(MODULE))
        spec = importlib.util.spec_from_file_location("_ops_emulated", MODULE, loader=loader)
        assert spec is not None
        loader.exec_module(importlib.util.module_from_spec(spec))
        lend_host_kernels()


def has_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lowtide::{name}", "CUDA")


def on_device(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """What the op's CUDA kernel makes of these tensors."""
    return op.redispatch(_CUDA, *args, **(kwargs or {}))


def copied(tree: Any) -> Any:
    """Tensors cloned with their strides and offsets from an aligned address; one that comes twice stays one."""
    seen: dict[int, torch.Tensor] = {}

    def copy(t: torch.Tensor) -> torch.Tensor:
        if id(t) not in seen:
            storage = t.detach().untyped_storage().clone()
            seen[id(t)] = torch.empty(0, dtype=t.dtype).set_(storage, t.storage_offset(), t.shape, t.stride())
        return seen[id(t)]

    return tree_map_only(torch.Tensor, copy, tree)


def bits(t: torch.Tensor) -> torch.Tensor:
    """Its bytes, with all NaNs alike: a NaN's payload and sign are no promise on a device."""
    t = t.detach().clone().contiguous()
    if t.is_floating_point():
        t[t.isnan()] = torch.nan
    return t.reshape(-1).view(torch.uint8)


def same_bits(got: Any, want: Any, what: str) -> None:
    a, b = tree_flatten(got)[0], tree_flatten(want)[0]
    assert len(a) == len(b), what
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if isinstance(x, torch.Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{what}: value {i}"
            differ = int((bits(x) != bits(y)).sum())
            assert differ == 0, f"{what}: value {i}, {tuple(x.shape)} {x.dtype}: {differ} bytes differ"
        else:
            assert x == y, what


def compare(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Run the CPU kernel, and the device's on copies; demand equal bits in all arguments and results."""
    there = copied((list(args), dict(kwargs or {})))
    want = op(*args, **(kwargs or {}))
    got = on_device(op, *there)
    same_bits(got, want, f"{op} result")
    same_bits(there, (list(args), dict(kwargs or {})), f"{op} arguments")
    return want


class Twins(TorchDispatchMode):
    """Each call of an op of lowtide runs on both sides; `calls` counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lowtide" and has_kernel(func._opname):
            self.calls[func._opname] += 1
            return compare(func, args, kwargs)
        return func(*args, **(kwargs or {}))
