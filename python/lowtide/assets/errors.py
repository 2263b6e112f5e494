# SPDX-License-Identifier: Apache-2.0
"""Errors of the asset fetcher; all are :class:`lowtide.LowtideError`."""

from __future__ import annotations

from lowtide.errors import LowtideRuntimeError, LowtideValueError


class AssetError(LowtideRuntimeError):
    """An asset could not be fetched, unpacked or stored; nothing finished was changed."""


class UnknownAssetError(AssetError, LowtideValueError):
    """The name is not one of :func:`lowtide.assets.names`."""


class CorruptFileError(AssetError, LowtideValueError):
    """A downloaded file contradicts its own format; it was not used."""
