# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a training run, each as one sentence that ends in the remedy."""

from __future__ import annotations

import errno
import os

from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideValueError


class ConfigError(LowtideValueError):
    """A setting is out of its range or contradicts another one."""


class DataError(LowtideValueError):
    """The training text cannot be read or is too short."""


class ModelError(LowtideValueError):
    """The model directory cannot be loaded, or the model does not fit the settings."""


class CheckpointError(LowtideRuntimeError):
    """A checkpoint is damaged, incomplete, or belongs to another run."""


class DivergedError(LowtideRuntimeError):
    """The loss or the weights are no longer finite."""


class OutputError(LowtideRuntimeError):
    """The output directory cannot be written, or holds another run."""


def missing_package(name: str | None, purpose: str) -> LowtideImportError:
    """The error for an optional package that is not installed."""
    return LowtideImportError(f"{purpose} needs {name}; run: pip install 'lowtide[demo]'")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for quoting inside one sentence."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's or torch's way to say that an allocation failed."""
    return (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)
    )


def output_error(path: str | os.PathLike[str], error: BaseException) -> OutputError:
    """Turn a failed write under the output directory into a sentence with the remedy."""
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "os error 122" in text:
        why, remedy = "no space left on device", "free some space"
    elif code == errno.EFBIG or "os error 27" in text:
        why, remedy = "file too large for the limit set on this process", "raise the limit (ulimit -f)"
    elif code == errno.EROFS or "os error 30" in text:
        why, remedy = "read-only file system", "choose another output directory"
    elif code in (errno.EACCES, errno.EPERM) or "os error 13" in text:
        why, remedy = "permission denied", "choose an output directory that you may write"
    else:
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        remedy = "check the output directory"
    return OutputError(
        f"cannot write {os.fspath(path)}: {why}; {remedy}, then run again (with --resume if it had a checkpoint)"
    )
