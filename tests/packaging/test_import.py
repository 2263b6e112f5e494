# SPDX-License-Identifier: Apache-2.0
"""``import lowtide`` is cheap and does nothing: no torch, no threads, no sockets, no files, no CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# What only some functions need, and what costs tenths of a second or opens windows and sockets.
HEAVY = (
    *(
        "matplotlib",
        "transformers",
        "scipy",
        "sklearn",
        "pandas",
        "tokenizers",
        "safetensors",
        "accelerate",
        "peft",
    ),
    *("datasets", "huggingface_hub", "requests", "httpx", "urllib.request", "http.client", "tqdm", "psutil"),
    *("tensorboard", "wandb", "lightning", "torchvision", "bitsandbytes", "torchao", "flwr", "dp_accounting"),
)

# Sockets, processes and files for writing are refused while the packages are imported; what NumPy and torch do to be
# imported they have done before.
QUIET = r"""
import os, sys, threading
{first}
before = set(sys.modules)
def threads():
    return len(os.listdir("/proc/self/task"))
count = threads()
def refuse(event, arguments):
    if event.split(".")[0] in ("socket", "subprocess", "urllib", "http", "ftplib", "smtplib") or event in (
        "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "os.putenv"
    ):
        raise AssertionError(f"{{event}} {{arguments}}")
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        flags = arguments[2]
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise AssertionError(f"opened for writing: {{arguments}}")
sys.addaudithook(refuse)
import {modules}
assert threads() == count, (threads(), count)
new = set(sys.modules) - before
if "torch" in sys.modules:
    assert not sys.modules["torch"].cuda.is_initialized()
print(*sorted(new))
"""


def imported(modules: str, *, first: str = "", folder: Path) -> set[str]:
    """The modules that importing these adds, in a fresh interpreter that may do nothing else."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LOWTIDE_")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    code = QUIET.format(modules=modules, first=first)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return set(done.stdout.split())


def test_base_import_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    new = imported("lowtide", folder=tmp_path)
    assert "lowtide._core" in new
    assert not {"numpy", "torch", *HEAVY} & new
    ours = {name for name in new if name.startswith("lowtide.")}
    assert ours == {"lowtide._core", "lowtide._runtime", "lowtide.errors"}


@pytest.mark.parametrize(
    "modules", ["lowtide.random", "lowtide.quant", "lowtide.lowrank", "lowtide.cli.main", "lowtide.info"]
)
def test_numpy_families_load_no_torch(modules: str, tmp_path: Path) -> None:
    assert not {"torch", *HEAVY} & imported(modules, first="import numpy", folder=tmp_path)


def test_torch_families_add_nothing_but_themselves(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    families = "lowtide.optim, lowtide.ops, lowtide.quant, lowtide.lowrank, lowtide.spsa, lowtide.continual"
    new = imported(families, first="import torch", folder=tmp_path)
    assert "lowtide.optim" in new
    assert not set(HEAVY) & new
    assert not {name for name in new if name.startswith(("torch._dynamo", "torch._inductor"))}


def test_importing_optim_searches_for_the_origin_of_fakes_once(tmp_path: Path) -> None:
    """torch looks through all loaded modules once for each file that registers a fake kernel: a third of the time."""
    pytest.importorskip("torch")
    code = """
import inspect, torch
calls = []
real = inspect.getmodule
def getmodule(object, _filename=None):
    calls.append(_filename or getattr(object, "co_filename", None))
    return real(object, _filename)
inspect.getmodule = getmodule
import lowtide.ops
print(len({c for c in calls if c and "lowtide" in c}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1, done.stdout


def test_import_times_name_what_was_imported(tmp_path: Path) -> None:
    """``-X importtime`` shows the whole tree: nothing hides behind a module that was there before."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import lowtide"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {m[1] for m in re.finditer(r"\|\s+(\S+)$", done.stderr, re.MULTILINE)}
    assert {"lowtide", "lowtide._core", "lowtide._runtime"} <= names
    assert not {"numpy", "torch"} & names
