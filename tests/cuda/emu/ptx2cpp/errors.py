# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations


class PtxError(Exception):
    """Something in the PTX that the translator does not know or does not allow."""
