# SPDX-License-Identifier: Apache-2.0
"""Runs for the log's tests: made-up commits of a made-up model."""

from __future__ import annotations

import random
from typing import Any

from lowtide.spsa._codec import CODECS
from lowtide.spsa._commit import Commit
from lowtide.spsa._header import Header
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._method import Hyper, Method

MANIFEST = Manifest(
    (
        Entry("embed.weight", 0, (7, 4), "float32", aliases=("head.weight",)),
        Entry("norm.weight", 1, (4,), "bfloat16", group=1, decay=False),
    )
)


def header(codec: str = "log8", **more: Any) -> Header:
    fields = {
        "manifest": MANIFEST,
        "method": Method(),
        "seed": 7,
        "codec": codec,
        "eps": 1e-3,
        "base_digest": bytes(range(16)),
        "run_id": b"r" * 16,
    }
    return Header(**{**fields, **more})


def hyper(step: int = 0, every: int = 10**9) -> Hyper:
    """Learning rates that change every so many steps."""
    return Hyper((1e-3 * 0.5 ** (step // every), 1e-4), (0.1, 0.0))


def commits(count: int, codec: str = "log8", total: int = 1, first: int = 0, seed: int = 0) -> list[Commit]:
    rng, code = random.Random(seed), CODECS[codec]
    out = []
    for step in range(first, first + count):
        slots = [s for s in range(total) if rng.random() < 0.9]
        out.append(
            Commit(
                step, total, tuple((s, code.encode(rng.gauss(0, 1), 0, rng.getrandbits(32))) for s in slots)
            )
        )
    return out
