# SPDX-License-Identifier: Apache-2.0
"""A bounds-checked reader of GGUF version 2 and 3 files (little endian), from a memory map.

Layout: magic, version, counts; key/value pairs; tensor descriptors; padding; tensor data. Every count, length
and offset comes from the file, so each is compared with the bytes that are really left before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import CorruptFileError

# struct codes of the scalar value types; 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_MAX_NAME = 256
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16

T = TypeVar("T")


@dataclass(frozen=True)
class Encoding:
    """How a tensor type stores its elements: ``block`` elements in ``nbytes`` bytes."""

    name: str
    block: int
    nbytes: int


ENCODINGS = {0: Encoding("F32", 1, 4), 3: Encoding("Q4_1", 32, 20), 8: Encoding("Q8_0", 32, 34)}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor descriptor: row-major ``shape`` (slowest axis first) and absolute byte range in the file."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int
    nbytes: int


class _Cursor:
    def __init__(self, data: npt.NDArray[np.uint8], path: Path) -> None:
        self.data = memoryview(data.data)
        self.path = path
        self.pos = 0

    def fail(self, what: str, remedy: str = "the file is damaged, delete it and fetch it again") -> NoReturn:
        raise CorruptFileError(f"GGUF file {self.path}: {what}; {remedy}")

    def take(self, n: int, what: str) -> memoryview:
        left = len(self.data) - self.pos
        if n > left:
            self.fail(f"{what} at byte {self.pos} needs {n} bytes and {left} are left")
        self.pos += n
        return self.data[self.pos - n : self.pos]

    def unpack(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, item_bytes: int, what: str) -> int:
        """Read a count of things of at least ``item_bytes`` each; refuse it before anything is allocated."""
        n = int(self.unpack("Q", what))
        left = len(self.data) - self.pos
        if n * item_bytes > left:
            self.fail(f"{what} is {n}, more than the {left} bytes that follow can hold")
        return n

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.count(1, f"length of {what}"), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, key: str) -> Any:
        kind = int(self.unpack("I", f"type of {key}"))
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind], key)
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            self.fail(f"{key} has the unknown value type {kind}")
        item = int(self.unpack("I", f"item type of {key}"))
        if item == _STRING:
            return [self.string(key) for _ in range(self.count(8, f"length of {key}"))]
        if item not in _SCALARS:
            self.fail(f"{key} is an array of type {item}, which is unknown or nested")
        dtype = np.dtype("<" + _SCALARS[item] if item != 7 else "?")
        n = self.count(dtype.itemsize, f"length of {key}")
        return np.frombuffer(self.take(n * dtype.itemsize, key), dtype=dtype).copy()


class GGUFFile:
    """The metadata and the tensor table of a GGUF file.

    Args:
        path: the file; it stays memory-mapped while this object or a view of it lives.

    Attributes:
        metadata: key to int, float, bool, str, ``list[str]`` or 1-D array.
        tensors: name to :class:`TensorInfo`; ranges lie inside the file and do not overlap.

    Raises:
        CorruptFileError: the file contradicts the format anywhere outside the tensor data.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        # An empty file cannot be mapped.
        self._data: npt.NDArray[np.uint8] = (
            np.memmap(self.path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        )
        self._cursor = cur = _Cursor(self._data, self.path)
        if bytes(cur.take(4, "magic")) != b"GGUF":
            cur.fail("does not start with the magic bytes GGUF")
        version = int(cur.unpack("I", "version"))
        if version not in (2, 3):
            cur.fail(f"version {version} is not 2 or 3 in little-endian byte order")
        n_tensors = cur.count(32, "tensor count")
        n_pairs = cur.count(13, "key count")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = cur.string("a key")
            if key in self.metadata:
                cur.fail(f"key {key!r} occurs twice")
            self.metadata[key] = cur.value(f"key {key!r}")
        self.tensors = self._read_tensor_table(n_tensors)

    def _read_tensor_table(self, n_tensors: int) -> dict[str, TensorInfo]:
        cur = self._cursor
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            cur.fail(f"general.alignment is {alignment!r}, not a power of two from 8 to {_MAX_ALIGNMENT}")
        relative: list[TensorInfo] = []
        for _ in range(n_tensors):
            name = cur.string("a tensor name")
            if not 0 < len(name) <= _MAX_NAME:
                cur.fail(f"a tensor name has {len(name)} characters, not 1 to {_MAX_NAME}")
            n_dims = int(cur.unpack("I", f"rank of {name!r}"))
            if not 1 <= n_dims <= _MAX_DIMS:
                cur.fail(f"tensor {name!r} has {n_dims} dimensions, not 1 to {_MAX_DIMS}")
            # The file lists the fastest axis first.
            shape = tuple(int(cur.unpack("Q", f"shape of {name!r}")) for _ in range(n_dims))[::-1]
            kind = int(cur.unpack("I", f"type of {name!r}"))
            offset = int(cur.unpack("Q", f"offset of {name!r}"))
            if kind not in ENCODINGS:
                takes = ", ".join(f"{k} ({e.name})" for k, e in ENCODINGS.items())
                cur.fail(f"tensor {name!r} has type {kind}", f"this reader takes {takes}")
            enc = ENCODINGS[kind]
            if min(shape) < 1 or shape[-1] % enc.block:
                cur.fail(f"tensor {name!r} has shape {shape}, whose rows are not blocks of {enc.block}")
            if offset % alignment:
                cur.fail(f"tensor {name!r} starts at {offset}, which is not aligned to {alignment}")
            nbytes = math.prod(shape) // enc.block * enc.nbytes
            relative.append(TensorInfo(name, shape, enc, offset, nbytes))
        base = -(-cur.pos // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        end, previous = base, "the header"
        for t in sorted(relative, key=lambda t: t.offset):
            start = base + t.offset
            if t.name in tensors:
                cur.fail(f"tensor {t.name!r} occurs twice")
            if start < end:
                cur.fail(f"tensor {t.name!r} overlaps {previous}")
            end, previous = start + t.nbytes, f"tensor {t.name!r}"
            if end > len(self._data):
                cur.fail(f"tensor {t.name!r} ends at byte {end} of a file of {len(self._data)}")
            tensors[t.name] = TensorInfo(t.name, t.shape, t.encoding, start, t.nbytes)
        return tensors

    def require(self, key: str, kind: type[T]) -> T:
        """Return ``metadata[key]``, or raise :class:`CorruptFileError` if it is missing or not a ``kind``."""
        value = self.metadata.get(key)
        if type(value) is not kind:
            self._cursor.fail(f"key {key!r} is {type(value).__name__}, not {kind.__name__}")
        return value

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor, dequantized to a fresh float32 array of its shape.

        Raises:
            CorruptFileError: there is no such tensor, or a value or block scale is not finite.
        """
        info = self.tensors.get(name)
        if info is None:
            self._cursor.fail(f"tensor {name!r} is missing")
        raw = self._data[info.offset : info.offset + info.nbytes]
        with np.errstate(over="ignore", invalid="ignore"):
            values, finite = dequantize(raw, info.encoding)
        if not finite:
            self._cursor.fail(f"tensor {name!r} holds values that are not finite")
        return values.reshape(info.shape)


def dequantize(raw: npt.NDArray[np.uint8], encoding: Encoding) -> tuple[npt.NDArray[np.float32], bool]:
    """Decode whole blocks to float32, in file order, rounding after each operation as llama.cpp does.

    Q8_0 is ``d`` (fp16) and 32 int8: ``d * q``. Q4_1 is ``d``, ``m`` (fp16) and 16 bytes whose low nibbles
    are elements 0-15 and high nibbles 16-31: ``d * q + m``.

    Args:
        raw: uint8, 1-D, a multiple of ``encoding.nbytes`` long.

    Returns:
        The values, 1-D, and whether all of them are finite.
    """
    if encoding.name == "F32":
        values = raw.view("<f4").astype(np.float32)
        return values, bool(np.isfinite(values).all())
    blocks = raw.reshape(len(raw) // encoding.nbytes, encoding.nbytes)
    out = np.empty((len(blocks), encoding.block), dtype=np.float32)
    if encoding.name == "Q8_0":
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        np.multiply(blocks[:, 2:].view(np.int8), scale, out=out)
        return out.reshape(-1), bool(np.isfinite(scale).all())
    head = blocks[:, :4].copy().view("<f2").astype(np.float32)
    codes = blocks[:, 4:]
    np.multiply(codes & 0x0F, head[:, :1], out=out[:, :16])
    np.multiply(codes >> 4, head[:, :1], out=out[:, 16:])
    out += head[:, 1:]
    return out.reshape(-1), bool(np.isfinite(head).all())
