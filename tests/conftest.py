# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lowtide as lt


@pytest.fixture(params=lt.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test under each instruction set of this machine."""
    before = lt.isa()
    lt.set_isa(request.param)
    yield request.param
    lt.set_isa(before)
