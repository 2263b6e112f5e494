# SPDX-License-Identifier: Apache-2.0
"""What this installation is and can do: the record behind `lowtide info` and bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import lowtide
from lowtide import _core

OPTIONAL = ("torch", "transformers", "safetensors", "tokenizers", "tqdm", "matplotlib")


def report() -> dict[str, Any]:
    """Versions, instruction sets, threads, build and CUDA as plain values (JSON can hold them).

    Imports torch where it is installed; a missing or broken torch is reported, never raised.
    """
    return {
        "lowtide": lowtide.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "numpy": np.__version__,
        "packages": {name: _version(name) for name in OPTIONAL},
        "native": {
            "isa": lowtide.isa(),
            "available_isas": lowtide.available_isas(),
            "LOWTIDE_ISA": os.environ.get("LOWTIDE_ISA"),
            "threads": lowtide.num_threads(),
            "build": dict(_core.build_info()),
        },
        "torch_ops": _torch_ops(),
        "cuda": _cuda(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_ops() -> dict[str, Any]:
    """Whether `torch.ops.lowtide` is there, and if not why."""
    try:
        import lowtide.ops  # noqa: F401 (says which piece is missing)
    except Exception as error:  # a broken installation is what a report is for
        return {"loaded": False, "reason": str(error)}
    import torch

    return {"loaded": True, "threads": torch.get_num_threads()}


def _cuda() -> dict[str, Any]:
    """What of CUDA is built, why the ops do not run on it where they do not, and the devices of torch."""
    built = any(Path(_core.__file__).parent.glob("_ops_cuda*"))
    found: dict[str, Any] = {"ops_built": built, "ops_missing": None, "torch_cuda": None, "devices": []}
    try:
        import torch

        import lowtide.ops._cuda as loader
    except Exception as error:  # a broken installation is what a report is for
        found["ops_missing"] = str(error)
        return found
    found["ops_missing"] = loader.missing
    found["torch_cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
