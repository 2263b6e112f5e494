# SPDX-License-Identifier: Apache-2.0
"""The command line: `lowtide` and `python -m lowtide`. Each command is a module; heavy imports wait until it runs."""

from __future__ import annotations

from lowtide.cli.main import main

__all__ = ["main"]
