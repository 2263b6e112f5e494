# SPDX-License-Identifier: Apache-2.0
"""Low-bit tensors: group codecs, packed INT4, stochastic rounding that any target reproduces."""

from __future__ import annotations
