# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from emulated import Twins

import lowtide as lt

SIZES = (0, 1, 15, 17, 63, 65, 2049, 5000)
ADDRESS = {"seed": 123, "step": 4, "slot": 1}


@pytest.mark.parametrize("dist", list(lt.random.DISTS))
def test_streams(dist: str) -> None:
    with Twins() as twins:
        for offset in (0, 3, 1 << 33):
            for n in SIZES:
                x = lt.random.sample(n, dist=dist, offset=offset, like="torch", param=7, **ADDRESS)
                lt.random.add_(x, 0.1, dist=dist, offset=offset, param=7, **ADDRESS)
                lt.random.dot(x, dist=dist, offset=offset, param=7, **ADDRESS)
    calls = 3 * len(SIZES)
    assert twins.calls == {"random_sample": calls, "random_add_": calls, "random_dot": calls}


def test_lists() -> None:
    with Twins() as twins:
        xs = [torch.ones(n)[n % 2 :] for n in SIZES]
        lt.random.add_(xs, 0.5, param=list(range(len(xs))), **ADDRESS)
    assert twins.calls == {"random_add_list_": 1}
