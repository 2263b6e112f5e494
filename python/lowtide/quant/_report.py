# SPDX-License-Identifier: Apache-2.0
"""What quantizing a model cost: error and bits, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._error import WeightError, decibels, weight_error
from lowtide.quant._linear import Linear
from lowtide.quant._outlier_linear import OutlierLinear


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer.

    Attributes:
        name: its dotted name. format: such as ``"int4 symmetric g128"``. shape: (out, in).
        nbytes: of codes, scales, zero points and outliers; the bias is not counted.
        error: against the float weight, or ``None`` if that is not known.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    error: WeightError | None

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights, scales included."""
        return 8 * self.nbytes / max(1, self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, JSON-safe: an infinite ratio (an exact layer) is ``None`` beside ``noise`` 0."""
        e = self.error
        return {
            "name": self.name,
            "format": self.format,
            "shape": list(self.shape),
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "sqnr_db": None if e is None else _finite(e.sqnr),
            "signal": None if e is None else e.signal,
            "noise": None if e is None else e.noise,
            "largest_error": None if e is None else e.largest,
            "worst_group": None if e is None or e.worst is None else list(e.worst),
            "worst_group_sqnr_db": None if e is None else _finite(e.worst_sqnr),
        }


@dataclass(frozen=True)
class Report:
    """All quantized layers of a model. ``print`` it for a table.

    Attributes:
        layers: in the order of the model.
        dense_parameters: parameters that stay dense, biases included, shared ones once.
        dense_bytes: their bytes.
    """

    layers: tuple[LayerReport, ...]
    dense_parameters: int
    dense_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized weights."""
        return sum(r.nbytes for r in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Over all quantized layers, scales included."""
        return 8 * self.nbytes / max(1, sum(r.weights for r in self.layers))

    @property
    def sqnr(self) -> float | None:
        """All layers' signal over all layers' noise, in dB; ``None`` if a layer's error is not known."""
        errors = [r.error for r in self.layers if r.error is not None]
        if len(errors) < len(self.layers):
            return None
        return decibels(math.fsum(e.signal for e in errors), math.fsum(e.noise for e in errors))

    def worst(self, count: int = 5) -> tuple[LayerReport, ...]:
        """The layers of lowest SQNR, lowest first."""
        known = [r for r in self.layers if r.error is not None]
        return tuple(sorted(known, key=lambda r: r.error.sqnr if r.error else math.inf)[:count])

    def __str__(self) -> str:
        head = ("layer", "format", "weights", "bits", "SQNR dB", "worst group dB", "row, group")
        rows = [_row(r.name, r.format, r) for r in self.layers]
        total = sum(r.weights for r in self.layers)
        rows.append(
            ("all", "", f"{total:,}", f"{self.bits_per_weight:.3f}", _decibel_text(self.sqnr), "", "")
        )
        width = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = []
        for row in (head, *rows):
            cells = [
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        lines.insert(-1, lines[1])
        lines.append(f"{self.dense_parameters:,} other parameters stay dense ({self.dense_bytes:,} bytes)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, JSON-safe."""
        return {
            "layers": [r.to_dict() for r in self.layers],
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "sqnr_db": _finite(self.sqnr),
            "dense_parameters": self.dense_parameters,
            "dense_bytes": self.dense_bytes,
        }

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write a figure (.png, .svg or .pdf): SQNR and worst group of each layer, and bits per weight.

        Raises:
            LowtideImportError: matplotlib is not installed. LowtideValueError: another suffix, or no errors known.
        """
        from lowtide.quant._report_plot import plot

        return plot(self, Path(path), title)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _decibel_text(value: float | None) -> str:
    return "-" if value is None else "exact" if value == math.inf else f"{value:.2f}"


def _row(name: str, form: str, r: LayerReport) -> tuple[str, ...]:
    e = r.error
    where = "-" if e is None or e.worst is None else f"{e.worst[0]}, {e.worst[1]}"
    return (
        name, form, f"{r.weights:,}", f"{r.bits_per_weight:.3f}", _decibel_text(e.sqnr if e else None),
        _decibel_text(e.worst_sqnr if e else None), where,
    )  # fmt: skip


def _format(layer: Linear) -> str:
    name = layer.scheme if layer.scheme.startswith("nf") else f"int{layer.bits} {layer.scheme}"
    return f"{name} g{layer.group}"


def report(model: nn.Module, reference: nn.Module | Mapping[str, Tensor] | None = None) -> Report:
    """Error and bits of every quantized layer of ``model`` (:class:`Linear` and :class:`OutlierLinear`).

    Args:
        model: a model with quantized layers.
        reference: the float model, or its ``state_dict``; its weights are found by name. Without it, errors are
            those recorded when the layers were quantized (see :func:`recording`), and unknown if nothing was.

    Raises:
        LowtideValueError: no quantized layer, or a weight that ``reference`` lacks or has in another shape.

    >>> import copy, torch, lowtide as lt
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    >>> packed = lt.quant.quantize_model_(copy.deepcopy(model), weights="int4", group=64)
    >>> r = lt.quant.report(packed, reference=model)
    >>> [layer.name for layer in r.layers], 18 < r.sqnr < 24
    (['0', '2'], True)
    """
    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    weights = _weights(reference)
    layers: list[LayerReport] = []
    inside: set[int] = set()
    packed: set[int] = set()
    for name, m in model.named_modules():
        if id(m) in inside or not isinstance(m, (Linear, OutlierLinear)):
            continue
        if isinstance(m, OutlierLinear):
            inside.add(id(m.dense))
            share = m.value.numel() / max(1, m.in_features * m.out_features)
            form, nbytes, codes = f"{_format(m.dense)} + {share:.2%}", m.weight.nbytes, m.dense.weight
        else:
            form, nbytes, codes = _format(m), m.weight.quant.nbytes, m.weight
        packed.add(id(codes))
        error = getattr(m, "weight_error", None)
        if weights is not None:
            w = weights.get(f"{name}.weight" if name else "weight")
            shape = (m.out_features, m.in_features)
            if not isinstance(w, Tensor) or tuple(w.shape) != shape or not w.dtype.is_floating_point:
                raise LowtideValueError(
                    f"reference has no float weight of shape {shape} for {name or 'the model itself'}; "
                    "give the model that was quantized, before it was"
                )
            error = weight_error(w.to(codes.device), m.dequantize(), m.group)
        layers.append(LayerReport(name, form, (m.out_features, m.in_features), nbytes, error))
    if not layers:
        raise LowtideValueError(
            f"{type(model).__name__} has no quantized layer; call lt.quant.quantize_model_(model) first"
        )
    dense = [p for p in model.parameters() if id(p) not in packed]
    return Report(tuple(layers), sum(p.numel() for p in dense), sum(p.nbytes for p in dense))


def _weights(reference: Any) -> Mapping[str, Tensor] | None:
    if reference is None or isinstance(reference, Mapping):
        return reference
    if not isinstance(reference, nn.Module):
        raise LowtideTypeError(
            f"reference must be an nn.Module or a state_dict, got {type(reference).__name__}"
        )
    return dict(reference.named_parameters(remove_duplicate=False))
