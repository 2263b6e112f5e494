# SPDX-License-Identifier: Apache-2.0
"""The cache: reuse, damage, interruption, rivals, and places that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import lowtide
from lowtide import assets
from lowtide.assets import AssetError, UnknownAssetError, cache, cache_root

PACKAGE_PARENT = str(Path(lowtide.__file__).resolve().parents[1])


def test_makes_the_asset_once_and_uses_it_again(toy: Any) -> None:
    path = toy.fetch()
    assert path == toy.root / "toy" / "toy.txt"
    assert path.read_bytes().startswith(b"low tide")
    assert toy.fetch() == path
    assert len(toy.builds) == 1
    assert toy.leftovers() == []
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["sub/more.txt", "toy.txt"]
    assert manifest["licence"] == "none"


def test_reuse_writes_nothing(toy: Any) -> None:
    path = toy.fetch()
    shutil.rmtree(toy.root / "tmp")
    shutil.rmtree(toy.root / "downloads")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in toy.root.rglob("*"))
    cache._verified.clear()
    assert toy.fetch() == path
    assert sorted((str(p), p.stat().st_mtime_ns) for p in toy.root.rglob("*")) == before


def test_the_full_hash_is_taken_once_per_process(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.fetch()
    hashed = []
    original = cache.sha256_file
    monkeypatch.setattr(cache, "sha256_file", lambda path: hashed.append(path.name) or original(path))
    for _ in range(3):
        toy.fetch()
    assert sorted(hashed) == ["more.txt", "toy.txt"]


def flip_a_byte(folder: Path) -> None:
    path = folder / "toy.txt"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)


def forge(folder: Path) -> None:
    # A changed file with a manifest that agrees: the pinned SHA-256 still does not.
    flip_a_byte(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["toy.txt"]["sha256"] = cache.sha256_file(folder / "toy.txt")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(**fields: object) -> Any:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, "the SHA-256 of toy.txt is not the recorded one"),
        (forge, "does not record the pinned SHA-256 of toy.txt"),
        (lambda folder: (folder / "toy.txt").write_bytes(b"low"), "toy.txt has 3 bytes instead of 2000"),
        (lambda folder: (folder / "sub" / "more.txt").unlink(), "more.txt is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not readable"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 9999), "manifest.json is not readable"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (
            lambda folder: (folder / "manifest.json").write_bytes(bytes(2 << 20)),
            "manifest.json is larger than",
        ),
        (edit_manifest(recipe=0), "it was made by another version of lowtide"),
        (edit_manifest(source_sha256="0"), "it was made by another version of lowtide"),
        (edit_manifest(files={"../../x": {"bytes": 1, "sha256": ""}}), "names a file outside the folder"),
    ],
)
@pytest.mark.parametrize("new_process", [False, True])
def test_damage_is_said_and_repaired_without_network(
    toy: Any, caplog: pytest.LogCaptureFixture, damage: Any, said: str, new_process: bool
) -> None:
    path = toy.fetch()
    whole = path.read_bytes()
    damage(path.parent)
    if new_process:
        cache._verified.clear()
    caplog.clear()
    assert toy.fetch().read_bytes() == whole
    assert [r.levelname for r in caplog.records if said in r.getMessage()] == ["WARNING"]
    assert len(toy.builds) == 2
    assert toy.leftovers() == []
    caplog.clear()
    toy.fetch()
    assert caplog.records == []


def test_a_folder_that_lowtide_did_not_make_is_left_alone(toy: Any) -> None:
    (toy.root / "toy").mkdir(parents=True)
    notes = toy.root / "toy" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(AssetError, match=r"was not made by lowtide .* move it away"):
        toy.fetch()
    assert notes.read_text() == "mine"
    assert toy.builds == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_the_place_is_left_alone(toy: Any, kind: str) -> None:
    place = toy.root / "toy"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("/nowhere")
    with pytest.raises(AssetError, match="was not made by lowtide"):
        toy.fetch()
    assert place.is_file() or place.is_symlink()


def test_a_conversion_with_other_bits_is_not_published(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toy.asset.pins, "toy.txt", "0" * 64)
    with pytest.raises(AssetError, match=r"toy\.txt came out with SHA-256 [0-9a-f]{64}, expected 0{64}"):
        toy.fetch()
    assert not (toy.root / "toy").exists()
    assert toy.leftovers() == []


def test_names_are_checked() -> None:
    assert assets.names() == ["smollm2-135m", "shakespeare", "minilm", "movie-snippets"]
    for name in ("gpt2", "", None, ["shakespeare"]):
        with pytest.raises(
            UnknownAssetError, match=r"name is .*; it takes one of 'smollm2-135m', 'shakespeare'"
        ):
            assets.fetch(name)  # type: ignore[arg-type]
    assert issubclass(UnknownAssetError, (ValueError, lowtide.errors.LowtideError))


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("LOWTIDE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path("/home/me/.cache/lowtide")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("/home/me/.cache/lowtide")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/lowtide")
    monkeypatch.setenv("LOWTIDE_CACHE", "~/lt")
    assert cache_root() == Path("/home/me/lt")
    monkeypatch.chdir(tmp_path)
    assert cache_root("here") == tmp_path / "here"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("LOWTIDE_CACHE", "")
    assert cache_root() == Path("/home/me/Library/Caches/lowtide")


def test_a_cache_below_a_file_is_explained(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AssetError, match=r"cache folder .* cannot be used .*LOWTIDE_CACHE"):
        assets.fetch("toy", cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_operating_system_errors_are_explained(
    toy: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(toy.root))

    monkeypatch.setattr(cache, "sync_file", refuse)
    with pytest.raises(AssetError, match=re.escape(os.strerror(number))) as error:
        toy.fetch()
    assert "LOWTIDE_CACHE" in str(error.value)
    assert toy.leftovers() == []
    assert not (toy.root / "toy").exists()


def test_too_little_disk_space_is_said_before_anything_is_done(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(toy.root)._replace(free=1 << 19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(AssetError, match=r"disk of .* is full \(0 MiB are free\); free 1 MiB"):
        toy.fetch()
    assert toy.builds == []


# A program of its own with the same toy asset; what it does while building is filled in.
PROGRAM = """
import os, signal, sys, time, zipfile
from pathlib import Path
from lowtide import assets
from lowtide.assets.catalog import Asset

root, wheel = Path(sys.argv[1]), Path(sys.argv[2])

def build(wheel, out, scratch, progress):
    with open(root / "count", "a") as f:
        f.write("x")
    text = zipfile.ZipFile(wheel).read("toy/toy.txt")
    {inside}
    (out / "toy.txt").write_bytes(text)

assets.ASSETS = {{"toy": Asset(
    name="toy", requirement="toy==1.0", package=wheel.name, package_bytes=wheel.stat().st_size,
    package_sha256="{sha}", build=build, recipe=1, result="toy.txt", pins={{}}, scratch_bytes=1 << 20,
    licence="none", about="a toy")}}
import lowtide.assets.__main__ as command
command.ASSETS = assets.ASSETS
print("ready", file=sys.stderr, flush=True)
sys.exit(command.main(["toy", "--cache-dir", str(root)]))
"""


def start(toy: Any, inside: str, **kwargs: Any) -> subprocess.Popen[str]:
    code = textwrap.dedent(PROGRAM).format(inside=inside, sha=toy.asset.package_sha256)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(toy.root), str(toy.wheel)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **kwargs,
    )


def test_a_killed_process_leaves_nothing_that_counts(toy: Any) -> None:
    half = "(out / 'toy.txt').write_bytes(text[:100]); os.kill(os.getpid(), signal.SIGKILL)"
    process = start(toy, half)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(toy.leftovers()) == 1
    assert not (toy.root / "toy").exists()
    assert len(toy.fetch().read_bytes()) == 2000
    assert toy.leftovers() == []


def test_two_processes_make_it_once(toy: Any) -> None:
    processes = [start(toy, "time.sleep(1)") for _ in range(2)]
    outputs = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert {out for out, _ in outputs} == {f"{toy.root / 'toy' / 'toy.txt'}\n"}
    assert (toy.root / "count").read_text() == "x"


def test_a_waiting_process_says_so(toy: Any) -> None:
    with cache.locked(toy.root, "toy"):
        process = start(toy, "pass")
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
    process.communicate(timeout=60)
    assert lines == ["ready\n", "waiting for another process that is fetching toy\n"]
    assert process.returncode == 0


def test_interruption_removes_the_traces(toy: Any) -> None:
    process = start(toy, "print('building', file=sys.stderr, flush=True); time.sleep(60)")
    assert process.stderr is not None
    while "building" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; run the same command again to go on\n"
    assert toy.leftovers() == []


def test_a_full_disk_is_explained_in_one_sentence(toy: Any) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    process = start(toy, "pass", preexec_fn=limit)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert re.fullmatch(r"error: asset 'toy': the disk of .* is full \(.*\); free 1 MiB or choose .*", last)
    assert "Traceback" not in err
    assert not (toy.root / "toy").exists()
    assert toy.leftovers() == []
