# SPDX-License-Identifier: Apache-2.0
"""The output directory of a run: who may use it, what it holds, which run it belongs to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from lowtide.train import checkpoint
from lowtide.train.errors import CheckpointError, ConfigError, OutputError, output_error
from lowtide.train.files import write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "lowtide-run"
_HIDDEN = (".ckpt-", ".tokens-", ".model.", ".run.json.", ".metrics.jsonl.", ".summary.json.")


class Workspace:
    """An output directory held by this process from `__enter__` to `__exit__`.

    `resume` says whether a run is expected there. Raises OutputError when it cannot be written, when another
    process holds it, when it holds a run and none was expected, or the other way round. Nothing is overwritten.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.resume = resume
        self.run_file = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.model = path / "model"
        self.log = path / "run.ltlog"
        self._lock: int | None = None

    def __enter__(self) -> Workspace:
        if self.resume and not self.run_file.is_file():
            raise OutputError(f"there is no run in {self.path} to resume; leave out --resume to start one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise OutputError(f"out: {self.path} is not a directory; choose another --out") from None
        except BlockingIOError:
            self._release()
            raise OutputError(
                f"another process is training in {self.path}; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            self._check()
        except BaseException:
            self._release()
            raise
        return self

    def _check(self) -> None:
        # A lock file left by an earlier process can be opened in a directory that takes no new file.
        probe = self.path / f".{os.getpid()}.probe"
        try:
            probe.write_bytes(b"lowtide")
            probe.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                probe.unlink()
            raise output_error(self.path, error) from error
        self._clean()
        if self.resume:
            return
        ours = [
            p.name for p in (self.run_file, self.metrics, self.summary, self.model, self.log) if p.exists()
        ]
        ours += [p.name for _, p in checkpoint.checkpoints(self.path)]
        if ours:
            raise OutputError(
                f"{self.path} already holds a run ({', '.join(ours[:3])}); "
                "continue it with --resume, remove it, or choose another --out"
            )

    def _clean(self) -> None:
        """Remove what a killed process left half written or half deleted; all such names are hidden."""
        for path in self.path.glob(".*"):
            if path.suffix in (".tmp", ".old") and path.name.startswith(_HIDDEN):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def begin(
        self, settings: dict[str, Any], identity: dict[str, str], about: dict[str, Any] | None = None
    ) -> None:
        """Record what run this is, before its first step; ``about`` is for its readers."""
        record = {"format": FORMAT, "version": 1, "settings": settings, "identity": identity}
        write_json(self.run_file, {**(about or {}), **record})

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, atomically."""
        write_json(self.summary, summary)

    def recorded(self) -> dict[str, Any]:
        """The record of `begin`. Raises CheckpointError when it is damaged."""
        try:
            record = json.loads(self.run_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            record = None
        if (
            not isinstance(record, dict)
            or record.get("format") != FORMAT
            or not isinstance(record.get("settings"), dict)
            or not isinstance(record.get("identity"), dict)
        ):
            raise CheckpointError(f"{self.run_file} is damaged; start a new run in another directory")
        return record

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def check_same_run(
    recorded: dict[str, Any], settings: dict[str, Any], identity: dict[str, str], where: Path
) -> None:
    """Refuse to continue a run with other settings, another model or another text.

    `recorded` holds "settings" and "identity" as they were when the run began. Raises ConfigError or CheckpointError.
    """
    before = recorded.get("settings")
    if not isinstance(before, dict) or not isinstance(recorded.get("identity"), dict):
        raise CheckpointError(
            f"{where} does not say which run it belongs to; it was not written by lowtide finetune"
        )
    for name in sorted(set(before) | set(settings)):
        if before.get(name) != settings.get(name):
            raise ConfigError(
                f"{name}: got {settings.get(name)!r} and the run in {where} has {before.get(name)!r}; "
                "repeat its settings or start a new run in another --out"
            )
    for kind, what in (("model", "model"), ("tokens", "text or tokenizer")):
        if recorded["identity"].get(kind) != identity[kind]:
            raise CheckpointError(
                f"the run in {where} was begun with another {what}; give the one it was begun with, "
                "or start a new run in another --out"
            )
