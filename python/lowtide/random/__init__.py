# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: pure functions of an address, the same bits on every target.

A value is determined by ``(seed, step, slot, param, role, element index)`` through Philox4x32 (Salmon et
al., SC 2011): ten rounds, seven for the roles of stochastic rounding. It does not depend on the number of
threads, the instruction set, the device, the shard or the order of calls. ``offset`` is the global index of
the first element, so that a shard of a tensor generates its own slice.
"""

from __future__ import annotations

from lowtide.random._perturb import perturb
from lowtide.random._self_test import self_test_digest
from lowtide.random._stream import DISTS, ROLES, add_, dot, sample

__all__ = ["DISTS", "ROLES", "add_", "dot", "perturb", "sample", "self_test_digest"]
