# SPDX-License-Identifier: Apache-2.0
"""quantize and dequantize over NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lowtide import _core
from lowtide._arrays import is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant import _dynamic as dynamic
from lowtide.quant._format import (
    NONFINITE,
    ROLE_QUANT_SR,
    ROUNDINGS,
    SCHEMES,
    Address,
    check_format,
    choice,
    group_count,
    nonfinite_error,
    range_id,
    row_bytes,
)

_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in groups of codes along its last dimension; the parts are plain tensors or arrays.

    Attributes:
        codes: uint8, (rows, bytes of a row); rows are all dimensions but the last. INT4 takes half a byte.
            Dynamic codes are flat, one an element.
        scale: float32, (rows, groups); one a block for dynamic codes.
        zero: uint8, (rows, groups), for the asymmetric scheme, else ``None``.
        shape: shape of the tensor.
        bits: 8 or 4.
        group: elements that share a scale; the last group of a row may be short.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"dynamic"``.
        dtype: ``"float32"`` or ``"bfloat16"``: what was quantized, and what :meth:`dequantize` returns.
        nonfinite: elements that were counted as 0 under ``nonfinite="skip"``.
    """

    codes: Any
    scale: Any
    zero: Any
    shape: tuple[int, ...]
    bits: int
    group: int
    scheme: str
    dtype: str = "float32"
    nonfinite: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(int(part.nbytes) for part in (self.codes, self.scale, self.zero) if part is not None)

    def dequantize(self, dtype: str | None = None) -> Any:
        """The values in their original shape, as ``dtype`` (default: the original one)."""
        return dequantize(self, dtype=dtype)

    def to_dict(self) -> dict[str, Any]:
        """Tensors, integers and strings only: safe for ``torch.load(weights_only=True)`` and NumPy files."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Quantized:
        """The inverse of :meth:`to_dict`. Everything is checked: the dictionary may come from a file.

        Raises:
            LowtideValueError, LowtideTypeError: a missing or extra key, or parts that do not fit each other.
        """
        names = {f.name for f in fields(cls)}
        if set(state) != names:
            missing, extra = sorted(names - set(state)), sorted(set(state) - names, key=str)
            raise LowtideValueError(
                f"state must have the keys of Quantized.to_dict(); missing {missing}, unknown {extra}"
            )
        shape = state["shape"]
        if not isinstance(shape, (tuple, list)) or not all(isinstance(d, int) and d >= 0 for d in shape):
            raise LowtideValueError(f"shape must hold integers >= 0, got {shape!r}")
        q = cls(**{**state, "shape": tuple(shape)})
        _check(q)
        return q

    def __repr__(self) -> str:
        return (
            f"Quantized(shape={self.shape}, int{self.bits} {self.scheme}, group={self.group}, "
            f"dtype={self.dtype}, nbytes={self.nbytes})"
        )


def _rows(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def _check(q: Quantized) -> None:
    """Everything a kernel relies on, and finite scales."""
    check_format(q.bits, q.group)
    choice(q.scheme, "scheme", (*SCHEMES, "dynamic"))
    choice(q.dtype, "dtype", _DTYPES)
    if not isinstance(q.nonfinite, int) or q.nonfinite < 0:
        raise LowtideValueError(f"nonfinite must be an integer >= 0, got {q.nonfinite!r}")
    if not q.shape:
        raise LowtideValueError("shape must have at least one dimension")
    if (q.zero is None) == (q.scheme == "asymmetric"):
        raise LowtideValueError(
            f"zero must {'be None' if q.zero is not None else 'be given'} for {q.scheme} codes"
        )
    rows, cols = _rows(q.shape), q.shape[-1]
    groups: tuple[int, ...] = (rows, group_count(cols, q.group))
    codes: tuple[int, ...] = (rows, row_bytes(cols, q.bits))
    if q.scheme == "dynamic":
        if (q.bits, q.group, q.dtype) != (8, 256, "float32"):
            raise LowtideValueError(
                "dynamic codes have 8 bits, blocks of 256 and dtype float32; the state is damaged"
            )
        groups, codes = (group_count(rows * cols, 256),), (rows * cols,)
    parts: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("codes", q.codes, "uint8", codes),
        ("scale", q.scale, "float32", groups),
    ]
    if q.zero is not None:
        parts.append(("zero", q.zero, "uint8", groups))
    torch_parts = is_torch(q.codes)
    for name, part, dtype, shape in parts:
        if is_torch(part) != torch_parts or not (torch_parts or isinstance(part, np.ndarray)):
            raise LowtideTypeError(
                f"codes, scale and zero must be all NumPy arrays or all torch tensors, got {type(part).__name__}"
            )
        if str(part.dtype).removeprefix("torch.") != dtype:
            raise LowtideTypeError(f"{name} must be {dtype}, got {part.dtype}")
        if tuple(part.shape) != shape:
            raise LowtideValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
        if not (part.is_contiguous() if torch_parts else part.flags.c_contiguous):
            raise LowtideValueError(f"{name} must be contiguous")
    finite = q.scale.isfinite() if torch_parts else np.isfinite(q.scale)
    if not bool((finite & (q.scale >= 0)).all()):
        raise LowtideValueError("scale must be finite and >= 0; the state is damaged")


def quantize(
    x: Any,
    bits: int = 8,
    group: int = 256,
    *,
    scheme: str = "symmetric",
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    slot: int = 0,
    param: int = 0,
    offset: int = 0,
    headroom: bool = False,
    compat: bool = False,
    nonfinite: str = "raise",
) -> Quantized:
    """Pack ``x`` into ``bits``-bit codes, in groups along its last dimension.

    Args:
        x: float32 or bfloat16 torch tensor, or float32 (or ml_dtypes bfloat16) NumPy array, of at least one
            dimension. Any size; the last group of a row may be short.
        bits: 8 or 4.
        group: elements that share a scale, a multiple of 32.
        scheme: ``"dynamic"`` (bitsandbytes' signed 8-bit map of optimizer states, blocks of 256 elements across
            rows, float32 only), ``"symmetric"`` (scale = max|x| / 127) or ``"asymmetric"`` (scale = range / 255 and a zero point;
            the range always holds 0, which stays exact).
        rounding: ``"nearest"`` (ties to even) or ``"stochastic"`` (unbiased; noise addressed by ``seed``, ``step``,
            ``slot``, ``param`` and the element's index plus ``offset``).
        headroom: leave values room to grow by 1/16, for weights that will be stepped in place.
        compat: Q-GaLore's quantizer (arXiv 2407.08296), asymmetric only; it collapses groups of one sign.
        nonfinite: ``"raise"``, or ``"skip"`` to count non-finite elements as 0 (see :attr:`Quantized.nonfinite`).

    Returns:
        A :class:`Quantized` of the same kind (arrays or tensors) as ``x``.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.

    >>> import numpy as np, lowtide as lt
    >>> q = lt.quant.quantize(np.linspace(-1, 1, 64, dtype=np.float32), bits=4, group=64)
    >>> q.nbytes, float(np.abs(q.dequantize()).max())
    (36, 1.0)
    """
    if scheme == "dynamic":
        if bits != 8 or group != 256 or rounding != "nearest" or headroom or compat:
            raise LowtideValueError(
                "scheme='dynamic' is 8 bits in flat blocks of 256, rounded to nearest; leave bits, group and rounding out"
            )
        codes, scale, bad = dynamic.quantize(x, choice(nonfinite, "nonfinite", NONFINITE))
        return Quantized(codes, scale, None, tuple(int(d) for d in x.shape), 8, 256, scheme, nonfinite=bad)
    check_format(bits, group)
    choice(scheme, "scheme", SCHEMES)
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    range_ = range_id(scheme, compat=compat, headroom=headroom)
    at = Address.checked(seed, step, slot, param, offset)
    if is_torch(x):
        from lowtide import ops

        codes, scale, zero, count = ops.quant.quantize_checked(x, bits, group, scheme, rounding, at, range_)
        bad = int(count)
        dtype = str(x.dtype).removeprefix("torch.")
    else:
        codes, scale, zero, bad, dtype = _quantize_numpy(x, bits, group, scheme, rounding, at, range_)
    if bad and nonfinite == "raise":
        raise nonfinite_error(bad, "x")
    return Quantized(codes, scale, zero, tuple(int(d) for d in x.shape), bits, group, scheme, dtype, bad)


def _quantize_numpy(
    x: Any, bits: int, group: int, scheme: str, rounding: str, at: Address, range_: int
) -> tuple[Any, Any, Any, int, str]:
    if not isinstance(x, np.ndarray):
        raise LowtideTypeError(f"x must be a NumPy array or a torch tensor, got {type(x).__name__}")
    dtype = x.dtype.name
    if dtype not in _DTYPES:
        raise LowtideTypeError(
            f"x must be float32 or bfloat16, got {dtype}; convert it with .astype(np.float32)"
        )
    if x.ndim == 0:
        raise LowtideValueError("x must have at least one dimension; pass x.reshape(1)")
    rows, cols = _rows(x.shape), x.shape[-1]
    codes = np.empty((rows, row_bytes(cols, bits)), np.uint8)
    scale = np.empty((rows, group_count(cols, group)), np.float32)
    zero = np.empty(scale.shape, np.uint8) if scheme == "asymmetric" else None
    raw = np.ascontiguousarray(x).view(np.uint16 if dtype == "bfloat16" else np.float32)
    bad = _core.quantize_group(
        raw.reshape(rows, cols), codes, scale, zero, bits, group, rounding == "stochastic", range_,
        at.seed, at.step, at.slot, at.param, ROLE_QUANT_SR, at.offset,
    )  # fmt: skip
    return codes, scale, zero, bad, dtype


def dequantize(q: Quantized, *, dtype: str | None = None) -> Any:
    """The values of ``q`` in their original shape.

    Args:
        q: what :func:`quantize` returned.
        dtype: ``"float32"`` or ``"bfloat16"``; default: the dtype that was quantized. NumPy has no bfloat16 of
            its own: there it needs the ``ml_dtypes`` package.
    """
    if not isinstance(q, Quantized):
        raise LowtideTypeError(
            f"q must be a Quantized, got {type(q).__name__}; make one with lt.quant.quantize"
        )
    _check(q)
    name = choice(dtype or q.dtype, "dtype", _DTYPES)
    if q.scheme == "dynamic":
        return dynamic.dequantize(q.codes, q.scale, name).reshape(q.shape)
    rows, cols = _rows(q.shape), q.shape[-1]
    if is_torch(q.codes):
        import torch

        from lowtide import ops

        return ops.dequantize_group(
            q.codes, q.scale, q.zero, bits=q.bits, group=q.group, cols=cols, dtype=getattr(torch, name)
        ).reshape(q.shape)
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise LowtideTypeError(
                "NumPy has no bfloat16: pass dtype='float32', or pip install ml_dtypes"
            ) from None
        raw = np.empty((rows, cols), np.uint16)
        _core.dequantize_group(q.codes, q.scale, q.zero, raw, q.bits, q.group)
        return raw.view(ml_dtypes.bfloat16).reshape(q.shape)
    out = np.empty((rows, cols), np.float32)
    _core.dequantize_group(q.codes, q.scale, q.zero, out, q.bits, q.group)
    return out.reshape(q.shape)
