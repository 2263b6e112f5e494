# SPDX-License-Identifier: Apache-2.0
"""Unpacking: members that try to leave the folder, to be something else than files, or to fill the disk."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lowtide.assets import CorruptFileError, archive
from lowtide.assets.archive import unpack

MakeWheel = Callable[[Path, dict[str, bytes]], Path]


def everything(name: str) -> str:
    return name


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_unpacks_the_chosen_members(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(
        tmp_path / "a.whl", {"p/a.txt": b"A", "p/b.txt": b"B", "p/empty": b"", "p/setup.py": b"!"}
    )
    chosen = {"p/a.txt": "x/y/a", "p/empty": "empty"}
    written = unpack(wheel, chosen.get, out, max_bytes=1)
    assert written == {"p/a.txt": out / "x" / "y" / "a", "p/empty": out / "empty"}
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == ["empty", "x", "x/y", "x/y/a"]
    assert (out / "x" / "y" / "a").read_bytes() == b"A"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:evil", "a\\..\\evil", "..", "a/.."])
def test_names_that_leave_the_folder_are_refused(
    tmp_path: Path, out: Path, make_wheel: MakeWheel, name: str
) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {name: b"x"})
    with pytest.raises(CorruptFileError, match="could leave the folder"):
        unpack(wheel, everything, out, max_bytes=100)
    # Neither may a harmless target hide such a name.
    with pytest.raises(CorruptFileError, match="could leave the folder"):
        unpack(wheel, lambda _: "harmless", out, max_bytes=100)
    assert list(tmp_path.rglob("*evil*")) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFBLK])
def test_only_regular_files_are_unpacked(tmp_path: Path, out: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as z:
        z.writestr(info, "/etc/passwd")
    with pytest.raises(CorruptFileError, match="'link' is not a regular file"):
        unpack(tmp_path / "a.whl", everything, out, max_bytes=100)
    assert not any(out.iterdir())


def test_the_size_limit_counts_all_members(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"a": bytes(60), "b": bytes(60)})
    assert len(unpack(wheel, everything, out, max_bytes=120)) == 2
    (tmp_path / "out2").mkdir()
    with pytest.raises(CorruptFileError, match="more than 119 bytes"):
        unpack(wheel, everything, tmp_path / "out2", max_bytes=119)


def test_a_member_larger_than_declared_does_not_get_through(
    tmp_path: Path, out: Path, make_wheel: MakeWheel
) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"bomb": bytes(1 << 20)})
    raw = bytearray(wheel.read_bytes())
    for at in (raw.find(b"PK\x03\x04") + 22, raw.find(b"PK\x01\x02") + 24):
        assert struct.unpack_from("<I", raw, at) == (1 << 20,)
        struct.pack_into("<I", raw, at, 10)
    wheel.write_bytes(raw)
    with pytest.raises(CorruptFileError):
        unpack(wheel, everything, out, max_bytes=100)
    assert sum(p.stat().st_size for p in out.rglob("*")) <= 100


def test_two_members_for_one_file_are_refused(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"a": b"1", "b": b"2"})
    with pytest.raises(CorruptFileError, match="two members unpack to 'same'"):
        unpack(wheel, lambda _: "same", out, max_bytes=100)


def test_a_file_used_as_a_folder_is_refused(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"a": b"1", "a/b": b"2"})
    with pytest.raises(CorruptFileError, match="claim the same path"):
        unpack(wheel, everything, out, max_bytes=100)


def test_damaged_archives_are_refused(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"a": bytes(range(256)) * 8})
    whole = wheel.read_bytes()
    for damaged in (b"", b"not a zip file", whole[: len(whole) // 2], whole[:45] + b"\xff" + whole[46:]):
        wheel.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="does not unpack"):
            unpack(wheel, everything, out, max_bytes=10_000)
        (out / "a").unlink(missing_ok=True)


def test_encrypted_members_are_refused(tmp_path: Path, out: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"a": b"1"})
    raw = bytearray(wheel.read_bytes())
    raw[raw.find(b"PK\x01\x02") + 8] |= 1
    wheel.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="encrypted"):
        unpack(wheel, everything, out, max_bytes=100)


def test_too_many_members_are_refused(
    tmp_path: Path, out: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_MAX_MEMBERS", 3)
    wheel = make_wheel(tmp_path / "a.whl", {str(i): b"" for i in range(4)})
    with pytest.raises(CorruptFileError, match="4 members are more than 3"):
        unpack(wheel, everything, out, max_bytes=100)
