# SPDX-License-Identifier: Apache-2.0
"""Numbers for a log: bytes by kind, subspaces and their energy, rounding."""

from __future__ import annotations

import statistics as _statistics
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.engine import Composed
from lowtide.optim.meter import Meter, Rounding, low_bit
from lowtide.optim.shards import local
from lowtide.quant._error import decibels


def _inner(optimizer: Any) -> Any:
    """What the wrappers of in_backward, Accelerate and Lightning wrap."""
    for _ in range(8):
        if isinstance(optimizer, Composed):
            return optimizer
        wrapped = getattr(optimizer, "optimizer", None)
        if wrapped is None or wrapped is optimizer:
            return optimizer
        optimizer = wrapped
    return optimizer


class Measurement:
    """Measures the steps of an optimizer until it is closed: what :func:`measure` gives."""

    def __init__(self, optimizer: Any, meter: Meter | None) -> None:
        self._optimizer = optimizer
        self._meter = meter

    def close(self) -> None:
        """Measure no further step; what the last one gave stays there for :func:`statistics`."""
        if self._meter is not None:
            self._meter.measures_energy = self._meter.measures_rounding = False

    def __enter__(self) -> Measurement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure(
    optimizer: Optimizer, *, energy: bool = True, rounding: bool = True, elements: int | None = 1 << 14
) -> Measurement:
    """Measure what can only be seen within a step, for :func:`statistics` after it.

    Nothing of the step changes, not a bit. Switch it on for the steps that are logged: as a context around ``backward()`` and
    ``step()``, or with ``close()``.

    Args:
        optimizer: of :mod:`lowtide.optim`, bare or wrapped (:func:`in_backward`, Accelerate, Lightning); with any other,
            nothing is measured.
        energy: of subspaces. Costs one read of each gradient (4 bytes an element, in float64 sums), a fraction ``1 / rank`` of
            its projection.
        rounding: of low-bit weights (packed and bf16): of evenly spaced rows, until there are ``elements`` of them in each weight.
        elements: None looks at all of them: costs decoding each packed weight twice, and holds it in float64 for that time.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Linear(64, 32)
    >>> opt = lt.optim.GaLoreAdamW(lt.optim.param_groups(model, rank=4), lr=1e-3)
    >>> with lt.optim.measure(opt):
    ...     model(torch.randn(8, 64)).square().mean().backward()
    ...     opt.step()
    >>> s = lt.optim.statistics(opt)["subspace"]
    >>> 0 < s["energy"] <= 1, s["refreshes"], s["matrices"]
    (True, 1, 1)
    """
    if elements is not None and (not isinstance(elements, int) or isinstance(elements, bool) or elements < 1):
        raise LowtideValueError(f"elements must be an integer >= 1 or None (all), got {elements!r}")
    inner = _inner(optimizer)
    if not isinstance(inner, Composed):
        if not hasattr(inner, "param_groups"):
            raise LowtideTypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        return Measurement(inner, None)
    inner._axes.meter = meter = Meter(bool(energy), bool(rounding), elements)
    return Measurement(inner, meter)


def statistics(
    optimizer: Optimizer, model: nn.Module | None = None, *, by_name: bool = False
) -> dict[str, Any]:
    """What a log should hold of an optimizer right after ``step()``: nested dicts of plain numbers.

    Without :func:`measure` around the step this costs some ten microseconds a parameter and reads no tensor.

    Args:
        optimizer: any of torch's; those of :mod:`lowtide.optim` and :mod:`lowtide.spsa` have the most to tell. Wrapped ones
            are looked into.
        model: counts all of its parameters as weights, not only those that are trained, and gives names.
        by_name: adds a line for each matrix (``["subspace"]["by_name"]``) and low-bit weight (``["quantization"]["by_name"]``).

    Returns:
        Whatever is there of

        * ``bytes``: by kind, held now by this process: weights, gradients (with :func:`in_backward`: the most at once), states, basis.
        * ``subspace``: of matrices trained in one: ``matrices``; ``refreshes``, all so far; ``gap``, the mean steps between them;
          and if the step was measured ``energy``, ``energy_min``: the mean and least share ``|B G|^2 / |G|^2`` in [0, 1] of the
          last gradient G (of what is projected: with error feedback that includes the error; accumulated in the subspace, that
          of the last pass). Of projections whose rows are not orthonormal (APOLLO's Gaussian ones) there is none.
        * ``quantization``: of low-bit weights: ``tensors``; and if the step was measured ``stalled``, the share of elements whose
          code the step left as it was (sampled rows; high is no harm by itself under stochastic rounding, where small updates
          are made now and then); ``sqnr_db``, ``sqnr_db_min``: the median and least ratio over packed weights of the weight that
          the step called for to what rounding made of it, in dB. Moments have no such ratio here: their exact values are
          never formed.
    """
    inner = _inner(optimizer)
    if not hasattr(inner, "param_groups"):
        raise LowtideTypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    names = _names(inner, model)
    out: dict[str, Any] = {"bytes": _bytes(optimizer, inner, model)}
    if isinstance(inner, Composed):
        subspace = _subspace(inner, names, by_name)
        quantization = _quantization(inner, names, by_name)
        out.update({"subspace": subspace} if subspace else {})
        out.update({"quantization": quantization} if quantization else {})
    return out


def _names(inner: Any, model: nn.Module | None) -> dict[int, str]:
    known = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    params = chain.from_iterable(g["params"] for g in inner.param_groups)
    return {id(p): known.get(id(p), f"parameter {i}") for i, p in enumerate(params)}


def _bytes(optimizer: Any, inner: Any, model: nn.Module | None) -> dict[str, int]:
    counter = next(
        (o for o in (optimizer, getattr(optimizer, "optimizer", None), inner) if hasattr(o, "state_bytes")),
        None,
    )
    if counter is not None:
        count = {kind: int(n) for kind, n in counter.state_bytes().items()}
    else:
        params = list(chain.from_iterable(g["params"] for g in inner.param_groups))
        states = [local(v) for p in params for v in inner.state.get(p, {}).values() if isinstance(v, Tensor)]
        count = {
            "weights": sum(local(p).nbytes for p in params),
            "gradients": sum(local(p.grad).nbytes for p in params if p.grad is not None),
            "states": sum(t.nbytes for t in states),
        }
    if model is not None:
        own = {id(t): local(t).nbytes for t in chain(model.parameters(), model.buffers())}
        count["weights"] = sum(own.values())
    return count


def _subspace(inner: Composed, names: dict[int, str], by_name: bool) -> dict[str, Any]:
    energies = {} if inner._axes.meter is None else inner._axes.meter.energies
    lines: dict[str, dict[str, Any]] = {}
    for p, param_id in _params(inner):
        state = inner.state.get(p, {})
        if "side" not in state:
            continue
        line: dict[str, Any] = {
            "rank": int(state["rank"]),
            "refreshes": int(state.get("refreshes", 0)),
            "gap": int(state["gap"]),
        }
        seen = energies.get(param_id)
        if seen is not None and seen.step == state["step"] and seen.whole > 0:
            line["energy"] = min(1.0, seen.captured / seen.whole)
        lines[names[id(p)]] = line
    if not lines:
        return {}
    out: dict[str, Any] = {
        "matrices": len(lines),
        "refreshes": sum(line["refreshes"] for line in lines.values()),
        "gap": _statistics.fmean(line["gap"] for line in lines.values()),
    }
    shares = [line["energy"] for line in lines.values() if "energy" in line]
    if shares:
        out["energy"], out["energy_min"] = _statistics.fmean(shares), min(shares)
    return {**out, "by_name": lines} if by_name else out


def _quantization(inner: Composed, names: dict[int, str], by_name: bool) -> dict[str, Any]:
    roundings = {} if inner._axes.meter is None else inner._axes.meter.roundings
    lines: dict[str, dict[str, Any]] = {}
    weights: list[tuple[Rounding, int]] = []
    for p, param_id in _params(inner):
        if not low_bit(p):
            continue
        bits = p.quant.bits if weight_store.is_quantized(p) else 16
        line: dict[str, Any] = {"bits": bits}
        seen = roundings.get(param_id)
        if seen is not None and seen.step == inner.state.get(p, {}).get("step") and seen.sampled:
            line["stalled"] = seen.stalled / seen.sampled
            weights.append((seen, weight_store.shape(p).numel()))
            if seen.signal and seen.noise:  # an exact one has no ratio
                line["sqnr_db"] = decibels(seen.signal, seen.noise)
        lines[names[id(p)]] = line
    if not lines:
        return {}
    out: dict[str, Any] = {"tensors": len(lines)}
    if weights:
        elements = sum(n for _, n in weights)
        out["stalled"] = sum(seen.stalled / seen.sampled * n for seen, n in weights) / elements
    ratios = [line["sqnr_db"] for line in lines.values() if "sqnr_db" in line]
    if ratios:
        out["sqnr_db"], out["sqnr_db_min"] = _statistics.median(ratios), min(ratios)
    return {**out, "by_name": lines} if by_name else out


def _params(inner: Composed) -> list[tuple[torch.Tensor, int]]:
    return [(p, i) for g in inner.param_groups for p, i in zip(g["params"], g["param_ids"], strict=True)]
