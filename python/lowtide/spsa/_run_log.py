# SPDX-License-Identifier: Apache-2.0
"""An optimizer's log: opened when the first step is made, written ahead of the weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.errors import LowtideTypeError
from lowtide.spsa import _snapshot
from lowtide.spsa._header import Header
from lowtide.spsa._log import LogError, LogReader
from lowtide.spsa._log_writer import LogWriter, check_same_run
from lowtide.spsa._replay import Slopes, advance

if TYPE_CHECKING:
    from lowtide.spsa._commit import Commit
    from lowtide.spsa._method import Hyper
    from lowtide.spsa._optimizer import SPSA
    from lowtide.spsa._schedule import StepUpdate

#: Steps between two digests of the weights.
DIGEST_EVERY = 1000


class RunLog:
    """The log of one optimizer.

    Opening waits for the first step, because a state is usually loaded after the optimizer was made.

    Args:
        log: path of a new or existing ``.ltlog`` file, or an open :class:`LogWriter`.
    """

    def __init__(self, log: Any) -> None:
        if not isinstance(log, (str, os.PathLike, LogWriter)):
            raise LowtideTypeError(f"log must be a path, a LogWriter or None, got {type(log).__name__}")
        self.writer = log if isinstance(log, LogWriter) else None
        self._digested = -1
        self._roster: dict[str, range] = {}
        self.path = log.path if isinstance(log, LogWriter) else Path(log)

    def append(self, opt: SPSA, commit: Commit, hyper: Hyper) -> None:
        """Write a commit, before it is applied, and who takes part where that changed."""
        writer = self.open(opt)
        roster = getattr(opt.comm, "roster", {})  # of a run of one process: none
        if roster != self._roster:
            self._write_roster(writer, roster, opt.comm.epoch)
        writer.append(commit, hyper)

    def _write_roster(self, writer: LogWriter, roster: dict[str, range], epoch: int) -> None:
        for worker in self._roster.keys() - roster.keys():
            writer.member(worker, joins=False, epoch=epoch)
        for worker, slots in roster.items():
            if self._roster.get(worker) != slots:
                writer.member(worker, joins=True, epoch=epoch, first=slots.start, count=len(slots))
        self._roster = roster

    def applied(self, opt: SPSA) -> None:
        """Now and then, write down what the weights are."""
        if self.writer is not None and opt.t % DIGEST_EVERY == 0:
            self._digest(opt, self.writer)

    def _digest(self, opt: SPSA, writer: LogWriter) -> None:
        if self._digested != opt.t:
            writer.digest(opt.masters.digest())
            self._digested = opt.t

    def finish(self, opt: SPSA) -> None:
        """Close the file; its last word is what the weights are."""
        if self.writer is not None and 0 < self.writer.step == opt.t:
            self._digest(opt, self.writer)
        self.close()

    def snapshot(self, opt: SPSA, path: Path) -> None:
        """Save the optimizer's state beside the log and name it there."""
        writer = self.open(opt)
        writer.check_beside(path)
        _snapshot.save(path, opt.masters, opt.schedule, opt.t)
        writer.snapshot(path)

    def open(self, opt: SPSA) -> LogWriter:
        """The writer; the first time, the file is made, or checked and continued.

        Raises:
            LogError: it is of another run, or ends at another step than the optimizer is at.
        """
        if self.writer is None:
            self.writer = self._continue(opt) if self.path.exists() else LogWriter(self.path, header_of(opt))
        if self.writer.step != opt.t:
            step, path = self.writer.step, self.path
            remedy = (
                "call catch_up() to apply them, or give another name"
                if step > opt.t
                else "load the state of an earlier step, or give another name"
            )
            self.close(end=False)
            raise LogError(f"{path}: has steps up to {step}, the optimizer is at step {opt.t}; {remedy}")
        return self.writer

    def rewind(self, opt: SPSA) -> None:
        """Cut the log back to the step of an optimizer that was loaded from a checkpoint: the steps since then are made again.

        Raises:
            LogError: it is of another run; the file is as before.
        """
        from lowtide.spsa.log import truncate

        if opt.t == 0 or self.writer is not None or not self.path.exists():
            return
        self._continue(opt).close(end=False)
        if LogReader(self.path).step > opt.t:
            truncate(self.path, opt.t)

    def _continue(self, opt: SPSA) -> LogWriter:
        reader = LogReader(self.path)
        log = reader.header
        own = header_of(opt)
        if opt.t != log.first_step:  # the base is gone by now
            own = replace(own, base_digest=log.base_digest, first_step=log.first_step, state=log.state)
        check_same_run(self.path, log, own)
        if (known := reader.digests().get(opt.t)) is not None and known != opt.masters.digest():
            raise LogError(
                f"{self.path}: the weights are not those the run had at step {opt.t}; load them first"
            )
        return LogWriter.resume(self.path)

    def catch_up(self, opt: SPSA) -> int:
        """Apply what is logged from the optimizer's step on; returns how many steps that were.

        Raises:
            LogError: another run, or a digest that differs: the weights are as before.
        """
        if not self.path.exists() or self.writer is not None:
            return 0
        writer = self._continue(opt)
        writer.flush()
        try:
            reader = LogReader(self.path)
            if reader.step < opt.t:
                raise LogError(
                    f"{self.path}: has steps up to {reader.step} only, the optimizer is at step {opt.t}; load an earlier state"
                )
            start = opt.t
            self._advance(opt, reader)
        except BaseException:
            writer.close(end=False)
            raise
        self.writer, opt.t = writer, reader.step
        return reader.step - start

    def _advance(self, opt: SPSA, reader: LogReader) -> None:
        """Apply the steps that are missing, or change nothing."""
        masters, schedule = opt.masters, opt.schedule.state_dict()
        backup = [t.clone() for t in masters.tensors]
        elements = masters.elements.state_dict() if masters.elements is not None else None
        slopes: list[tuple[Slopes, StepUpdate]] = []
        try:
            advance(
                masters,
                opt.schedule,
                reader,
                opt.t,
                reader.step,
                account=lambda values, update: slopes.append((values, update)),
            )
        except BaseException:
            for t, old in zip(masters.tensors, backup, strict=True):
                t.copy_(old)
            if masters.elements is not None and elements is not None:
                masters.elements.load_state_dict(elements)
            opt.schedule.load_state_dict(schedule)
            raise
        for values, update in slopes:
            opt.account(values, update)

    def close(self, *, end: bool = True) -> None:
        """Close the file; the log can be continued."""
        if self.writer is not None:
            self.writer.close(end=end)
            self.writer = None


def header_of(opt: SPSA) -> Header:
    """The header of a log that begins at the optimizer's present step."""
    if opt.t and opt.method.kind != "plain":
        raise LogError(
            f"log: a run of {opt.method.kind} is logged from its first step or not at all (its state does not fit in a log), "
            f"and this one is at step {opt.t}"
        )
    return Header(
        manifest=opt.manifest,
        method=opt.method,
        seed=opt.seed,
        codec=opt.schedule.codec.name,
        eps=opt.eps,
        base_digest=opt.masters.digest(),
        run_id=getattr(opt.comm, "run_id", None) or os.urandom(16),
        first_step=opt.t,
        state=opt.schedule.state_dict() if opt.t else None,
    )
