# SPDX-License-Identifier: Apache-2.0
"""Seeded damage for byte formats: what disks, networks and hostile writers do to bytes."""

from __future__ import annotations

import random

_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(data: bytes, other: bytes, rng: random.Random, most: int = 4) -> bytes:
    """``data`` with one to ``most`` faults; ``other`` lends bytes. May by chance be ``data`` itself."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        n = len(out)
        if n == 0:
            return bytes(out)
        at = rng.randrange(n)
        size = min(rng.choice((1, 1, 2, 4, 8, 16, 64)), n - at)
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice(_EDGES)
        elif kind == 2:
            out[at] = rng.randrange(256)
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = rng.randbytes(size)
        elif kind == 5:
            to = rng.randrange(n)
            out[to:to] = out[at : at + size]
        elif kind == 6:
            to = rng.randrange(n)
            out[at : at + size], out[to : to + size] = out[to : to + size], out[at : at + size]
        elif kind == 7:
            del out[at:]
        else:
            begin = rng.randrange(len(other))
            out[at : at + size] = other[begin : begin + size]
    return bytes(out)
