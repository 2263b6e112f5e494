# SPDX-License-Identifier: Apache-2.0
"""Reading members of tar archives that are not trusted, and the table inside."""

from __future__ import annotations

import io
import tarfile

import pytest

from lowtide.assets import CorruptFileError, snippets


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_reads_the_members_asked_for() -> None:
    got = snippets.read_members(tar(("a", b"1"), ("../b", b"2"), ("c", b"")), {"a", "c"}, "x")
    assert got == {"a": b"1", "c": b""}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_only_regular_files_are_read(kind: bytes) -> None:
    with pytest.raises(CorruptFileError, match="'a' is no regular file"):
        snippets.read_members(tar(("a", b""), kind=kind), {"a"}, "x")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "_MAX_BYTES", 3)
    with pytest.raises(CorruptFileError, match="at most 3 bytes"):
        snippets.read_members(tar(("a", b"1234")), {"a"}, "x")
    monkeypatch.setattr(snippets, "_MAX_MEMBERS", 2)
    with pytest.raises(CorruptFileError, match="more than 2 members"):
        snippets.read_members(tar(("b", b""), ("c", b""), ("a", b"")), {"a"}, "x")


def test_a_missing_member_is_named() -> None:
    with pytest.raises(CorruptFileError, match="holds no 'a'"):
        snippets.read_members(tar(("b", b"")), {"a"}, "x")


def test_damaged_archives_are_refused() -> None:
    whole = tar(("a", bytes(range(256)) * 64)).getvalue()
    for damaged in (
        b"",
        b"no archive",
        whole[: len(whole) // 2],
        whole[:-6] + b"\0" * 6,
        whole[:30] + b"\xff" + whole[31:],
    ):
        try:
            got = snippets.read_members(io.BytesIO(damaged), {"a"}, "x")
        except CorruptFileError:
            continue
        assert got == {"a": bytes(range(256)) * 64}  # damage after the member that was asked for


def test_the_table_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "ROWS", 2)
    assert snippets.clean(b"1\t2.26666\t ''Good''\r\n2\t-1\tbad\r\n", "x") == '2.27\t"Good"\n-1.00\tbad\n'
    with pytest.raises(CorruptFileError, match="holds 1 rows, not 2"):
        snippets.clean(b"1\t2\tx", "x")
    with pytest.raises(CorruptFileError, match="2 fields, not 3"):
        snippets.clean(b"1\t2\n", "x")
    with pytest.raises(CorruptFileError, match="no number"):
        snippets.clean(b"1\ttwo\tx\n", "x")
