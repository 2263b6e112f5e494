# SPDX-License-Identifier: Apache-2.0
"""Low-bit tensors and layers.

:func:`quantize` packs arrays and tensors into groups of INT8 or INT4 codes; :class:`Linear` keeps its weight
that way, in inference and in training. Stochastic rounding draws its noise from the counter-based streams of
:mod:`lowtide.random`, so codes do not depend on threads, instruction set, shard or device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowtide.quant._tensor import Quantized, dequantize, quantize

# These need torch: loaded on first use.
_LAZY = {
    "Linear": "_linear",
    "OutlierLinear": "_outlier_linear",
    "QuantWeight": "_weight",
    "is_quant_weight": "_weight",
    "load_model": "_file",
    "model_bytes": "_model",
    "quantize_model_": "_model",
    "recording": "_error",
    "report": "_report",
    "save_model": "_file",
}
_MODULES = ("codebook", "gwq", "outliers", "qat")

if TYPE_CHECKING:
    from lowtide.quant import codebook as codebook
    from lowtide.quant import gwq as gwq
    from lowtide.quant import outliers as outliers
    from lowtide.quant import qat as qat
    from lowtide.quant._error import recording
    from lowtide.quant._file import load_model, save_model
    from lowtide.quant._linear import Linear
    from lowtide.quant._model import model_bytes, quantize_model_
    from lowtide.quant._outlier_linear import OutlierLinear
    from lowtide.quant._report import report
    from lowtide.quant._weight import QuantWeight, is_quant_weight

__all__ = [
    "Linear",
    "OutlierLinear",
    "QuantWeight",
    "Quantized",
    "codebook",
    "dequantize",
    "gwq",
    "is_quant_weight",
    "load_model",
    "model_bytes",
    "outliers",
    "qat",
    "quantize",
    "quantize_model_",
    "recording",
    "report",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lowtide.quant.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"lowtide.quant.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'lowtide.quant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
