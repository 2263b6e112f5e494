# SPDX-License-Identifier: Apache-2.0
"""Hand-made GGUF files, wheels and assets; nothing here needs the network."""

from __future__ import annotations

import hashlib
import logging
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowtide import assets
from lowtide.assets import cache
from lowtide.assets.catalog import Asset
from lowtide.assets.progress import Progress


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):  # as it is: type and payload
        return value
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, 5, len(value)) + value.astype("<i4").tobytes()
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))


@dataclass
class GGUFBuilder:
    """Writes a GGUF file, right or wrong: every field of it can be overridden."""

    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_pairs: int | None = None
    pairs: list[tuple[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    data: bytes = b""

    def pair(self, key: str, value: Any) -> GGUFBuilder:
        self.pairs.append((key, value))
        return self

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, raw: bytes) -> GGUFBuilder:
        """Add a tensor of row-major ``shape``; its entry in ``tensors`` may be falsified afterwards."""
        self.data += bytes(-len(self.data) % self.alignment)
        entry = {
            "name": name,
            "dims": shape[::-1],
            "n_dims": len(shape),
            "kind": kind,
            "offset": len(self.data),
        }
        self.tensors.append(entry)
        self.data += raw
        return self

    def f32(self, name: str, values: np.ndarray) -> GGUFBuilder:
        return self.tensor(name, values.shape, 0, values.astype("<f4").tobytes())

    def build(self) -> bytes:
        head = self.magic + struct.pack("<I", self.version)
        head += struct.pack("<Q", len(self.tensors) if self.n_tensors is None else self.n_tensors)
        head += struct.pack("<Q", len(self.pairs) if self.n_pairs is None else self.n_pairs)
        head += b"".join(_string(key) + _value(value) for key, value in self.pairs)
        for t in self.tensors:
            head += _string(t["name"]) + struct.pack("<I", t["n_dims"])
            head += b"".join(struct.pack("<Q", d) for d in t["dims"])
            head += struct.pack("<IQ", t["kind"], t["offset"])
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


@pytest.fixture
def gguf() -> GGUFBuilder:
    return GGUFBuilder()


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path


@pytest.fixture
def make_wheel() -> Callable[[Path, dict[str, bytes]], Path]:
    return write_wheel


@dataclass
class Toy:
    """A small asset ``toy`` in the catalog and its own cache; ``builds`` has an item for each time it was made."""

    asset: Asset
    root: Path
    wheel: Path
    builds: list[int]

    def fetch(self) -> Path:
        return assets.fetch("toy", cache_dir=self.root, progress=False)

    def leftovers(self) -> list[str]:
        return sorted(p.name for p in (self.root / "tmp").iterdir() if p.suffix != ".lock")


def toy_asset(wheel: Path, build: Callable[[Path, Path, Path, Progress], None], text: bytes) -> Asset:
    return Asset(
        name="toy",
        requirement="toy==1.0",
        package=wheel.name,
        package_bytes=wheel.stat().st_size,
        package_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        build=build,
        recipe=1,
        result="toy.txt",
        pins={"toy.txt": hashlib.sha256(text).hexdigest()},
        scratch_bytes=1 << 20,
        licence="none",
        about="a toy",
    )


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Toy:
    text = b"low tide, high tide\n" * 100
    wheel = write_wheel(tmp_path / "toy-1.0-py3-none-any.whl", {"toy/toy.txt": text})
    builds: list[int] = []

    def build(wheel: Path, out: Path, scratch: Path, progress: Progress) -> None:
        assert not any(out.iterdir())
        assert not any(scratch.iterdir())
        builds.append(1)
        with zipfile.ZipFile(wheel) as z:
            (out / "toy.txt").write_bytes(z.read("toy/toy.txt"))
        (out / "sub").mkdir()
        (out / "sub" / "more.txt").write_text("more")

    asset = toy_asset(wheel, build, text)
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    monkeypatch.setattr(cache, "_verified", {})
    root = tmp_path / "cache"
    (root / "downloads").mkdir(parents=True)
    (root / "downloads" / wheel.name).write_bytes(wheel.read_bytes())
    caplog.set_level(logging.INFO, logger="lowtide.assets")
    return Toy(asset, root, wheel, builds)
