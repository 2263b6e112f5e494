# SPDX-License-Identifier: Apache-2.0
"""Zeroth-order training: directions from a counter, derivatives as bytes, runs that replay bit for bit."""

from __future__ import annotations

from lowtide.spsa._codec import CODECS, Codec, ExponentRule
from lowtide.spsa._commit import Commit

__all__ = ["CODECS", "Codec", "Commit", "ExponentRule"]
