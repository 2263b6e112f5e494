# SPDX-License-Identifier: Apache-2.0
"""The bar of long computations: one step a product with the operator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lowtide.errors import LowtideImportError


class _NoBar:
    def update(self, steps: int = 1) -> None:
        """Shows nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Shows nothing."""


@contextmanager
def progress_bar(show: bool, total: int | None, description: str, *, unit: str = "product") -> Iterator[Any]:
    """A tqdm bar of ``total`` products, or what ``unit`` says, on stderr, or nothing.

    Raises:
        LowtideImportError: a bar is wanted and tqdm is not installed.
    """
    if not show:
        yield _NoBar()
        return
    try:
        from tqdm import tqdm
    except ImportError:
        raise LowtideImportError("progress=True needs tqdm; run: pip install 'lowtide[demo]'") from None
    with tqdm(total=total, unit=unit, desc=description, dynamic_ncols=True, file=sys.stderr) as bar:
        yield bar
