# SPDX-License-Identifier: Apache-2.0
"""Distributed zeroth-order training: a byte of each worker a step, and one agreed commit."""

from __future__ import annotations

from lowtide.spsa.comm._endpoint import Limits, Traffic
from lowtide.spsa.comm._node import Settings
from lowtide.spsa.comm._protocol import Comm, CommError, DivergedError, Hello, Joined, Local
from lowtide.spsa.comm._store import Store
from lowtide.spsa.comm._tcp import TCP, Sequencer

__all__ = [
    "TCP",
    "Comm",
    "CommError",
    "DivergedError",
    "Hello",
    "Joined",
    "Limits",
    "Local",
    "Sequencer",
    "Settings",
    "Store",
    "Traffic",
]
