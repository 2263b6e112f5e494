# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a directory of safetensors and JSON that appears whole or not at all.

    ckpt-00000100/
        model.safetensors       the model's state dict as it is trained, packed buffers included
        optimizer.safetensors   the tensors of the optimizer's state dict
        state.json              everything that is not a tensor, and the SHA-256 of both files

It is written under a hidden name, flushed to the disk and renamed, so a process killed at any moment leaves
either the whole checkpoint or none. Nothing is pickled. Tensors are read one by one into memory of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lowtide._files import sha256_file, sync_directory, sync_file
from lowtide.train.errors import CheckpointError, OutputError, first_line, output_error
from lowtide.train.tree import flatten, unflatten

FORMAT = "lowtide-checkpoint"
VERSION = 1
_NAME = re.compile(r"ckpt-(\d{8,})")
_PARTS = ("model", "optimizer")
_MAX_STATE_BYTES = 256 << 20
# safe_open maps the file, and every page read through it stays resident until it is closed.
_MAPPED_BYTES = 64 << 20


def directory(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies under `out`."""
    return out / f"ckpt-{step:08d}"


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints under `out`, oldest first, as (step, path)."""
    found = []
    for path in out.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def save(
    out: Path, step: int, *, model: Mapping[str, Any], optimizer: Mapping[str, Any], info: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of `step` and return its directory.

    `model` and `optimizer` are state dicts; `info` is JSON (settings, fingerprint, running totals).
    Raises OutputError when the disk refuses; then nothing of the checkpoint is left, older ones are untouched.
    """
    final = directory(out, step)
    temporary = out / f".{final.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        state: dict[str, Any] = {"format": FORMAT, "version": VERSION, "step": step, "info": dict(info)}
        state["files"], state["trees"] = {}, {}
        for part, tree in zip(_PARTS, (model, optimizer), strict=True):
            skeleton, tensors = flatten(tree)
            path = temporary / f"{part}.safetensors"
            _write_tensors(path, tensors)
            state["trees"][part] = skeleton
            state["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        state["sha256"] = _digest(state)
        path = temporary / "state.json"
        path.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        sync_file(path)
        sync_directory(temporary)
        if final.exists():  # left by a run that was killed between this rename and its metrics
            _remove(final)
        temporary.rename(final)
        sync_directory(out)
    except (OSError, SafetensorError) as error:
        raise output_error(final, error) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_info(path: Path) -> dict[str, Any]:
    """Read and verify `state.json` of a checkpoint, without touching its tensors."""
    file = path / "state.json"
    try:
        if file.stat().st_size > _MAX_STATE_BYTES:
            raise CheckpointError(f"{file} is too large to be a lowtide checkpoint; {_remedy(path)}")
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is not a lowtide checkpoint (it has no state.json); {_remedy(path)}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; {_remedy(path)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}); {_remedy(path)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a lowtide checkpoint; {_remedy(path)}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')!r} and this lowtide reads version {VERSION}; "
            "resume with the lowtide that wrote it"
        )
    claimed = state.pop("sha256", None)
    if claimed != _digest(state):
        raise CheckpointError(f"{file} was changed after it was written; {_remedy(path)}")
    return state


def load_tree(path: Path, part: str, state: Mapping[str, Any]) -> Any:
    """Load the `part` ("model" or "optimizer") of a checkpoint; its bytes are verified first."""
    file = path / f"{part}.safetensors"
    try:
        expected, skeleton = state["files"][file.name], state["trees"][part]
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{file} has {size} bytes instead of {expected['bytes']}; {_remedy(path)}")
        if sha256_file(file) != expected["sha256"]:
            raise CheckpointError(f"{file} does not match its SHA-256; {_remedy(path)}")
        return unflatten(skeleton, _read_tensors(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {_remedy(path)}") from None
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}); {_remedy(path)}") from error


def prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for _, path in checkpoints(out)[: -keep or None]:
        _remove(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that it is never seen half gone."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.old")
    with contextlib.suppress(OSError):
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _remedy(path: Path) -> str:
    try:
        older = [p for _, p in checkpoints(path.parent) if p != path]
    except OSError:
        older = []
    if older:
        return f"remove that directory to resume from {older[-1].name}"
    return "remove that directory to start again"


def _digest(state: Mapping[str, Any]) -> str:
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    storages: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.contiguous()
        pointer = value.untyped_storage().data_ptr()
        # safetensors refuses two views of one storage.
        plain[name] = value.clone() if pointer in storages else value
        storages.add(pointer)
    save_file(plain, path)
    sync_file(path)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    while names:
        mapped = 0
        with safe_open(path, framework="pt") as file:
            while names and mapped < _MAPPED_BYTES:
                name = names.pop()
                tensors[name] = file.get_tensor(name).clone()
                mapped += tensors[name].nbytes
    return tensors


__all__ = ["OutputError", "checkpoints", "directory", "load_info", "load_tree", "prune", "save"]
