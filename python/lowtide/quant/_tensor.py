# SPDX-License-Identifier: Apache-2.0
"""quantize and dequantize over NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lowtide._arrays import is_torch
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant import _codec as codec
from lowtide.quant._format import (
    ALL_SCHEMES,
    FLOATS,
    NONFINITE,
    ROUNDINGS,
    SCALE_DTYPES,
    SCHEMES,
    Address,
    check_format,
    choice,
    group_count,
    map_of,
    range_id,
    row_bytes,
)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in groups of codes along its last dimension; the parts are plain tensors or arrays.

    Attributes:
        codes: uint8, (rows, bytes of a row); rows are all dimensions but the last. 4-bit codes take half a byte.
        scale: float32 or bfloat16 (NumPy: its bits as uint16), (rows, groups).
        zero: uint8, (rows, groups), for the asymmetric scheme, else ``None``.
        shape: shape of the tensor.
        bits: 8 or 4.
        group: elements that share a scale; the last group of a row may be short.
        scheme: one of those of :func:`quantize`.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what was quantized, and what :meth:`dequantize` returns.
        nonfinite: elements that were counted as 0 under ``nonfinite="skip"``.
        flat: groups run over the flattened tensor, which is then one row.
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
    flat: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(int(part.nbytes) for part in (self.codes, self.scale, self.zero) if part is not None)

    @property
    def scale_dtype(self) -> str:
        """``"float32"`` or ``"bfloat16"``."""
        return "float32" if str(self.scale.dtype).removeprefix("torch.") == "float32" else "bfloat16"

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
        state = {"flat": False, **state}  # what the first version wrote has none
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


def _matrix(shape: tuple[int, ...], flat: bool) -> tuple[int, int]:
    """Rows and columns that the groups see."""
    return (1, math.prod(shape)) if flat else (math.prod(shape[:-1]), shape[-1])


def _check_scheme(bits: int, group: int, scheme: str) -> None:
    check_format(bits, group)
    choice(scheme, "scheme", ALL_SCHEMES)
    map_of(scheme, bits)


def _check(q: Quantized) -> None:
    """Everything a kernel relies on, and finite scales."""
    _check_scheme(q.bits, q.group, q.scheme)
    choice(q.dtype, "dtype", FLOATS)
    if not isinstance(q.nonfinite, int) or q.nonfinite < 0:
        raise LowtideValueError(f"nonfinite must be an integer >= 0, got {q.nonfinite!r}")
    if not isinstance(q.flat, bool):
        raise LowtideValueError(f"flat must be True or False, got {q.flat!r}")
    if not q.shape:
        raise LowtideValueError("shape must have at least one dimension")
    if (q.zero is None) == (q.scheme == "asymmetric"):
        raise LowtideValueError(
            f"zero must {'be None' if q.zero is not None else 'be given'} for {q.scheme} codes"
        )
    rows, cols = _matrix(q.shape, q.flat)
    groups: tuple[int, ...] = (rows, group_count(cols, q.group))
    codes: tuple[int, ...] = (rows, row_bytes(cols, q.bits))
    scale_dtypes = ("float32", "bfloat16" if is_torch(q.codes) else "uint16")
    parts: list[tuple[str, Any, tuple[str, ...], tuple[int, ...]]] = [
        ("codes", q.codes, ("uint8",), codes),
        ("scale", q.scale, scale_dtypes, groups),
    ]
    if q.zero is not None:
        parts.append(("zero", q.zero, ("uint8",), groups))
    torch_parts = is_torch(q.codes)
    for name, part, dtypes, shape in parts:
        if is_torch(part) != torch_parts or not (torch_parts or isinstance(part, np.ndarray)):
            raise LowtideTypeError(
                f"codes, scale and zero must be all NumPy arrays or all torch tensors, got {type(part).__name__}"
            )
        if str(part.dtype).removeprefix("torch.") not in dtypes:
            raise LowtideTypeError(f"{name} must be {dtypes[0]}, got {part.dtype}")
        if tuple(part.shape) != shape:
            raise LowtideValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
        if not (part.is_contiguous() if torch_parts else part.flags.c_contiguous):
            raise LowtideValueError(f"{name} must be contiguous")
    scale = codec.widen(q.scale)
    if math.prod(scale.shape) == 0:
        return
    low, high = scale.aminmax() if torch_parts else (scale.min(), scale.max())  # NaN comes through
    if not (float(low) >= 0 and float(high) < math.inf):
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
    flat: bool = False,
    scale_dtype: str = "float32",
    headroom: bool = False,
    compat: bool = False,
    nonfinite: str = "raise",
) -> Quantized:
    """Pack ``x`` into ``bits``-bit codes, in groups along its last dimension.

    ======================  =======================================================================================
    scheme                  what a code means
    ======================  =======================================================================================
    ``"symmetric"``         an integer times the scale, max|x| / 127 (4 bits: / 7)
    ``"asymmetric"``        the same from a zero point; the range always holds 0, which stays exact
    ``"nf4"``               4 bits: one of the 16 levels of QLoRA (arXiv 2305.14314, appendix E)
    ``"dynamic"``           signed map of optimizer states. 8 bits: bitsandbytes' 256 levels (with ``group=256,
                            flat=True`` also its format). 4 bits: torchao's 16
    ``"dynamic_unsigned"``  the same construction for values >= 0 (second moments)
    ``"linear_nozero"``     4 bits: (code + 1) / 16, for values >= 0 (arXiv 2309.01507; torchao's second moments)
    ======================  =======================================================================================

    Args:
        x: float32, bfloat16 or float16 torch tensor, or float32, float16 (or ml_dtypes bfloat16) NumPy array, of at
            least one dimension. Any size; the last group of a row may be short.
        bits: 8 or 4.
        group: elements that share a scale, a multiple of 32.
        scheme: see the table. Maps scale by the group's largest magnitude; unsigned ones take negative values as 0.
        rounding: ``"nearest"`` (integers: ties to even; 16 levels: ties to the lower one; 256: away from zero) or ``"stochastic"`` (unbiased;
            noise addressed by ``seed``, ``step``, ``slot``, ``param`` and the element's index plus ``offset``).
        flat: groups run over the flattened tensor instead of each row.
        scale_dtype: ``"float32"``, or ``"bfloat16"``: rounded up before codes are computed, so that there is no gain
            error and the largest element stays in range.
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
    >>> lt.quant.quantize(np.ones(7, np.float16), bits=4, scheme="nf4").dequantize().dtype
    dtype('float16')
    """
    _check_scheme(bits, group, scheme)
    choice(rounding, "rounding", ROUNDINGS)
    choice(nonfinite, "nonfinite", NONFINITE)
    bf16_scale = choice(scale_dtype, "scale_dtype", SCALE_DTYPES) == "bfloat16"
    if scheme not in SCHEMES and headroom:
        raise LowtideValueError(f"headroom is for symmetric and asymmetric codes, got scheme={scheme!r}")
    form = codec.Format(
        bits, group, scheme, rounding, range_id(scheme, compat=compat, headroom=headroom), bf16_scale
    )
    at = Address.checked(seed, step, slot, param, offset)
    dtype = codec.dtype_of(x)
    made = codec.encode(x.reshape(1, math.prod(x.shape)) if flat else x, form, at, nonfinite)
    return Quantized(
        made.codes, codec.narrow(made.scale) if bf16_scale else made.scale, made.zero,
        tuple(int(d) for d in x.shape), bits, group, scheme, dtype, made.nonfinite, flat,
    )  # fmt: skip


def dequantize(q: Quantized, *, dtype: str | None = None) -> Any:
    """The values of ``q`` in their original shape.

    Args:
        q: what :func:`quantize` returned.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (saturated: finite values stay finite); default: the dtype
            that was quantized. NumPy has no bfloat16 of its own: there it needs the ``ml_dtypes`` package.
    """
    if not isinstance(q, Quantized):
        raise LowtideTypeError(
            f"q must be a Quantized, got {type(q).__name__}; make one with lt.quant.quantize"
        )
    _check(q)
    name = choice(dtype or q.dtype, "dtype", FLOATS)
    form = codec.Format(q.bits, q.group, q.scheme, "nearest", 0, False)
    rows, cols = _matrix(q.shape, q.flat)
    return codec.decode(q.codes, codec.widen(q.scale), q.zero, form, rows, cols, name).reshape(q.shape)
