# SPDX-License-Identifier: Apache-2.0
"""One HTML page from a run directory: ``lowtide report RUN``. Needs ``pip install 'lowtide[report]'``.

A run directory holds ``metrics.jsonl``, one JSON object a step, and any of ``run.json``, ``summary.json``, ``spectrum.json``
(``lowtide spectrum``) and ``run.ltlog`` (zeroth-order runs); all of them are read as files from strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowtide.errors import LowtideImportError, LowtideValueError

__all__ = ["write"]


def write(
    runs: str | Path | Sequence[str | Path], out: str | Path | None = None, *, title: str | None = None
) -> Path:
    """Write the page of a run, or one that compares several, and return its path.

    The page needs nothing but itself: figures are SVG within it, there is no script, and nothing is loaded from elsewhere. What a
    run did not log is left out, with a line that says how to get it.

    Args:
        runs: one run directory, or up to 8.
        out: the file; default ``RUN/report.html``, and ``report.html`` for several.
        title: default: the directory's name.

    Raises:
        LowtideValueError: there is no run, or ``out`` cannot be written there. LowtideImportError: jinja2 or matplotlib is missing.
    """
    paths = [Path(r).expanduser() for r in ([runs] if isinstance(runs, (str, Path)) else runs)]
    if not 1 <= len(paths) <= 8:
        raise LowtideValueError(f"runs must be 1 to 8 directories, got {len(paths)}; compare fewer at once")
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LowtideImportError(
            f"the report needs {error.name}; run: pip install 'lowtide[report]'"
        ) from error
    from lowtide.report._page import render
    from lowtide.report._read import read_run
    from lowtide.train.files import atomic_path

    found = [read_run(path) for path in paths]
    default = paths[0] / "report.html" if len(paths) == 1 else Path("report.html")
    target = default if out is None else Path(out).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise LowtideValueError(
            f"out must be a file in a directory that exists, got {str(target)!r}; e.g. report.html"
        )
    page = render(found, title)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target
