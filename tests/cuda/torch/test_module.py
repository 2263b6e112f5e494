# SPDX-License-Identifier: Apache-2.0
"""The module for real devices: it loads beside a torch without CUDA, and when `lowtide.ops` takes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from emulated import MODULE

BUILT = MODULE.with_name("_ops_cuda.abi3.so")
LOAD = f"""
import importlib.machinery, importlib.util, torch, lowtide.ops
loader = importlib.machinery.ExtensionFileLoader("_ops_cuda", {str(BUILT)!r})
loader.exec_module(importlib.util.module_from_spec(importlib.util.spec_from_loader("_ops_cuda", loader)))
assert torch._C._dispatch_has_kernel_for_dispatch_key("lowtide::fused_step_", "CUDA")
x, cuda = torch.ones(3), torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
try:
    torch.ops.lowtide.random_add_.default.redispatch(cuda, x, 1.0, 0, 0, 0, 0, 0, 0, 0)
except RuntimeError as error:
    print(error)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(*command: str) -> str:
    return subprocess.run([*command, str(BUILT)], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not BUILT.exists(), reason="only the emulated module was given")
def test_it_loads_without_a_device_and_refuses_cpu_tensors() -> None:
    assert "must lie on one device, got CPU and CUDA tensors" in run(LOAD, LOWTIDE_CUDA_OPS="0")


@pytest.mark.skipif(not BUILT.exists(), reason="only the emulated module was given")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_it_needs_torch_by_name_and_the_stable_abi_only() -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", read("readelf", "-d")))
    assert {n for n in needed if "torch" in n or "cuda" in n or "c10" in n} == {"libtorch.so"}
    assert not re.search("RPATH|RUNPATH", read("readelf", "-d"))
    assert not re.findall(
        r"^.*\b(?:at|c10|torch)::.*$", read("nm", "-D", "-C", "--undefined-only"), re.MULTILINE
    )
    exported = read("nm", "-D", "-C", "--defined-only").splitlines()
    assert not [line for line in exported if re.search(r" [TDBV] .*(lowtide::|\bcuda[A-Z])", line)]


@pytest.mark.parametrize("wanted", ["0", None])
def test_why_cuda_tensors_have_no_kernels(wanted: str | None) -> None:
    import torch

    if wanted is None and torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    code = (
        "import torch, lowtide.ops._cuda as c; print(c.missing, c.native(torch.device('cuda', 0)), sep='|')"
    )
    reason, native = run(code, **({"LOWTIDE_CUDA_OPS": wanted} if wanted else {})).strip().split("|")
    assert native == "False"
    assert reason == "LOWTIDE_CUDA_OPS=0" or reason.startswith(("this build has no CUDA ops", "torch 2."))
