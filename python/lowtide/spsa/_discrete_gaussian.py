# SPDX-License-Identifier: Apache-2.0
"""Integers with the discrete Gaussian distribution, exactly, from the operating system's random numbers.

Algorithms 1 to 3 of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020,
2004.00010). Floats never enter: a Gaussian made of them leaves out numbers in a pattern that tells the input (Mironov 2012).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

#: Uniform integer below its argument; tests put a seeded one here.
Below = Callable[[int], int]


def _coin(numerator: int, denominator: int, below: Below) -> bool:
    """True with probability exp(-numerator / denominator), the quotient in [0, 1]."""
    k = 1
    while below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1


def bernoulli_exp(numerator: int, denominator: int, below: Below = secrets.randbelow) -> bool:
    """True with probability exp(-numerator / denominator); numerator >= 0, denominator > 0."""
    while numerator > denominator:
        if not _coin(1, 1, below):
            return False
        numerator -= denominator
    return _coin(numerator, denominator, below)


def discrete_laplace(scale: int, below: Below = secrets.randbelow) -> int:
    """x with probability proportional to exp(-|x| / scale), scale >= 1."""
    while True:
        u = below(scale)
        if not _coin(u, scale, below):
            continue
        v = 0
        while _coin(1, 1, below):
            v += 1
        x = u + scale * v
        negative = below(2) == 1
        if not (negative and x == 0):
            return -x if negative else x


def discrete_gaussian(sigma: int, below: Below = secrets.randbelow) -> int:
    """x with probability proportional to exp(-x² / 2 sigma²), sigma >= 1; some 50 us.

    >>> abs(discrete_gaussian(1000)) < 40000
    True
    """
    scale = sigma + 1
    square = sigma * sigma
    while True:
        y = discrete_laplace(scale, below)
        # exp(-(|y| - sigma²/t)² / 2 sigma²) = exp(-(|y| t - sigma²)² / (2 sigma² t²))
        if bernoulli_exp((abs(y) * scale - square) ** 2, 2 * square * scale * scale, below):
            return y
