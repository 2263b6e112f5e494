# SPDX-License-Identifier: Apache-2.0
"""A source distribution is built, a wheel from it offline and without torch ops, and the wheel works without torch."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("build", "scikit_build_core", "pybind11")),
    reason="needs requirements/build.txt",
)


def call(*command: str | Path, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOWTIDE_", "PYTHONPATH"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def offline() -> list[str]:
    """What to put before a command to take its network away: a namespace of its own where the kernel lets us."""
    for flags in ("-n", "-rn"):
        unshare = ["unshare", flags]
        if shutil.which("unshare") and not subprocess.run([*unshare, "true"], check=False).returncode:
            return unshare
    # Nothing listens on the discard port: whoever asks for a page fails.
    return ["env", *(f"{name}=http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy"))]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    folder = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the unpacked source distribution gives with no network, in a folder of its own."""
    folder = tmp_path_factory.mktemp("offline")
    shutil.unpack_archive(sdist, folder)
    (source,) = folder.iterdir()
    pip = [
        *offline(),
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
    ]
    call(*pip, "--no-cache-dir", "-w", folder / "dist", source, cwd=folder)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with NumPy and the wheel, and nothing else; its bin folder."""
    folder = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(
        call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout.strip()
    )
    here = Path(np.__file__).resolve().parents[1]
    for part in here.glob("numpy*"):  # numpy, numpy.libs, numpy-*.dist-info
        (site / part.name).symlink_to(part)
    pip = [sys.executable, "-m", "pip", "--python", python]
    call(*pip, "install", "-q", "--no-index", "--no-deps", wheel, cwd=folder)
    return folder / "bin"


def test_source_distribution_is_complete_and_lean(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "PKG-INFO"} <= names
    assert "csrc/random/stream_simd.cc" in names
    assert "python/lowtide/_core.pyi" in names
    assert not [n for n in names if n.endswith((".so", ".pyc")) or n.startswith(("build/", ".venv/", ".ci/"))]


def test_wheel_is_typed_and_holds_no_strays(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = [n for n in names if n.endswith(".so")]
    assert len(modules) == 1, modules  # not the developer's in-place builds
    assert modules[0].startswith("lowtide/_core.")
    for name in ("lowtide/py.typed", "lowtide/_core.pyi", "lowtide/_ops.pyi"):
        assert name in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
    assert all(n.startswith(("lowtide/", "lowtide-")) for n in names)


def test_one_line_says_the_version(sdist: Path, wheel: Path) -> None:
    (version,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "python" / "lowtide" / "__init__.py").read_text(), re.MULTILINE
    )
    assert sdist.name == f"lowtide-{version}.tar.gz"
    assert wheel.name.startswith(f"lowtide-{version}-")
    for name in ("pyproject.toml", "CMakeLists.txt"):
        assert version not in (ROOT / name).read_text().replace("build.requires", ""), name


def test_metadata_is_what_an_index_wants(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_string(archive.read(name).decode())
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.split(r"[<>=]", line)[0] for line in base] == ["numpy"]
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"torch", "demo", "peft", "test", "bench", "docs"} <= extras


def test_numpy_surface_works_without_torch(environment: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, numpy as np, lowtide as lt
assert importlib.util.find_spec("torch") is None
x = lt.random.sample((3, 5), seed=1)
lt.random.add_(x, 0.5, seed=2)
assert np.isfinite(lt.random.dot(x, seed=2))
try:
    lt.ops
except lt.LowtideImportError as error:
    assert "pip install 'torch>=2.10'" in str(error), error
else:
    raise AssertionError("lt.ops without torch")
"""
    call(environment / "python", "-c", code, cwd=tmp_path)


def test_command_line_works_without_torch(environment: Path, tmp_path: Path) -> None:
    out = call(environment / "lowtide", "info", cwd=tmp_path).stdout
    assert "instruction set" in out
    assert "lowtide" in call(environment / "lowtide", "--help", cwd=tmp_path).stdout
    assert call(environment / "python", "-m", "lowtide", "info", cwd=tmp_path).stdout == out
