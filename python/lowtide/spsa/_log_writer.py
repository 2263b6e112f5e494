# SPDX-License-Identifier: Apache-2.0
"""Writing a run log: commits are collected into batches; until a batch is full they are in a file beside it.

The file of unfinished steps (``LOG.tail``) begins with the chain hash it continues. When a batch is full, the batch is
appended to the log first and the tail is emptied then: after a crash in between, the tail no longer continues the log
and is ignored. A process that is killed loses nothing; a power cut loses what was not synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from lowtide._files import sha256_file, sync_directory
from lowtide.errors import LowtideValueError
from lowtide.spsa._commit import Commit
from lowtide.spsa._frames import (
    Batch,
    Change,
    Digest,
    End,
    Event,
    Member,
    Snap,
    changes_between,
    pack_batch,
    pack_event,
)
from lowtide.spsa._header import Header, hyper_values, root
from lowtide.spsa._log import LogError, LogReader, tail_path
from lowtide.spsa._method import Hyper

#: When files are flushed to the disk.
FSYNC = ("never", "batch", "step")
#: Bytes of packed codes after which a batch is written however few its steps.
_BATCH_BYTES = 1 << 15


class LogWriter:
    """Appends to a run log.

    Args:
        path: the file to create.
        header: of the run.
        batch: steps that are written as one frame, at most.
        fsync: ``"batch"`` (a power cut loses at most one batch), ``"step"``, or ``"never"``.

    Attributes:
        step: the next step. chain: hash of everything in the log itself.

    Raises:
        LogError: the file exists (continue it with :meth:`resume`) or is being written by someone else.
    """

    def __init__(self, path: str | Path, header: Header, *, batch: int = 256, fsync: str = "batch") -> None:
        self._configure(path, header, batch, fsync)
        head = header.to_bytes()
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise LogError(
                f"{self.path}: exists already; give another name, or continue it with LogWriter.resume"
            ) from None
        self._lock()
        self._size = 0
        self._write(head)
        self.chain, self.step = root(head), header.first_step
        self._settings: tuple[float, ...] | None = None
        self._tail_fd = os.open(tail_path(self.path), os.O_RDWR | os.O_CREAT, 0o644)
        self._reset_tail()
        if self._fsync != "never":
            os.fsync(self._fd)
            sync_directory(self.path.parent)

    def _configure(self, path: str | Path, header: Header, batch: int, fsync: str) -> None:
        if not 1 <= batch <= 4096:
            raise LowtideValueError(f"batch must be in [1, 4096], got {batch!r}")
        if fsync not in FSYNC:
            raise LowtideValueError(f"fsync must be one of {', '.join(FSYNC)}, got {fsync!r}")
        self.path, self.header, self._batch, self._fsync = Path(path), header, batch, fsync
        self._pending: list[Commit] = []
        self._changes: list[Change] = []
        self._tail_fd, self._tail_size, self._tail_chain = -1, 0, b""

    @classmethod
    def resume(
        cls,
        path: str | Path,
        header: Header | None = None,
        *,
        batch: int = 256,
        fsync: str = "batch",
        damage: str = "error",
    ) -> LogWriter:
        """Continue a log at its last good frame.

        Args:
            path: an existing log. What follows its last good frame is moved to ``PATH.cut-OFFSET``, and said.
            header: what the log must be of; None takes the log's.
            batch, fsync: as above. damage: as of :class:`LogReader`; ``"cut"`` gives up what follows damage in the middle.

        Raises:
            LogError: damage in the middle, another run, or another writer.
        """
        log = cls.__new__(cls)
        fd = os.open(path, os.O_RDWR)
        try:
            log._fd, log._tail_fd = fd, -1
            log.path = Path(path)
            log._lock()  # before reading: the other writer may be in the middle of a frame
            reader = LogReader(path, damage=damage)
            log._configure(path, reader.header, batch, fsync)
            if header is not None:
                check_same_run(log.path, reader.header, header)
            log._adopt(reader)
        except BaseException:
            os.close(fd)
            log._fd = -1
            raise
        return log

    def _adopt(self, reader: LogReader) -> None:
        """Stand behind what the reader found good."""
        marks = reader.marks[: len(reader.marks) - reader.tail]
        self._size, self.chain = reader.size, reader.chain
        self.step, self._settings = reader.step, reader.settings
        if reader.tail:
            first = reader.marks[-reader.tail]
            self.chain, self.step, self._settings = first.chain, first.step, first.settings
        if marks and isinstance(marks[-1].frame, End):
            self._size, self.chain = marks[-1].offset, marks[-1].chain
        elif (lost := os.fstat(self._fd).st_size - self._size) > 0:
            keep = self.path.with_name(f"{self.path.name}.cut-{self._size}")
            keep.write_bytes(os.pread(self._fd, lost, self._size))
        os.ftruncate(self._fd, self._size)
        self._tail_fd = os.open(tail_path(self.path), os.O_RDWR | os.O_CREAT, 0o644)
        if reader.tail:  # into the log first: until then the tail is the only copy
            for mark in reader.marks[-reader.tail :]:
                assert isinstance(mark.frame, Batch)
                self._changes += [(len(self._pending) + k, i, x) for k, i, x in mark.frame.changes]
                self._pending += mark.frame.commits
            self.step, self._settings = reader.step, reader.settings
            self._flush_batch()
        else:
            self._reset_tail()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LogError(
                f"{self.path}: another writer has it open; close that one, or give another name"
            ) from None

    # ------------------------------------------------------------------ steps

    def append(self, commit: Commit, hyper: Hyper) -> None:
        """Append the commit of :attr:`step`, made under the settings ``hyper``. It is in a file when this returns.

        Raises:
            LowtideValueError: another step, a commit that the codec cannot write, settings of other groups.
            LogError: the disk is full; the log is as before.
        """
        self._check_open()
        if commit.step != self.step:
            raise LowtideValueError(f"commit must be of step {self.step}, got step {commit.step}")
        values = hyper_values(hyper)
        if len(values) != 2 * self.header.groups:
            raise LowtideValueError(f"hyper must have {self.header.groups} groups, got {len(hyper.lr)}")
        codec = self.header.the_codec
        changes = changes_between(self._settings, values, 0)
        data, chain = pack_batch([commit], changes, codec, self._tail_chain)
        if self._pending and commit.total != self._pending[0].total:
            self._flush_batch()
            data, chain = pack_batch([commit], changes, codec, self._tail_chain)
        self._tail_size = self._put(self._tail_fd, data, self._tail_size)
        self._tail_chain = chain
        self._changes += [(len(self._pending), i, x) for _, i, x in changes]
        self._pending.append(commit)
        self._settings, self.step = values, self.step + 1
        if self._fsync == "step":
            os.fsync(self._tail_fd)
        if len(self._pending) >= self._batch or codec.size(len(self._pending) * commit.total) >= _BATCH_BYTES:
            self._flush_batch()

    def _flush_batch(self) -> None:
        if not self._pending:
            return
        self._append(pack_batch(self._pending, self._changes, self.header.the_codec, self.chain))
        self._pending, self._changes = [], []
        self._reset_tail()

    def _append(self, linked: tuple[bytes, bytes]) -> None:
        data, chain = linked
        self._write(data)
        self.chain = chain
        if self._fsync != "never":
            os.fsync(self._fd)

    # ------------------------------------------------------------------ other frames

    def _event(self, frame: Event) -> None:
        self._check_open()
        self._flush_batch()
        self._append(pack_event(frame, self.chain))
        self._reset_tail()

    def digest(self, digest: bytes) -> None:
        """Record the digest of the weights before :attr:`step` (16 bytes, ``Masters.digest``)."""
        if len(digest) != 16:
            raise LowtideValueError(f"digest must be 16 bytes, got {len(digest)}")
        self._event(Digest(self.step, bytes(digest)))

    def member(self, worker: str, *, joins: bool, epoch: int, first: int = 0, count: int = 0) -> None:
        """Record that a worker joined, with ``count`` slots from ``first`` on, or left."""
        self._event(Member(self.step, joins, epoch, first, count, worker))

    def check_beside(self, path: Path) -> None:
        """Refuse a snapshot in another directory: the log names it without one."""
        if path.resolve().parent != self.path.resolve().parent:
            raise LowtideValueError(f"path must be a file beside the log {self.path}, got {path}")

    def snapshot(self, path: str | Path) -> None:
        """Record that the state before :attr:`step` is in ``path``, a file in the log's own directory."""
        path = Path(path)
        self.check_beside(path)
        self._event(Snap(self.step, path.name, bytes.fromhex(sha256_file(path))))

    # ------------------------------------------------------------------ end

    def flush(self) -> None:
        """Everything appended so far survives a power cut when this returns."""
        self._check_open()
        os.fsync(self._tail_fd)
        os.fsync(self._fd)

    def cut(self, step: int) -> None:
        """Forget the steps from ``step`` on: the run went another way.

        Raises:
            LowtideValueError: before the first step, or beyond the last.
        """
        self._check_open()
        if not self.header.first_step <= step <= self.step:
            raise LowtideValueError(f"step must be in [{self.header.first_step}, {self.step}], got {step}")
        self._flush_batch()
        reader = LogReader(self.path)
        keep = list(reader.steps(step))
        # A digest or snapshot of the state before `step` stays true.
        gone = [
            m for m in reader.marks if (m.frame.end > step if isinstance(m.frame, Batch) else m.step > step)
        ]
        if not gone:
            return
        at = gone[0]
        os.ftruncate(self._fd, at.offset)
        self._size, self.chain, self.step, self._settings = at.offset, at.chain, at.step, at.settings
        self._reset_tail()
        for s in keep[len(keep) - max(0, step - at.step) :]:
            self.append(s.commit, s.hyper)

    def close(self, *, end: bool = True) -> None:
        """Write what is left as a batch, mark the end, and sync. A closed log can be resumed."""
        if self._fd < 0:
            return
        try:
            self._flush_batch()
            if end:
                self._append(pack_event(End(self.step), self.chain))
            os.fsync(self._fd)
            os.close(self._tail_fd)
            with contextlib.suppress(FileNotFoundError):
                tail_path(self.path).unlink()
        finally:
            os.close(self._fd)
            self._fd = self._tail_fd = -1

    def __del__(self) -> None:
        # Only the files: whoever lost a writer without closing it may have lost it in the middle of a step.
        for fd in (getattr(self, "_fd", -1), getattr(self, "_tail_fd", -1)):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(end=error is None)

    # ------------------------------------------------------------------ files

    def _check_open(self) -> None:
        if self._fd < 0:
            raise LogError(f"{self.path}: is closed; continue it with LogWriter.resume")

    def _reset_tail(self) -> None:
        os.ftruncate(self._tail_fd, 0)
        self._tail_size = self._put(self._tail_fd, self.chain, 0)
        self._tail_chain = self.chain

    def _write(self, data: bytes) -> None:
        self._size = self._put(self._fd, data, self._size)

    def _put(self, fd: int, data: bytes, at: int) -> int:
        """Write all of ``data`` at ``at`` or nothing; returns where it ends."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(fd, data[done:], at + done)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, at)
            raise LogError(
                f"{self.path}: cannot be written ({error.strerror}); make room and resume: no step is lost"
            ) from error
        return at + done


def check_same_run(path: Path, log: Header, run: Header) -> None:
    """Refuse a header that is not the log's, naming what differs.

    Raises:
        LogError: naming the field.
    """
    for name in ("seed", "codec", "method", "base_digest", "first_step"):
        if (a := getattr(log, name)) != (b := getattr(run, name)):
            a, b = (x.hex() if isinstance(x, bytes) else x for x in (a, b))
            raise LogError(
                f"{path}: is of another run: its {name} is {a}, this run's is {b}; give another name"
            )
    if log.manifest.digest != run.manifest.digest:
        lines = "; ".join(log.manifest.differences(run.manifest))
        raise LogError(f"{path}: is of another model (log here, model there): {lines}; give another name")
