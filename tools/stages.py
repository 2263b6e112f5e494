# SPDX-License-Identifier: Apache-2.0
"""What ``make lint``, ``make docs``, ``make test``, ``make nightly`` and ``make bench`` run, in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ".venv/bin"
JOBS = max(1, len(os.sched_getaffinity(0)))


def _always() -> str | None:
    return None


def _needs(*programs: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [p for p in programs if shutil.which(p) is None]
        return f"{' and '.join(absent)} not found on PATH" if absent else None

    return missing


@dataclass(frozen=True)
class Stage:
    """A shell script run in the repository root, and what to show of its output."""

    name: str
    what: str
    script: str
    closing: str = r"$^"  # shows nothing
    missing: Callable[[], str | None] = _always  # why it cannot run here, or None
    minutes: float = 30
    environment: Mapping[str, str] = field(default_factory=dict)


_CTEST = r"tests passed|Total Test time"
_PYTEST = r"^SKIPPED|^(=+ )?\d+ passed"


def _preset(preset: str, *, configure: str = "", ctest: str = "") -> str:
    return (
        f"cmake --preset {preset} {configure}\n"
        f"cmake --build --preset {preset} -j {JOBS}\n"
        f"ctest --preset {preset} -j {JOBS} --timeout 300 {ctest}"
    )


LINT = Stage(
    "lint",
    "ruff, clang-format, SPDX lines, file lengths, kernel stems",
    f"""{BIN}/ruff check .
{BIN}/ruff format --check .
git ls-files -z '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs -0 {BIN}/clang-format --dry-run -Werror
{BIN}/python tools/check_spdx.py
{BIN}/python tools/check_lengths.py
{BIN}/python tools/check_stems.py
{BIN}/python tools/check_pins.py""",
    closing=r"passed|checked|formatted",
)
MYPY = Stage("mypy", "mypy --strict on the package", f"{BIN}/mypy", closing=r"Success|Found")
STUBS = Stage(
    "stubs",
    "the committed stub of the native module equals the generated one",
    f"{BIN}/python tools/make_stubs.py --check",
    closing="stub",
)

# The native modules are built by the package stage; here only what C++ tests and benches need.
_NO_PYTHON = "-DLOWTIDE_PYTHON=OFF -DLOWTIDE_TORCH=OFF"
CPP = Stage("cpp", "C++ tests, every ISA", _preset("release", configure=_NO_PYTHON), _CTEST)
BENCH = Stage(
    "bench",
    "C++ benches run and verify their outputs",
    f"{BIN}/python tools/run_benches.py --check",
    closing="^==>",
)
COUNTS = Stage(
    "counts",
    "core kernels take no more instructions than before",
    f"{BIN}/python tools/instruction_counts.py",
    closing="^SKIPPED|kernels take",
    missing=_needs("valgrind"),
)
ASAN = Stage("asan-ubsan", "C++ tests, Address- and UBSanitizer", _preset("asan-ubsan"), _CTEST)
TSAN = Stage("tsan", "C++ tests, ThreadSanitizer", _preset("tsan"), _CTEST)
NEON = Stage(
    "neon",
    "C++ tests cross-compiled for 64-bit Arm, run by qemu",
    _preset("neon"),
    _CTEST,
    _needs("aarch64-linux-gnu-g++", "qemu-aarch64"),
)
CUDA = Stage(
    "cuda",
    "CUDA kernels: compiled by nvcc, their PTX executed on the CPU",
    # With torch's headers: the emulated ops that tests/cuda/torch run in the pytest stage are built here.
    _preset("cuda", configure=f"-DPython_EXECUTABLE={ROOT}/{BIN}/python"),
    _CTEST,
    _needs("nvcc"),
)
PACKAGE = Stage(
    "package",
    "the repaired wheel with torch ops, installed; what imports is the wheel's, file by file, and works",
    f"""LOWTIDE_WERROR=ON tools/setup.sh package
{BIN}/python -I tools/wheel_smoke.py {BIN}/../wheel/*.whl --torch any""",
    closing=r"^wheel's code|^NumPy kernels|^torch ",
)
DOCS = Stage(
    "docs",
    "the documentation builds without a warning; every exported name is in the reference",
    f"rm -rf build/docs && {BIN}/sphinx-build -q -W --keep-going docs build/docs && echo built: build/docs/index.html",
    closing="^built",
)


# Elections and time limits by the clock: these tests have the machine for themselves.
_BY_THE_CLOCK = ("tests/spsa/comm", "tests/spsa/faults")


def _pytest(minutes: float, *, slow: bool) -> tuple[Stage, ...]:
    # Through the pytest program, not `python -m pytest`: the latter would put the source tree on sys.path.
    # A file's tests share a process and its fixtures. The processes' threads share the cores: none may spin while it waits.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    marks, too = ("slow or not slow", ", slow ones too") if slow else ("not slow", "")
    others = f"-n {JOBS} --dist loadfile " + " ".join(f"--ignore={folder}" for folder in _BY_THE_CLOCK)
    return tuple(
        Stage(
            name, what + too, f"{BIN}/pytest -q -m '{marks}' {which}", _PYTEST, _always, minutes, environment
        )
        for name, what, which in (
            ("pytest", "Python tests on the installed package", others),
            ("pytest-clock", "tests of processes that elect and time out", " ".join(_BY_THE_CLOCK)),
        )
    )


_COMMON = (LINT, MYPY, CPP, BENCH, COUNTS, ASAN, TSAN, NEON, CUDA, PACKAGE, STUBS, DOCS)

SUITES: dict[str, tuple[Stage, ...]] = {
    "lint": (LINT, MYPY, PACKAGE, STUBS),
    "docs": (PACKAGE, DOCS),
    "test": (*_COMMON, *_pytest(45, slow=False)),
    "nightly": (*_COMMON, *_pytest(120, slow=True)),
}
