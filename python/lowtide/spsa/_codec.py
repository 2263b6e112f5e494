# SPDX-License-Identifier: Apache-2.0
"""Codes of the projected derivative: what is committed, logged and sent instead of a float.

A code is an integer of ``bits`` bits. ``log8`` is a byte ``s << 7 | m``: 0x00 is no contribution, 0x80 an exact
zero, and otherwise ``|g| = 2**((m - 64) / 8) * 2**exponent``: 127 magnitudes a factor 2**(1/8) apart. It is
encoded with stochastic rounding between neighbours in the linear domain, so that its mean is ``g``.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowtide import _core
from lowtide.errors import LowtideValueError
from lowtide.random import ROLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: 2**(i/8) rounded to float32: decoding is this times a power of two, exact in double.
_EIGHTHS = (
    1.0,
    float.fromhex("0x1.172b84p+0"),
    float.fromhex("0x1.306fe0p+0"),
    float.fromhex("0x1.4bfdaep+0"),
    float.fromhex("0x1.6a09e6p+0"),
    float.fromhex("0x1.8ace54p+0"),
    float.fromhex("0x1.ae89fap+0"),
    float.fromhex("0x1.d5818ep+0"),
)
#: The magnitude of each m at exponent 0; index 0 is the zero.
_LEVELS = (0.0, *(math.ldexp(_EIGHTHS[(m - 64) & 7], (m - 64) >> 3) for m in range(1, 128)))
_TABLE = np.array([math.nan, *_LEVELS[1:], 0.0, *(-x for x in _LEVELS[1:])])
#: Exponents fit a signed byte.
EXPONENT_MIN, EXPONENT_MAX = -128, 127
#: Codes that the next exponent looks at.
WINDOW = 64
#: The parameter id under which draws are made: no parameter has it.
_NO_PARAM = 2**32 - 1


def draw(seed: int, step: int, slot: int) -> int:
    """32 random bits of the counter-based stream, for rounding the derivative of one slot of one step."""
    word = np.empty(1, dtype=np.uint32)
    _core.random_words(word, seed, step, slot, _NO_PARAM, ROLES["quant_sr"], 0)
    return int(word[0])


@dataclass(frozen=True)
class Codec:
    """One way of writing a derivative as an integer; see :data:`CODECS`.

    Attributes:
        name: what users write. id: what files hold. bits: size of a code.
        none: the code of "no contribution". adaptive: whether the exponent counts.
    """

    name: str
    id: int
    bits: int
    none: int
    adaptive: bool = False

    def encode(self, g: float, exponent: int = 0, draw: int = 0) -> int:
        """The code of ``g``; NaN and infinities become "no contribution", too large values the largest.

        Args:
            g: the derivative, a double.
            exponent: in [-128, 127]; only ``log8`` uses it.
            draw: 32 random bits that decide the rounding (:func:`draw`); the same bits give the same code.
        """
        if not math.isfinite(g):
            return self.none
        if self.name == "log8":
            return _encode_log8(g, exponent, draw)
        if self.name == "sign1":
            # A tie is a coin, so that objectives with many of them do not drift to one side.
            return 1 if g > 0 or (g == 0 and draw & 1) else 2
        if self.name == "f16":
            return int(np.float16(min(max(g, -65504.0), 65504.0)).view(np.uint16))
        most = 3.4028234663852886e38
        return int(struct.unpack("<I", struct.pack("<f", min(max(g, -most), most)))[0])

    def decode(self, code: int, exponent: int = 0) -> float | None:
        """The value of a code, exact; None for "no contribution".

        Raises:
            LowtideValueError: not a code of this codec.
        """
        if not 0 <= code < 1 << self.bits:
            raise LowtideValueError(f"code must be in [0, 2**{self.bits}) for {self.name}, got {code!r}")
        if code == self.none:
            return None
        if self.name == "log8":
            magnitude = math.ldexp(_LEVELS[code & 127], exponent)
            return -magnitude if code > 128 else magnitude
        if self.name == "sign1":
            if code == 3:
                raise LowtideValueError("code must be 0 (none), 1 (plus) or 2 (minus) for sign1, got 3")
            return 1.0 if code == 1 else -1.0
        if self.name == "f16":
            value = float(np.uint16(code).view(np.float16))
        else:
            value = float(struct.unpack("<f", struct.pack("<I", code))[0])
        if not math.isfinite(value):
            raise LowtideValueError(f"code must be finite or 0x{self.none:x} for {self.name}, got 0x{code:x}")
        return value

    def decode_array(
        self, codes: NDArray[np.uint32], exponent: NDArray[np.int64] | int = 0
    ) -> NDArray[np.float64]:
        """Values of many codes; NaN for "no contribution". ``exponent`` broadcasts against ``codes``."""
        values: NDArray[np.float64]
        if self.name == "log8":
            values = np.ldexp(_TABLE[codes], exponent)
        elif self.name == "sign1":
            values = np.array([math.nan, 1.0, -1.0, math.nan])[codes]
        else:
            kind = np.float16 if self.name == "f16" else np.float32
            bits = codes.astype(np.uint16 if self.name == "f16" else np.uint32)
            with np.errstate(invalid="ignore"):  # signalling NaN
                values = bits.view(kind).astype(np.float64)
        return values

    def valid_array(self, codes: NDArray[np.uint32]) -> bool:
        """Whether every element is a code of this codec."""
        if self.name == "log8":
            return True
        if self.name == "sign1":
            return not bool((codes == 3).any())
        values = self.decode_array(codes)
        return bool((np.isfinite(values) | (codes == self.none)).all())

    def size(self, count: int) -> int:
        """Bytes of ``count`` packed codes."""
        return (count * self.bits + 7) // 8

    def pack(self, codes: Iterable[int]) -> bytes:
        """Codes side by side, little-endian; four to a byte for ``sign1``, the first in the lowest bits."""
        if self.bits == 8:
            return bytes(codes)
        if self.bits == 2:
            flat = np.fromiter(codes, np.uint8)
            flat = np.pad(flat, (0, -flat.size % 4)).reshape(-1, 4)
            shifts = np.array([0, 2, 4, 6], np.uint8)
            return bytes((flat << shifts).sum(axis=1, dtype=np.uint8).tobytes())
        return np.fromiter(codes, f"<u{self.bits // 8}").tobytes()

    def unpack(self, data: bytes, count: int) -> NDArray[np.uint32]:
        """The ``count`` codes in ``data``, which is ``size(count)`` bytes.

        Raises:
            LowtideValueError: a code that does not exist, or padding that is not zero.
        """
        if len(data) != self.size(count):
            raise LowtideValueError(
                f"{count} codes of {self.name} are {self.size(count)} bytes, got {len(data)}"
            )
        if self.bits == 2:
            raw = np.frombuffer(data, np.uint8)
            flat = ((raw[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).reshape(-1).astype(np.uint32)
            if flat[count:].any():
                raise LowtideValueError("the bits behind the last code must be zero")
            flat = flat[:count]
        else:
            flat = np.frombuffer(data, f"<u{self.bits // 8}").astype(np.uint32)
        if not self.valid_array(flat):
            raise LowtideValueError(f"not every code is one of {self.name}")
        return flat


def _encode_log8(g: float, exponent: int, draw: int) -> int:
    a = math.ldexp(abs(g), -exponent)
    sign = 128 if g < 0 else 0
    if a >= _LEVELS[127]:
        return sign | 127
    if a < _LEVELS[1]:
        m, low, high = 0, 0.0, _LEVELS[1]
    else:
        fraction, power = math.frexp(a)  # in [1/2, 1)
        fraction *= 2.0
        m = 64 + 8 * (power - 1) + sum(fraction >= e for e in _EIGHTHS[1:])
        low, high = _LEVELS[m], _LEVELS[m + 1]
    # a - low and high - low are exact; up with probability (a - low) / (high - low).
    if draw * (high - low) < (a - low) * 2.0**32:
        m += 1
    return (sign | m) if m else 128


#: The codecs by name: one byte, two bits, an IEEE half, an IEEE single.
CODECS: dict[str, Codec] = {
    c.name: c
    for c in (
        Codec("log8", 0, 8, 0x00, adaptive=True),
        Codec("sign1", 1, 2, 0),
        Codec("f16", 2, 16, 0x7E00),
        Codec("f32", 3, 32, 0x7FC00000),
    )
}


def get_codec(name: str | int) -> Codec:
    """The codec of a name or of the id in a file."""
    for codec in CODECS.values():
        if name in (codec.name, codec.id):
            return codec
    raise LowtideValueError(f"codec must be one of {', '.join(CODECS)}, got {name!r}")


class ExponentRule:
    """The exponent of the next step from the codes that were committed: integers only, so every process and every
    replay finds the same one and no log holds it.

    The magnitudes (m and exponent together, in eighths of an octave) of the last 64 contributions that are not
    zero have a median; the exponent moves by one at most towards the one that puts it at m = 64. While there
    are only zeros it falls by one: derivatives too small for any code look like that.

    Args:
        codec: name of the codec; only ``log8`` has an exponent, others stay at 0.
        initial: exponent of the first step.

    Attributes:
        exponent: of the next step.
    """

    def __init__(self, codec: str = "log8", initial: int = 0) -> None:
        if not EXPONENT_MIN <= initial <= EXPONENT_MAX:
            raise LowtideValueError(f"initial must be in [-128, 127], got {initial!r}")
        self.codec = get_codec(codec)
        self.exponent = initial if self.codec.adaptive else 0
        self._levels: deque[int | None] = deque(maxlen=WINDOW)

    def update(self, codes: Iterable[int]) -> None:
        """Take in the codes of one commit, slots ascending (contributions only)."""
        if not self.codec.adaptive:
            return
        base = 8 * self.exponent - 64
        fresh = [(code & 127) + base if code & 127 else None for code in codes if code]
        if not fresh:
            return
        self._levels.extend(fresh)
        levels = sorted(x for x in self._levels if x is not None)
        wanted = (levels[(len(levels) - 1) // 2] + 4) // 8 if levels else self.exponent - 1
        move = (wanted > self.exponent) - (wanted < self.exponent)
        self.exponent = min(max(self.exponent + move, EXPONENT_MIN), EXPONENT_MAX)

    def state_dict(self) -> dict[str, Any]:
        """Plain integers from which :meth:`load_state_dict` continues; a level of a zero is None."""
        return {"exponent": self.exponent, "levels": list(self._levels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises:
            LowtideValueError: not a state; nothing is changed.
        """
        exponent, levels = state.get("exponent"), state.get("levels")
        bound = 8 * (EXPONENT_MAX + 1) + 64
        if (
            type(exponent) is not int
            or not EXPONENT_MIN <= exponent <= EXPONENT_MAX
            or type(levels) is not list
            or len(levels) > WINDOW
            or not all(x is None or (type(x) is int and abs(x) <= bound) for x in levels)
        ):
            raise LowtideValueError(
                "state must be what ExponentRule.state_dict() returned: an exponent in [-128, 127] and up to 64 levels"
            )
        self.exponent = exponent
        self._levels = deque(levels, maxlen=WINDOW)
