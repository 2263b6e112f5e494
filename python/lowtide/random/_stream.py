# SPDX-License-Identifier: Apache-2.0
"""sample, add_ and dot over NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import check_array, check_uint, is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError

#: Distributions of mean 0 and variance 1, and their ids in run logs.
DISTS = {"rademacher": 0, "gaussian": 1, "ih4": 2, "lut8": 3}
#: Consumers of random words; streams of different roles never share words.
ROLES = {"z": 0, "weight_sr": 1, "u": 2, "v": 3, "mask": 4, "quant_sr": 5}


def _address(
    seed: int, step: int, slot: int, param: int, role: str | int, offset: int, dist: str
) -> tuple[int, int, int, int, int, int, int]:
    if dist not in DISTS:
        raise LowtideValueError(f"dist must be one of {', '.join(DISTS)}, got {dist!r}")
    if isinstance(role, str):
        if role not in ROLES:
            raise LowtideValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        role = ROLES[role]
    return (
        check_uint(seed, "seed", 63),
        check_uint(step, "step", 63),
        check_uint(slot, "slot", 32),
        check_uint(param, "param", 32),
        check_uint(role, "role", 32),
        check_uint(offset, "offset", 62),
        DISTS[dist],
    )


def sample(
    shape: int | Sequence[int] | None = None,
    *,
    seed: int,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    role: str | int = "z",
    offset: int = 0,
    dist: str = "gaussian",
    out: Any = None,
    like: str = "numpy",
) -> Any:
    """Random numbers z[offset], z[offset + 1], ... in C order.

    Args:
        shape: shape of the result; leave it out if ``out`` is given.
        seed, step: 63-bit integers.
        slot, param: 32-bit integers (direction or worker; parameter id).
        role: consumer of the stream, see :data:`ROLES`.
        offset: global index of the first element.
        dist: all have mean 0 and variance 1: ``"gaussian"`` (|z| <= 5.77; a 32-bit word an element),
            ``"rademacher"`` (+1 or -1; a bit), ``"ih4"`` (sum of four bytes, kurtosis 2.70, |z| <= 3.46; a
            word) or ``"lut8"`` (one of 256 equally probable levels, kurtosis 2.96, |z| <= 2.97; a byte).
        out: float32 NumPy array or torch CPU tensor to fill, contiguous.
        like: ``"numpy"`` or ``"torch"``: what to return when ``out`` is not given.

    Returns:
        float32 array or tensor of ``shape``, or ``out``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.

    >>> import lowtide as lt
    >>> lt.random.sample(4, seed=0, dist="rademacher").tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """
    address = _address(seed, step, slot, param, role, offset, dist)
    if (out is None) == (shape is None):
        raise LowtideValueError("give either shape or out, and not both")
    if out is None:
        dims = (shape,) if isinstance(shape, int) else tuple(shape or ())
        if any(not isinstance(d, int) or d < 0 for d in dims):
            raise LowtideValueError(f"shape must hold integers >= 0, got {shape!r}")
        if like == "torch":
            import torch

            out = torch.empty(dims, dtype=torch.float32)
        elif like == "numpy":
            out = np.empty(dims, dtype=np.float32)
        else:
            raise LowtideValueError(f"like must be 'numpy' or 'torch', got {like!r}")
    if is_torch(out):
        from lowtide import ops

        ops.random_sample(out, *address)
    else:
        check_array(out, "out", writable=True)
        _core.random_sample(out, *address)
    return out


def add_(
    x: Any,
    scale: float,
    *,
    seed: int,
    step: int = 0,
    slot: int = 0,
    param: int | Sequence[int] = 0,
    role: str | int = "z",
    offset: int = 0,
    dist: str = "gaussian",
) -> Any:
    """``x += scale * z`` in place; z is generated on the fly and never stored.

    Args:
        x: float32 NumPy array or torch CPU tensor, contiguous; or a list of torch tensors, then ``param``
            is the list of their parameter ids and ``offset`` must be 0 (one call for a whole model).
        scale: multiplier, rounded to float32; product and sum are rounded separately.
        seed, step, slot, param, role, offset, dist: the address, as in :func:`sample`.

    Returns:
        ``x``.
    """
    if not math.isfinite(scale):
        raise LowtideValueError(f"scale must be finite, got {scale!r}")
    if isinstance(x, (list, tuple)):
        if not isinstance(param, Sequence) or len(param) != len(x):
            raise LowtideValueError(f"param must list one id for each of the {len(x)} tensors in x")
        if offset != 0:
            raise LowtideValueError("offset must be 0 when x is a list of whole tensors")
        from lowtide import ops

        seed, step, slot, _, role_id, _, dist_id = _address(seed, step, slot, 0, role, 0, dist)
        ids = [check_uint(p, "param", 32) for p in param]
        ops.random_add_list_(list(x), float(scale), seed, step, slot, ids, role_id, dist_id)
        return x
    if isinstance(param, Sequence):
        raise LowtideTypeError("param must be an integer when x is a single array")
    address = _address(seed, step, slot, param, role, offset, dist)
    if is_torch(x):
        from lowtide import ops

        ops.random_add_(x, float(scale), *address)
    else:
        check_array(x, "x", writable=True)
        _core.random_add(x, float(scale), *address)
    return x


def dot(
    x: Any,
    *,
    seed: int,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    role: str | int = "z",
    offset: int = 0,
    dist: str = "gaussian",
) -> Any:
    """``sum(x * z)`` without storing z, by a fixed reduction tree (the same bits for any thread count).

    Args:
        x: float32 NumPy array or torch CPU tensor, contiguous.
        seed, step, slot, param, role, offset, dist: the address, as in :func:`sample`.

    Returns:
        A Python float for arrays, a float64 tensor with no dimensions for tensors.
    """
    address = _address(seed, step, slot, param, role, offset, dist)
    if is_torch(x):
        from lowtide import ops

        return ops.random_dot(x, *address)
    check_array(x, "x")
    return _core.random_dot(x, *address)
