# SPDX-License-Identifier: Apache-2.0
"""Which of the Trainer's checkpoints can be resumed from after a crash."""

from __future__ import annotations

import json
import re
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint of a Trainer's ``output_dir``, for ``train(resume_from_checkpoint=...)``.

    The Trainer writes the files of a checkpoint one after the other, ``trainer_state.json`` last; a process that was killed meanwhile
    leaves a directory that ``resume_from_checkpoint=True`` would take and fail on. Such are passed over.

    Returns:
        Its path, or None where there is none.
    """
    folder = Path(output_dir).expanduser()
    if not folder.is_dir():
        return None
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    for step, path in sorted(found, reverse=True):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and state.get("global_step") == step:
            return str(path)
    return None
