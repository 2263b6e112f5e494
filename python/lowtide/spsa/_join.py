# SPDX-License-Identifier: Apache-2.0
"""Joining a shared run: who this worker is, and what the others did before it came."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowtide import random
from lowtide.errors import LowtideRuntimeError
from lowtide.spsa._commit import Commit
from lowtide.spsa._log import LogReader
from lowtide.spsa.comm import Hello, Joined

if TYPE_CHECKING:
    from lowtide.spsa._optimizer import SPSA


def run_id_of(opt: SPSA) -> bytes:
    """16 bytes that are equal for workers with equal tensors, method, codec and seed."""
    parts = (opt.manifest.digest, opt.method.to_json(), opt.schedule.codec.name, opt.seed)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def join(opt: SPSA) -> Sequence[Commit]:
    """Join the run of ``opt.comm``.

    Returns:
        The commits from the optimizer's step on, to be applied.

    Raises:
        LowtideRuntimeError: this worker's history cannot be shown, or is not that of the others.
    """
    commits: tuple[Commit, ...] = ()
    base = opt.masters.digest()
    if opt.t:
        log = opt.run_log
        if log is None or log.writer is None:
            raise LowtideRuntimeError(
                f"comm: this worker is at step {opt.t}, and to join it must show what led there; give log= the path of its log"
            )
        log.writer.flush()
        reader = LogReader(log.path)
        if reader.header.first_step:
            raise LowtideRuntimeError(
                f"comm: {log.path} begins at step {reader.header.first_step}; join with a log from step 0, or from the base weights"
            )
        base, commits = reader.header.base_digest, tuple(s.commit for s in reader.steps())
    hello = Hello(
        run_id=run_id_of(opt), codec=opt.schedule.codec.name, rng=random.self_test_digest(),
        manifest=opt.manifest.digest, base=base, commits=commits,
    )  # fmt: skip
    joined: Joined = opt.comm.join(hello)
    if joined.start < opt.t:
        raise LowtideRuntimeError(
            f"comm: the others agreed on another history from step {joined.start} on, this worker is at step {opt.t}: load the base "
            f"weights, lt.spsa.replay its log upto={joined.start}, and join again"
        )
    return joined.commits
