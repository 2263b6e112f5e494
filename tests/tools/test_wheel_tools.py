# SPDX-License-Identifier: Apache-2.0
"""The steps of make wheel that need no compiler: unpacking, audits of contents and metadata, finding interpreters."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
GOOD = [
    *(
        "lowtide/py.typed",
        "lowtide/_core.pyi",
        "lowtide/_ops.pyi",
        "lowtide-1.0.0.dist-info/licenses/LICENSE",
    ),
    *("lowtide/_core.cpython-311-x86_64-linux-gnu.so", "lowtide/_ops.abi3.so"),
]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("wheel_build")
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    return module


@pytest.fixture
def audit(build: ModuleType) -> ModuleType:
    return importlib.import_module("wheel_audit")


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"lowtide-1.0.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_unpacking_again_touches_only_what_differs(build: ModuleType, tmp_path: Path) -> None:
    first = build.unpack(archive(tmp_path / "a.tar.gz", {"same": "1", "other": "2", "gone": "3"}))
    (first / "build").mkdir()
    (first / "build" / "object").write_text("kept")
    before = {name: (first / name).stat().st_mtime_ns for name in ("same", "other")}
    again = build.unpack(archive(tmp_path / "b.tar.gz", {"same": "1", "other": "changed"}))
    assert again == first
    assert (again / "same").stat().st_mtime_ns == before["same"]
    assert (again / "other").read_text() == "changed"
    assert not (again / "gone").exists()
    assert (again / "build" / "object").read_text() == "kept"


def test_a_label_goes_into_the_one_line_of_the_version(build: ModuleType, tmp_path: Path) -> None:
    package = "python/lowtide/__init__.py"
    text = '"""Doc."""\n\n__version__ = "1.0.0"\n'
    folder = build.unpack(archive(tmp_path / "a.tar.gz", {package: text}), "+cu13")
    assert (folder / package).read_text() == text.replace("1.0.0", "1.0.0+cu13")
    with pytest.raises(build.WheelError, match="0 lines that set __version__"):
        build.unpack(archive(tmp_path / "b.tar.gz", {package: "pass\n"}), "+cu13")


def test_contents_name_what_is_missing_and_what_is_not_ours(audit: ModuleType) -> None:
    def problems(names: list[str]) -> list[str]:
        return list(audit.contents(names, [n for n in names if ".so" in n]))

    assert problems(GOOD) == []
    assert problems([*GOOD, "lowtide/_ops_cuda.abi3.so"]) == []
    assert problems([n for n in GOOD if "py.typed" not in n]) == ["lowtide/py.typed is missing"]
    assert problems([n for n in GOOD if "_ops.abi3" not in n]) == ["no lowtide/_ops.abi3.so"]
    grafted = "lowtide.libs/libgomp-1a2b.so.1"
    assert problems([*GOOD, grafted]) == [f"{grafted} is not ours", f"{grafted} is out of place"]


def test_the_base_may_need_numpy_alone(audit: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lowtide-1.0.0.dist-info" / "METADATA"
    path.parent.mkdir()
    path.write_text(
        "Name: lowtide\nRequires-Dist: numpy>=1.24\nRequires-Dist: torch>=2.10; extra == 'torch'\n"
    )
    assert audit.metadata(tmp_path) == []
    path.write_text("Name: lowtide\nRequires-Dist: numpy>=1.24\nRequires-Dist: torch>=2.10\n")
    assert "not NumPy alone" in audit.metadata(tmp_path)[0]


def test_an_interpreter_that_is_not_there_is_named(build: ModuleType) -> None:
    assert build.find_pythons("this")[0].tag.startswith("cp3")
    with pytest.raises(build.WheelError, match=r"no Python 3\.99"):
        build.find_pythons("3.99")


def test_a_failing_step_shows_the_end_of_its_output(build: ModuleType) -> None:
    with pytest.raises(build.WheelError, match="exit code 3\nwhy"):
        build.run("sh", "-c", "echo why; exit 3")
