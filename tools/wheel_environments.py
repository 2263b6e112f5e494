# SPDX-License-Identifier: Apache-2.0
"""Clean virtual environments that a wheel is installed into and tested in."""

from __future__ import annotations

import json
import platform
import re
import shutil
from pathlib import Path

from wheel_build import ROOT, WORK, Python, WheelError, run, torch_folder

SMOKE = ROOT / "tools" / "wheel_smoke.py"

# Of every family's batteries, what takes seconds; `full` runs them all.
SAMPLE = (
    ("tests/testing/test_optimizer_contract.py", "-k", "AdamW8bit or AdamW4bit or QGaLoreAdamW or Lion8bit"),
    (
        *("tests/test_every_op.py", "tests/random", "tests/base", "tests/quant/test_group_ops.py"),
        *(
            "tests/lowrank/test_rsvd.py",
            "tests/spsa/test_replay_ops.py",
            "tests/curvature/test_vector_ops.py",
        ),
    ),
)


def create(python: Python, name: str) -> Path:
    """An empty environment; its interpreter."""
    folder = WORK / "environments" / f"{python.tag}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    run(python.path, "-m", "venv", folder)
    return folder / "bin" / "python"


def install(interpreter: Path, *requirements: str | Path) -> None:
    run(interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)


def smoke(interpreter: Path, wheel: Path, torch: str | None) -> list[str]:
    """Run tools/wheel_smoke.py there; what it says."""
    asked = () if torch is None else ("--torch", torch)
    return run(interpreter, "-I", SMOKE, wheel, *asked, cwd=WORK).splitlines()


def numpy_only(python: Python, wheel: Path, numpy: str = "numpy") -> list[str]:
    """The wheel with NumPy and nothing else."""
    interpreter = create(python, "numpy")
    install(interpreter, wheel, numpy)
    version = run(interpreter, "-I", "-c", "import numpy; print(numpy.__version__)").strip()
    return [f"NumPy {version}", *smoke(interpreter, wheel, None)]


def cpu_torch(python: Python, requirement: str) -> str | None:
    """The version that pip would install for `torch==X`, if it is a build without CUDA (200 MB instead of gigabytes)."""
    interpreter = WORK / "environments" / f"{python.tag}-numpy" / "bin" / "python"
    try:
        report = run(
            *(interpreter, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--ignore-installed"),
            *("--report", "-", f"torch=={requirement}"),
        )
    except WheelError:
        return None
    version = str(json.loads(report[report.index("{") :])["install"][0]["metadata"]["version"])
    return version if "+cpu" in version or platform.machine() != "x86_64" else None


def with_torch(python: Python, wheel: Path, version: str) -> list[str]:
    """The wheel with its extra `torch` at one version, and a sample of the batteries there."""
    interpreter = create(python, f"torch{version}")
    install(
        interpreter,
        f"lowtide[torch] @ {wheel.as_uri()}",
        f"torch=={version}",
        "pytest",
        "hypothesis",
        "scipy",
    )
    actual = run(interpreter, "-I", "-c", "import torch; print(torch.__version__)").strip()
    lines = smoke(interpreter, wheel, actual)
    for arguments in SAMPLE:
        lines.append("batteries: " + pytest(interpreter, *arguments))
    return lines


def ops_with_libtorch(python: Python, wheel: Path) -> list[str]:
    """Where this Python has no torch: `_ops` still loads into it beside the libtorch of the building one.

    The C++ libraries of torch know no Python; loading shows that the module's abi3 and its symbols are right here.
    """
    interpreter = WORK / "environments" / f"{python.tag}-numpy" / "bin" / "python"
    library = torch_folder() / "lib" / "libtorch.so"
    code = f"""
import ctypes
ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)
import lowtide._ops
print(lowtide._ops.__file__.rsplit("/", 1)[1])
"""
    name = run(interpreter, "-I", "-c", code, cwd=WORK).strip()
    return [f"{name} loads into Python {python.version} beside libtorch (no torch for this Python here)"]


def pytest(interpreter: Path, *arguments: str) -> str:
    """Run the tests of this repository on the installed package; the closing line."""
    out = run(interpreter.parent / "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=ROOT)
    return re.findall(r"^(?:=+ )?(\d+ passed.*?)(?: =+)?$", out, re.MULTILINE)[-1]
