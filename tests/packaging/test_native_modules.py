# SPDX-License-Identifier: Apache-2.0
"""What the native modules link and export: one binary for every torch from 2.10 on, and no second thread runtime."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")


def path_of(module: str) -> Path:
    if module == "lowtide._ops":
        importlib.import_module("torch")
    file = importlib.import_module(module).__file__
    assert file is not None
    return Path(file)


def read(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def needed(path: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\]", read("readelf", "-d", path)))


SYSTEM = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
SYSTEM |= {"ld-linux-aarch64.so.1", "libpthread.so.0"}


def test_core_needs_the_system_only() -> None:
    assert needed(path_of("lowtide._core")) <= SYSTEM


def test_ops_need_torch_by_name_only() -> None:
    path = path_of("lowtide._ops")
    assert path.name == "_ops.abi3.so"
    assert needed(path) - SYSTEM == {"libtorch.so"}  # Python loads torch RTLD_LOCAL: the name must be there
    assert "RPATH" not in read("readelf", "-d", path)
    assert "RUNPATH" not in read("readelf", "-d", path)


def test_ops_use_the_stable_abi_only() -> None:
    undefined = read("nm", "-D", "-C", "--undefined-only", path_of("lowtide._ops"))
    assert "aoti_torch" in undefined
    assert not re.findall(r"^.*\b(?:at|c10|torch)::.*$", undefined, re.MULTILINE)


@pytest.mark.parametrize("module", ["lowtide._core", "lowtide._ops"])
def test_only_the_module_is_exported(module: str) -> None:
    lines = read("nm", "-D", "-C", "--defined-only", path_of(module)).splitlines()
    kernels = [line for line in lines if "lowtide::" in line and " W " not in line and " u " not in line]
    assert not kernels
    assert any(f"PyInit_{module.rsplit('.', 1)[1]}" in line for line in lines)


def test_torch_abi_audit_passes() -> None:
    """torch's own symbols only from its stable ABI, Python's only from the limited API: what the project's auditor says."""
    pytest.importorskip("torch_abi_audit", reason="needs torch-abi-audit (requirements/test.txt)")
    path = path_of("lowtide._ops")
    done = subprocess.run(
        [Path(sys.executable).parent / "torch-abi-audit", "--check", "both", f"./{path.name}"],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Torch ABI:   STABLE" in done.stdout
    assert "Min torch:   2.10.0" in done.stdout
    assert "abi3-ok" in done.stdout
