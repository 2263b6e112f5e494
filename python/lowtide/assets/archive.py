# SPDX-License-Identifier: Apache-2.0
"""Unpack chosen members of a wheel (a zip file) that is not trusted."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NoReturn

from .errors import CorruptFileError

_MAX_MEMBERS = 4096


def unpack(wheel: Path, target: Callable[[str], str | None], out: Path, *, max_bytes: int) -> dict[str, Path]:
    """Unpack members of ``wheel`` into ``out``; nothing is executed and nothing leaves ``out``.

    Args:
        wheel: the zip file.
        target: maps a member's name to its path below ``out`` (with ``/``), or to None to leave it out.
        out: an existing folder.
        max_bytes: the most bytes that all chosen members together may unpack to.

    Returns:
        Member name to the file written.

    Raises:
        CorruptFileError: not a zip file, or a member's name, kind, size or checksum is not acceptable.
    """
    written: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                _refuse(wheel, f"{len(members)} members are more than {_MAX_MEMBERS}")
            left = max_bytes
            for info in members:
                relative = target(info.filename)
                if relative is None:
                    continue
                destination = _destination(wheel, info, relative, out)
                if destination in written.values():
                    _refuse(wheel, f"two members unpack to {relative!r}")
                # zipfile never yields more than the declared size, and checks the CRC at the end.
                left -= info.file_size
                if left < 0:
                    _refuse(wheel, f"its members unpack to more than {max_bytes} bytes")
                destination.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, open(destination, "xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if destination.stat().st_size != info.file_size:
                    _refuse(wheel, f"member {info.filename!r} is shorter than declared")
                written[info.filename] = destination
    except (FileExistsError, NotADirectoryError) as e:
        _refuse(wheel, f"two members claim the same path ({e})")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as e:
        _refuse(wheel, f"it does not unpack ({e})")
    return written


def _destination(wheel: Path, info: zipfile.ZipInfo, relative: str, out: Path) -> Path:
    for name in (info.filename, relative):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in name:
            _refuse(wheel, f"member {info.filename!r} has a name that could leave the folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        _refuse(wheel, f"member {info.filename!r} is not a regular file")
    if info.flag_bits & 0x1:
        _refuse(wheel, f"member {info.filename!r} is encrypted")
    return out.joinpath(*PurePosixPath(relative).parts)


def _refuse(wheel: Path, why: str) -> NoReturn:
    raise CorruptFileError(f"archive {wheel}: {why}; delete the file and fetch the asset again")
