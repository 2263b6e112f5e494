# SPDX-License-Identifier: Apache-2.0
"""Digests of files, and flushing them to the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Flush a closed file to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk (a no-op where directories cannot be opened)."""
    with contextlib.suppress(OSError):
        sync_file(path)
