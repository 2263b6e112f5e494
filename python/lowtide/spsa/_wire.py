# SPDX-License-Identifier: Apache-2.0
"""Reading bytes that others wrote: bounded, canonical, little-endian. Shared by the run log and the wire."""

from __future__ import annotations

import struct

from lowtide import _core
from lowtide.errors import LowtideValueError

_F64 = struct.Struct("<d")
_U32 = struct.Struct("<I")
#: Most bytes of a varint: 63 bits.
_VARINT_MAX = 9


class FormatError(LowtideValueError):
    """Bytes that are not what they should be; ``offset`` is where, counted from their beginning."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Truncated(FormatError):
    """The bytes end before what they announce."""


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC32C (Castagnoli) of ``data``, continuing ``crc``.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return _core.crc32c(data, crc)


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first; ``value`` in [0, 2**63)."""
    if not 0 <= value < 1 << 63:
        raise LowtideValueError(f"a varint holds integers in [0, 2**63), got {value!r}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """A cursor over ``data[start:end]`` that never reads outside of it.

    Every read names what it reads (``what``), for the error. A varint must be the shortest of its value, so
    that bytes and values correspond one to one.

    Raises:
        Truncated: the data ends first.
        FormatError: a value outside of its bounds.
    """

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.pos = start
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.pos

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes."""
        pos = self.pos
        if size < 0 or size > self.end - pos:
            raise Truncated(f"{what}: {size} bytes announced, {self.end - pos} left", pos)
        self.pos = pos + size
        return self.data[pos : self.pos]

    def u8(self, what: str) -> int:
        """One byte."""
        pos = self.pos
        if pos >= self.end:
            raise Truncated(f"{what}: 1 byte announced, 0 left", pos)
        self.pos = pos + 1
        return self.data[pos]

    def u32(self, what: str) -> int:
        """Four bytes, little-endian."""
        return int(_U32.unpack(self.take(4, what))[0])

    def f64(self, what: str) -> float:
        """A finite IEEE double."""
        at = self.pos
        value = float(_F64.unpack(self.take(8, what))[0])
        if value - value != 0.0:
            raise FormatError(f"{what}: {value} where a finite number belongs", at)
        return value

    def varint(self, what: str, most: int, least: int = 0) -> int:
        """An integer in [least, most]."""
        data, pos, end = self.data, self.pos, self.end
        value = shift = 0
        while True:
            if pos >= end:
                raise Truncated(f"{what}: the integer is cut off", pos)
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift >= 7 * _VARINT_MAX:
                raise FormatError(f"{what}: an integer of more than {_VARINT_MAX} bytes", self.pos)
        if byte == 0 and shift:
            raise FormatError(f"{what}: an integer written longer than need be", self.pos)
        if not least <= value <= most:
            raise FormatError(f"{what}: {value} is outside of [{least}, {most}]", self.pos)
        self.pos = pos
        return value

    def text(self, what: str, most: int) -> str:
        """UTF-8 text of at most ``most`` bytes, its length before it, without control characters."""
        size = self.varint(f"length of {what}", most)
        at = self.pos
        raw = self.take(size, what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{what}: not UTF-8", at) from None
        if not text.isprintable():
            raise FormatError(f"{what}: holds control characters", at)
        return text

    def done(self, what: str) -> None:
        """Refuse bytes that are left over."""
        if self.pos != self.end:
            raise FormatError(f"{what}: {self.end - self.pos} bytes too many", self.pos)


def put_text(text: str, what: str, most: int) -> bytes:
    """The bytes that :meth:`Reader.text` reads."""
    raw = text.encode("utf-8")
    if len(raw) > most or not text.isprintable():
        raise LowtideValueError(f"{what} must be printable text of at most {most} bytes, got {text!r}")
    return varint(len(raw)) + raw
