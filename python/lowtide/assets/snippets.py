# SPDX-License-Identifier: Apache-2.0
"""Sentences of film reviews with ratings: a table inside an archive inside ``vaderSentiment``'s source archive."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from .errors import CorruptFileError
from .progress import Progress

ROWS = 10_605
_PREFIX = "vaderSentiment-3.3.2/"
_INNER = _PREFIX + "additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
QUOTES = "''"  # how the table writes double quotes
_MAX_BYTES = 8 << 20
_MAX_MEMBERS = 256

NOTICE = """\
Sentences from film reviews (Pang and Lee 2005), each with the mean of twenty people's ratings, collected by C. J. Hutto and
Eric Gilbert for "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.

Taken from the Python package vaderSentiment 3.3.2, MIT License (see LICENSE.txt). The sentences belong to the reviews' authors.
"""


def build(package: Path, out: Path, scratch: Path, progress: Progress) -> None:
    """Write ``snippets.tsv`` (mean rating from -4 to 4, tab, sentence), ``LICENSE.txt`` and ``NOTICE`` to ``out``."""
    with open(package, "rb") as source:
        members = read_members(source, {_INNER, _PREFIX + "LICENSE.txt"}, str(package))
    table = read_members(io.BytesIO(members[_INNER]), {_TABLE}, f"{package}: {_INNER}")[_TABLE]
    (out / "snippets.tsv").write_text(clean(table, str(package)), encoding="utf-8", newline="\n")
    (out / "LICENSE.txt").write_bytes(members[_PREFIX + "LICENSE.txt"])
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")


def read_members(source: BinaryIO, names: set[str], what: str) -> dict[str, bytes]:
    """Return the named members of a gzipped tar archive that is not trusted; nothing is written.

    Raises:
        CorruptFileError: no such archive, a member is missing, no regular file, or larger than 8 MiB.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=source, mode="r:gz") as archive:
            for count, member in enumerate(archive):
                if count == _MAX_MEMBERS:
                    raise CorruptFileError(
                        f"archive {what}: more than {_MAX_MEMBERS} members; fetch it again"
                    )
                if member.name not in names:
                    continue
                if not member.isreg() or member.size > _MAX_BYTES:
                    raise CorruptFileError(
                        f"archive {what}: member {member.name!r} is no regular file of at most {_MAX_BYTES} bytes; fetch it again"
                    )
                content = archive.extractfile(member)
                found[member.name] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error, UnicodeError) as e:
        raise CorruptFileError(f"archive {what}: it does not unpack ({e}); fetch it again") from e
    missing = names - found.keys()
    if missing:
        raise CorruptFileError(f"archive {what}: holds no {sorted(missing)[0]!r}; fetch it again")
    return found


def clean(table: bytes, what: str) -> str:
    """Return the table without its numbers: ``rating<TAB>sentence`` lines, two decimals, ``''`` as a double quote."""
    rows = []
    for line in table.decode("utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) != 3:
            raise CorruptFileError(f"archive {what}: a row has {len(fields)} fields, not 3; fetch it again")
        try:
            rating = float(fields[1])
        except ValueError:
            raise CorruptFileError(
                f"archive {what}: rating {fields[1]!r} is no number; fetch it again"
            ) from None
        rows.append(f"{rating:.2f}\t{fields[2].strip().replace(QUOTES, chr(34))}\n")
    if len(rows) != ROWS:
        raise CorruptFileError(f"archive {what}: holds {len(rows)} rows, not {ROWS}; fetch it again")
    return "".join(rows)
