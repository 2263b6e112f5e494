# SPDX-License-Identifier: Apache-2.0
"""The head of a run log: 128 bytes of numbers, then the manifest and the method as compressed text.

    offset size
         0    6  "LTLOG" and a zero byte
         6    2  version of the format
         8    4  ids: random streams, distribution, codec; a zero byte
        12    4  size of the compressed block that follows the header
        16   16  run id
        32    8  seed
        40   16  digest of the weights before the first step (``Masters.digest``)
        56   32  digest of the manifest
        88    8  eps, a double
        96    8  first step
       104    4  size of the block's text
       108    4  CRC32C of the block
       112   12  zero
       124    4  CRC32C of the 124 bytes before

The text is three lines of JSON: method, manifest, state of the schedule before the first step (``null`` at step 0).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import Codec, get_codec
from lowtide.spsa._commit import MAX_STEP
from lowtide.spsa._manifest import Manifest
from lowtide.spsa._method import Hyper, Method
from lowtide.spsa._wire import FormatError, Truncated, crc32c

MAGIC = b"LTLOG\0"
VERSION = 1
#: Philox4x32 with the addresses of lowtide.random.
RNG = 1
SIZE = 128
#: Bytes of the text and of its compressed block, at most.
MAX_TEXT = 1 << 26
_FIELDS = struct.Struct("<6sH4BI16sQ16s32sdQII12xI")


@dataclass(frozen=True)
class Header:
    """What a log says of its run; with the base weights and the commits it determines every later state.

    Attributes:
        manifest, method: of the run. seed: 63 bits. codec: name of the codec.
        eps: size of the perturbation (for information: replay does not need it).
        base_digest: 16 bytes, of the weights before ``first_step``.
        run_id: 16 bytes that no other run has.
        first_step: 0, or where a snapshot was taken; then ``state`` is that of the schedule.

    Raises:
        LowtideValueError: a value that cannot be written, named.
    """

    manifest: Manifest
    method: Method
    seed: int
    codec: str
    eps: float
    base_digest: bytes
    run_id: bytes
    first_step: int = 0
    state: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        get_codec(self.codec)
        for name, size in (("run_id", 16), ("base_digest", 16)):
            if len(getattr(self, name)) != size:
                raise LowtideValueError(f"{name} must be {size} bytes, got {len(getattr(self, name))}")
        if not 0 <= self.seed < 1 << 63:
            raise LowtideValueError(f"seed must be in [0, 2**63), got {self.seed!r}")
        if not 0 <= self.first_step < MAX_STEP:
            raise LowtideValueError(f"first_step must be in [0, 2**48), got {self.first_step!r}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise LowtideValueError(f"eps must be finite and > 0, got {self.eps!r}")
        if self.first_step and self.state is None:
            raise LowtideValueError("state of the schedule is needed where first_step is not 0")

    @cached_property
    def groups(self) -> int:
        """Number of parameter groups."""
        return 1 + max((e.group for e in self.manifest), default=0)

    @property
    def the_codec(self) -> Codec:
        """The codec itself."""
        return get_codec(self.codec)

    def to_bytes(self) -> bytes:
        """Header and block."""
        state = json.dumps(self.state, sort_keys=True, separators=(",", ":"), allow_nan=False)
        text = "\n".join((self.method.to_json(), self.manifest.to_json(), state)).encode()
        if len(text) > MAX_TEXT:
            raise LowtideValueError(f"manifest must take at most {MAX_TEXT} bytes as text, got {len(text)}")
        block = zlib.compress(text, 9)
        head = _FIELDS.pack(
            MAGIC, VERSION, RNG, self.method.dist_id, self.the_codec.id, 0, len(block), self.run_id, self.seed,
            self.base_digest, self.manifest.digest, self.eps, self.first_step, len(text), crc32c(block), 0,
        )[:-4]  # fmt: skip
        return head + crc32c(head).to_bytes(4, "little") + block

    @staticmethod
    def from_bytes(data: bytes) -> tuple[Header, int]:
        """The header at the beginning of ``data``, and where the frames begin.

        Raises:
            Truncated: the data ends within the header.
            FormatError: not a log, another version, damage.
        """
        if not data.startswith(MAGIC[: max(len(data), 1)]):
            raise FormatError("this is not a run log: it does not begin with LTLOG")
        if len(data) < SIZE:
            raise Truncated("the header is cut off", len(data))
        fields = _FIELDS.unpack_from(data)
        (_, version, rng, dist, codec, zero, block_size, run_id, seed) = fields[:9]
        (base, manifest_digest, eps, first, text_size, block_crc, crc) = fields[9:]
        if crc != crc32c(data[: SIZE - 4]):
            raise FormatError("the header is damaged: its checksum does not match", SIZE - 4)
        if version != VERSION:
            raise FormatError(f"format version {version}, this library reads {VERSION}: update lowtide", 6)
        if rng != RNG:
            raise FormatError(f"random streams of kind {rng} are unknown: update lowtide", 8)
        if zero or any(data[112:124]):
            raise FormatError("reserved bytes of the header are not zero: update lowtide", 11)
        if text_size > MAX_TEXT or block_size > MAX_TEXT:
            raise FormatError(f"the manifest takes {text_size} bytes, at most {MAX_TEXT} are allowed", 104)
        if len(data) < SIZE + block_size:
            raise Truncated("the manifest is cut off", len(data))
        block = data[SIZE : SIZE + block_size]
        if crc32c(block) != block_crc:
            raise FormatError("the manifest is damaged: its checksum does not match", SIZE)
        header = _from_text(_inflate(block, text_size), run_id, seed, base, eps, codec, first)
        if header.manifest.digest != manifest_digest or header.method.dist_id != dist:
            raise FormatError("the manifest and the header contradict each other", 56)
        return header, SIZE + block_size


def _inflate(block: bytes, size: int) -> str:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(block, size + 1)
        text = raw.decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise FormatError(f"the manifest cannot be unpacked ({error})", SIZE) from None
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        raise FormatError("the manifest has not the size that the header gives", SIZE)
    return text


def _from_text(
    text: str, run_id: bytes, seed: int, base: bytes, eps: float, codec: int, first: int
) -> Header:
    lines = text.split("\n")
    if len(lines) != 3:
        raise FormatError(f"the manifest must be three lines, got {len(lines)}", SIZE)
    try:
        state = json.loads(lines[2])
        if state is not None and type(state) is not dict:
            raise LowtideValueError("the schedule's state must be a table")
        return Header(
            manifest=Manifest.from_json(lines[1]),
            method=Method.from_json(lines[0]),
            seed=seed,
            codec=get_codec(codec).name,
            eps=eps,
            base_digest=base,
            run_id=run_id,
            first_step=first,
            state=state,
        )
    except (ValueError, TypeError, RecursionError) as error:  # LowtideErrors are these too
        raise FormatError(f"the header cannot be read ({error})", SIZE) from None


def root(head: bytes) -> bytes:
    """Chain hash before the first frame: BLAKE2b-128 of header and block."""
    return hashlib.blake2b(head, digest_size=16).digest()


def hyper_values(hyper: Hyper) -> tuple[float, ...]:
    """The doubles of a :class:`Hyper` in the log's order: learning rates, then decays."""
    return (*hyper.lr, *hyper.weight_decay)


def hyper_of(values: tuple[float, ...]) -> Hyper:
    """The :class:`Hyper` of :func:`hyper_values`."""
    half = len(values) // 2
    return Hyper(values[:half], values[half:])
