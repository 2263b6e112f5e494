# SPDX-License-Identifier: Apache-2.0
"""Training text from a file: .txt and .md as one document, .jsonl as one document a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lowtide.train.errors import DataError

SUFFIXES = (".txt", ".md", ".markdown", ".text", ".jsonl", ".ndjson")
_CHUNK = 1 << 16


def check_file(path: Path) -> None:
    """Refuse what cannot be a training text before anything heavy is loaded."""
    if not path.exists():
        raise DataError(f"data: there is no file {path}; give a .txt, .md or .jsonl file")
    if not path.is_file():
        raise DataError(f"data: {path} is not a file; give one .txt, .md or .jsonl file")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"data: {path} is none of {', '.join(SUFFIXES)}; convert or rename it")
    try:
        with open(path, "rb") as file:
            start = file.read(_CHUNK)
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}; check its permissions") from error
    if not start.strip():
        with open(path, "rb") as file:
            if not any(block.strip() for block in iter(lambda: file.read(_CHUNK), b"")):
                raise DataError(f"data: {path} is empty; give a file with text")
    if b"\0" in start:
        raise DataError(f"data: {path} is binary, not text; give UTF-8 text")


def documents(path: Path, text_key: str) -> Iterator[Iterator[str]]:
    """The documents of a file, each as an iterator of pieces that end at line ends (about 64 KiB).

    Pieces bound the memory of tokenisation. Raises DataError, with the line where one is at fault.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for text in _json_lines(path, text_key):
            yield _pieces(iter(text.splitlines(keepends=True)))
    else:
        yield _pieces(line for _, line in _lines(path))


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        # A piece starts where a line has text, so that runs of blank lines stay in one piece.
        if size >= _CHUNK and line.strip():
            yield "".join(held)
            held, size = [], 0
        for start in range(0, len(line), 16 * _CHUNK):  # a book without line ends
            held.append(line[start : start + 16 * _CHUNK])
            size += len(held[-1])
            if size >= 16 * _CHUNK:
                yield "".join(held)
                held, size = [], 0
    if held:
        yield "".join(held)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # newline="" would keep \r\n; universal newlines make CRLF files train like LF ones.
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise DataError(f"data: {path} line {number} holds a NUL byte; give UTF-8 text")
                yield number, line
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {path} is not UTF-8 text ({error.reason}); convert it, e.g. with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}; check its permissions") from error


def _json_lines(path: Path, text_key: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"data: {path} line {number} is not JSON; give one JSON object a line") from None
        text = record.get(text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            have = ", ".join(sorted(record)[:8]) if isinstance(record, dict) else "no keys"
            raise DataError(
                f"data: {path} line {number} has no text under {text_key!r} (it has {have}); "
                "name the right key with --text-key"
            )
        if any("\ud800" <= c <= "\udfff" for c in text):  # "\ud800" is JSON but no character
            raise DataError(
                f"data: {path} line {number} holds half a surrogate pair; give valid Unicode text"
            )
        yield text
