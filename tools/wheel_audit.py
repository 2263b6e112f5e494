# SPDX-License-Identifier: Apache-2.0
"""What must hold of a repaired wheel before it is installed anywhere."""

from __future__ import annotations

import email
import re
import shutil
import sys
import zipfile
from pathlib import Path

from wheel_build import ROOT, WORK, WheelError, run

TYPED = ("lowtide/py.typed", "lowtide/_core.pyi", "lowtide/_ops.pyi")
SYSTEM = {
    "libstdc++.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libc.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
TORCH = {
    "libtorch.so",
    "libtorch_cuda.so",
    "libc10_cuda.so",
}  # by name, found because torch was imported first
ABI3_FLOOR = "3.10"


def audit(wheel: Path) -> list[str]:
    """Check contents, metadata, links and both stable ABIs; what was found, a line each. Raises WheelError."""
    folder = WORK / "audit" / wheel.name
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder)
    modules = sorted(n for n in names if n.endswith(".so") or ".so." in n)
    problems = contents(names, modules) + metadata(folder) + links([folder / m for m in modules])
    if problems:
        raise WheelError(f"{wheel.name}: " + "; ".join(problems))
    lines = [f"{Path(m).name}: {(folder / m).stat().st_size / 2**20:.1f} MiB" for m in modules]

    bin_folder = programs()
    stable = [folder / m for m in modules if m.endswith(".abi3.so")]
    for path in (
        stable
    ):  # each program in the form that it takes: one file; the file as a path below the current folder
        run(bin_folder / "abi3audit", "--strict", "--assume-minimum-abi3", ABI3_FLOOR, path)
        report = run(bin_folder / "torch-abi-audit", "--check", "both", f"./{path.name}", cwd=path.parent)
        least = re.findall(r"Min torch:\s+(\S+)", report)[0]
        lines.append(f"{path.name}: abi3 from {ABI3_FLOOR}, torch's stable ABI from {least}")
    # The pybind11 module is bound to one CPython and touches no torch, so `both` is asked of the others alone.
    run(bin_folder / "torch-abi-audit", "--check", "torch", "./lowtide", cwd=folder)
    run(bin_folder / "twine", "check", "--strict", wheel)
    shutil.rmtree(folder)
    return lines


def programs() -> Path:
    """The folder of the auditing programs, in an environment of their own."""
    folder = WORK / "programs"
    requirements = ROOT / "requirements" / "wheel.txt"
    stamp = folder / "installed"
    if not stamp.is_file() or stamp.read_text() != requirements.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        run(folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements)
        stamp.write_text(requirements.read_text())
    return folder / "bin"


def contents(names: list[str], modules: list[str]) -> list[str]:
    """The modules are there, typed, with a licence, and nothing else is."""
    problems = [f"{name} is missing" for name in TYPED if name not in names]
    if not any(re.fullmatch(r"lowtide/_core\.cpython-\d+-.*\.so", m) for m in modules):
        problems.append("no lowtide/_core")
    if "lowtide/_ops.abi3.so" not in modules:
        problems.append("no lowtide/_ops.abi3.so")
    known = re.compile(r"lowtide/(_core\.cpython-\S+|_ops\.abi3|_ops_cuda\.abi3)\.so")
    problems += [f"{m} is not ours" for m in modules if not known.fullmatch(m)]
    if not any(n.endswith(".dist-info/licenses/LICENSE") for n in names):
        problems.append("no LICENSE")
    return problems + [f"{n} is out of place" for n in names if not n.startswith(("lowtide/", "lowtide-"))]


def metadata(folder: Path) -> list[str]:
    """NumPy is all that the base installation asks for."""
    (path,) = folder.glob("lowtide-*.dist-info/METADATA")
    wanted = email.message_from_string(path.read_text()).get_all("Requires-Dist", [])
    base = [line for line in wanted if "extra ==" not in line]
    return (
        [] if len(base) == 1 and base[0].startswith("numpy") else [f"the base needs {base}, not NumPy alone"]
    )


def links(modules: list[Path]) -> list[str]:
    """The modules need the C and C++ runtimes and torch's libraries by name, with no search paths."""
    problems = []
    for path in modules:
        dynamic = run("readelf", "-d", path)
        allowed = SYSTEM | LOADERS | (TORCH if path.name.endswith(".abi3.so") else set())
        surplus = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic)) - allowed
        problems += [f"{path.name} needs {name}" for name in sorted(surplus)]
        if "RPATH" in dynamic or "RUNPATH" in dynamic:
            problems.append(f"{path.name} has a search path")
    return problems
