# SPDX-License-Identifier: Apache-2.0
"""Lightning: a run directory for ``lowtide report``, and a word where the Trainer and an optimizer cannot work together.

Optimizers of :mod:`lowtide.optim` and :mod:`lowtide.spsa` need nothing of this. Needs ``pip install 'lowtide[lightning]'``. See
docs/integrations/lightning.md.
"""

from __future__ import annotations

from lowtide.errors import LowtideImportError

try:
    import lightning.pytorch  # noqa: F401
except ImportError as error:
    raise LowtideImportError(
        "lowtide.integrations.lightning needs lightning: pip install 'lowtide[lightning]'"
    ) from error

from lowtide.integrations.lightning._callback import RunCallback, check

__all__ = ["RunCallback", "check"]
