# SPDX-License-Identifier: Apache-2.0
"""Snapshots: the whole state before a step in a safetensors file beside the log, so that replay can begin there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide._files import sha256_file
from lowtide.errors import LowtideImportError
from lowtide.spsa._log import LogError, LogReader
from lowtide.train.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from lowtide.spsa._masters import Masters
    from lowtide.spsa._schedule import Schedule

_KEY = "lowtide.spsa"
#: Names of the tensors of methods that keep a state for each weight; no parameter's name has a space.
_ELEMENTS = "element state "


def save(path: Path, masters: Masters, schedule: Schedule, step: int) -> None:
    """Write the state before ``step``; the file appears whole or not at all.

    Raises:
        LowtideImportError: safetensors is missing. OutputError: the disk refuses.
    """
    tensors = {e.name: t.contiguous() for e, t in zip(masters.manifest, masters.tensors, strict=True)}
    state: dict[str, Any] = {"version": 1, "step": step, "schedule": schedule.state_dict()}
    if masters.elements is not None:
        extra = masters.elements.state_dict()
        tensors |= {f"{_ELEMENTS}{i}": t for i, t in enumerate(extra["tensors"])}
        state["rms"] = extra["rms"]
    with atomic_path(path) as temporary:
        _safetensors().save_file(tensors, str(temporary), metadata={_KEY: json.dumps(state)})


def load(
    path: Path, reader: LogReader
) -> tuple[int, dict[str, Tensor], dict[str, Any], dict[str, Any] | None]:
    """Read a snapshot that the log names.

    Returns:
        Its step, the masters by name, the schedule's state, and the state of methods with one for each weight.

    Raises:
        LogError: the log does not name it, it was changed since, or it is not a snapshot.
    """
    named = {snap.name: snap for snap in reader.snapshots()}
    snap = named.get(path.name)
    if snap is None:
        known = ", ".join(f"{s.name} (step {s.step})" for s in named.values()) or "none"
        raise LogError(f"{reader.path}: has no snapshot {path.name}; it names {known}")
    if bytes.fromhex(sha256_file(path)) != snap.sha256:
        raise LogError(
            f"{path}: is not the file that was saved at step {snap.step} (SHA-256 differs); take another copy, or replay from the base"
        )
    with _safetensors(opener=True)(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        state = json.loads(metadata[_KEY])
        step, schedule = int(state["step"]), dict(state["schedule"])
    except (KeyError, ValueError, TypeError) as error:
        raise LogError(f"{path}: is not a snapshot of a run ({error!r})") from None
    if step != snap.step:
        raise LogError(f"{path}: is of step {step}, the log names it at step {snap.step}")
    extra = sorted((n for n in tensors if n.startswith(_ELEMENTS)), key=lambda n: int(n[len(_ELEMENTS) :]))
    elements = {"tensors": [tensors.pop(n) for n in extra], "rms": state["rms"]} if "rms" in state else None
    return step, tensors, schedule, elements


def _safetensors(*, opener: bool = False) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise LowtideImportError("snapshots need safetensors; run: pip install 'lowtide[demo]'") from None
    return safetensors.safe_open if opener else safetensors.torch
