# SPDX-License-Identifier: Apache-2.0
"""Zeroth-order training: directions from a counter, derivatives as bytes, runs that replay bit for bit."""

from __future__ import annotations

from lowtide.spsa._codec import CODECS, Codec, ExponentRule
from lowtide.spsa._commit import Commit
from lowtide.spsa._header import Header
from lowtide.spsa._log import LogError, LogReader, LogWarning
from lowtide.spsa._log_writer import LogWriter
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._masters import Masters
from lowtide.spsa._method import Hyper, Method, SeedWindow
from lowtide.spsa._optimizer import SPSA
from lowtide.spsa._privacy import Privacy
from lowtide.spsa._probes import Probe
from lowtide.spsa._replay import Replayed, replay
from lowtide.spsa._schedule import Schedule, StepUpdate, updates_of
from lowtide.spsa.presets import (
    FZOO,
    LOZO,
    QZO,
    ConMeZO,
    FedKSeed,
    HiZOO,
    MeZO,
    QuZO,
    SparseMeZO,
    quantized_scales,
)

__all__ = [
    "CODECS",
    "FZOO",
    "LOZO",
    "QZO",
    "SPSA",
    "Codec",
    "Commit",
    "ConMeZO",
    "Entry",
    "ExponentRule",
    "FedKSeed",
    "Header",
    "HiZOO",
    "Hyper",
    "LogError",
    "LogReader",
    "LogWarning",
    "LogWriter",
    "Manifest",
    "Masters",
    "MeZO",
    "Method",
    "Privacy",
    "Probe",
    "QuZO",
    "Replayed",
    "Schedule",
    "SeedWindow",
    "SparseMeZO",
    "StepUpdate",
    "quantized_scales",
    "replay",
    "updates_of",
]
