# SPDX-License-Identifier: Apache-2.0
"""Exceptions. Every one is a LowtideError and also the built-in type that fits."""

from __future__ import annotations


class LowtideError(Exception):
    """Base of all errors raised by lowtide: names the argument, what it got, and the remedy."""


class LowtideValueError(LowtideError, ValueError):
    """An argument has the right type and an impossible value."""


class LowtideTypeError(LowtideError, TypeError):
    """An argument has the wrong type or dtype."""


class LowtideRuntimeError(LowtideError, RuntimeError):
    """The environment, a file or the hardware does not allow what was asked."""


class LowtideImportError(LowtideError, ImportError):
    """An optional dependency is missing; the message says how to install it."""
