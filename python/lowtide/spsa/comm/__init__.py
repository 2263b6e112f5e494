# SPDX-License-Identifier: Apache-2.0
"""Distributed zeroth-order training: a byte of each worker a step, and one agreed commit."""

from __future__ import annotations

from lowtide.spsa.comm._protocol import Comm, CommError, DivergedError, Hello, Joined, Local

__all__ = ["Comm", "CommError", "DivergedError", "Hello", "Joined", "Local"]
