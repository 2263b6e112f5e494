# SPDX-License-Identifier: Apache-2.0
"""Optimizer states to and from bitsandbytes and torchao: every code and scale is kept bit for bit.

All three libraries store the same 8-bit dynamic map (256 values, blocks of 256); torchao's 4-bit states are the same
two maps in blocks of 128 with another order of nibbles. Neither package is needed to read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideImportError, LowtideTypeError, LowtideValueError
from lowtide.ops.optim import STATE_BLOCK
from lowtide.optim.engine import Composed
from lowtide.optim.stores import MIN_CODED
from lowtide.quant._format import row_bytes

_BNB_WRAPPER = "__bnb_optimizer_quant_state__"
_MOMENTS = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "lion": ("exp_avg",),
    "sgd": ("momentum_buffer",),
}
# The regions of the maps; between two published versions of the same table lie a few units in the last place.
_SAME_MAP = 1e-6


def dynamic_map(bits: int, *, signed: bool) -> Tensor:
    """The values of the codes, computed as bitsandbytes and torchao do: 256 or 16 float32 numbers, rising.

    For 8 bits these are their tables bit for bit; this library's kernels use a closed form within 1.4e-7 of them.
    """
    if bits == 4 and not signed:
        return torch.linspace(0, 1, 17)[1:]
    regions = bits - 1
    values: list[float] = [0.0, 1.0]
    for i in range(regions):
        edges = torch.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1)
        centers = 10 ** (-(regions - 1) + i) * ((edges[:-1] + edges[1:]) / 2.0)
        values += centers.tolist()
        if signed:
            values += (-centers).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def _check_map(qmap: Any, bits: int, signed: bool, where: str) -> None:
    want = dynamic_map(bits, signed=signed)
    if not isinstance(qmap, Tensor) or qmap.shape != want.shape or qmap.dtype != torch.float32:
        found = f"{tuple(qmap.shape)} {qmap.dtype}" if isinstance(qmap, Tensor) else type(qmap).__name__
        raise LowtideValueError(f"the code map of {where} must be {len(want)} float32 values, got {found}")
    if not torch.allclose(qmap.cpu(), want, rtol=_SAME_MAP, atol=0.0):
        worst = int((qmap.cpu() - want).abs().argmax())
        kind = "signed" if signed else "unsigned"
        raise LowtideValueError(
            f"the code map of {where} is not the {kind} {bits}-bit dynamic map: code {worst} stands for {float(qmap[worst]):g}, "
            f"not {float(want[worst]):g}; its codes cannot be converted without loss"
        )


def _moment(
    out: dict[str, Any], name: str, codes: Any, absmax: Any, qmap: Any, bits: int, signed: bool, where: str
) -> None:
    """Check one coded moment and put it into ``out``. ``codes`` are in this library's order."""
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        raise LowtideTypeError(
            f"the codes of {where} must be a uint8 tensor, got {getattr(codes, 'dtype', type(codes).__name__)}"
        )
    if not isinstance(absmax, Tensor) or absmax.dtype != torch.float32:
        raise LowtideTypeError(
            f"the scales of {where} must be a float32 tensor, got {getattr(absmax, 'dtype', type(absmax).__name__)}"
        )
    numel = codes.numel() * 8 // bits
    blocks = -(-numel // STATE_BLOCK[bits])
    if absmax.numel() != blocks:
        raise LowtideValueError(
            f"{where} has {absmax.numel()} scales for {numel} elements: only blocks of {STATE_BLOCK[bits]} ({blocks} scales) convert"
        )
    _check_map(qmap, bits, signed, where)
    out[f"{name}.codes"] = codes.detach().cpu().reshape(-1).clone()
    out[f"{name}.absmax"] = absmax.detach().cpu().reshape(-1).clone()


def _plain(out: dict[str, Any], name: str, value: Any, where: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        raise LowtideTypeError(
            f"{where} must be a float32 tensor, got {getattr(value, 'dtype', type(value).__name__)}"
        )
    out[name] = value.detach().cpu().contiguous().clone()
    if value.numel() >= MIN_CODED:
        out["fp32"] = 1  # a coded optimizer takes it as it is


def _saved(source: Any, name: str) -> Mapping[str, Any]:
    saved = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        raise LowtideTypeError(f"{name} must be an optimizer or its state_dict, got {type(source).__name__}")
    return saved


def _convert(
    saved: Mapping[str, Any], rule: str, entry: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    groups = []
    for group in saved["param_groups"]:
        if group.get("amsgrad"):
            raise LowtideValueError(
                "amsgrad has no counterpart here: its largest second moments would be lost"
            )
        new: dict[str, Any] = {
            "lr": float(group["lr"]),
            "weight_decay": float(group["weight_decay"]),
            "params": list(group["params"]),
            "param_ids": list(group["params"]),
        }
        betas = tuple(float(b) for b in group["betas"])
        if rule == "sgd":
            if new["weight_decay"] != 0.0:
                raise LowtideValueError(
                    "weight_decay of SGD is coupled there and decoupled here; set it to 0 in the saved groups to convert the rest"
                )
            new.update(momentum=betas[0], dampening=0.0, nesterov=False)
        else:
            new["betas"] = betas
        if rule == "adam":
            new["eps"] = float(group["eps"])
        groups.append(new)
    state = {key: {"step": int(value["step"]), **entry(key, value)} for key, value in saved["state"].items()}
    return {"state": state, "param_groups": groups}


def from_bitsandbytes(source: Any, *, rule: str | None = None) -> dict[str, Any]:
    """A bitsandbytes optimizer's state for the optimizer of the same name here, codes and scales bit for bit.

    Args:
        source: an ``AdamW8bit``, ``Adam8bit``, ``Lion8bit`` or ``SGD8bit`` of bitsandbytes, or its ``state_dict()``.
        rule: ``"adam"``, ``"lion"`` or ``"sgd"``. Needed for the state dict of a rule with one moment, which does not say its own.

    Returns:
        A state dict for ``load_state_dict`` of :class:`~lowtide.optim.AdamW8bit`, ``Lion8bit`` or ``SGD8bit`` over the same
        parameters in the same order. Moments that bitsandbytes keeps in float32 stay so.

    Raises:
        LowtideTypeError, LowtideValueError: another rule, block size or code map, or coupled weight decay of SGD.
    """
    names = {"adam": "adam", "lion": "lion", "momentum": "sgd"}
    saved = _saved(source, "source")
    entries = {k: {**v, **v.get(_BNB_WRAPPER, {})} for k, v in saved["state"].items()}
    if rule is None:
        own = getattr(source, "optimizer_name", None)
        if any("state2" in e for e in entries.values()):
            own = own or "adam"
        if own not in names:
            raise LowtideValueError(
                f"rule must be 'adam', 'lion' or 'sgd' for this source (it says {own!r} and has one moment); pass rule=..."
            )
        rule = names[own]
    if rule not in _MOMENTS:
        raise LowtideValueError(f"rule must be one of {', '.join(_MOMENTS)}, got {rule!r}")
    moments = _MOMENTS[rule]

    def entry(key: Any, _: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        e = entries[key]
        if ("state2" in e) != (len(moments) == 2) or "state1" not in e:
            raise LowtideValueError(
                f"the state of parameter {key} has not the {len(moments)} moments of {rule}"
            )
        for i, name in enumerate(moments, 1):
            where = f"state{i} of parameter {key}"
            if e[f"state{i}"].dtype == torch.uint8:
                got = e[f"state{i}"], e.get(f"absmax{i}"), e.get(f"qmap{i}")
                _moment(out, name, *got, 8, i == 1, where)
            else:
                _plain(out, name, e[f"state{i}"], where)
        return out

    return _convert({**saved, "state": entries}, rule, entry)


def from_torchao(source: Any) -> dict[str, Any]:
    """A torchao ``AdamW8bit`` or ``AdamW4bit`` state for the optimizer of the same name here, codes and scales bit for bit.

    Args:
        source: the optimizer or its ``state_dict()``. Its block size must be 256 (8 bits) or 128 (4 bits), the default.

    Returns:
        A state dict for ``load_state_dict`` of :class:`~lowtide.optim.AdamW8bit` or ``AdamW4bit`` over the same parameters
        in the same order. Moments that torchao keeps in float32 (sizes that its blocks do not divide) stay so.

    Raises:
        LowtideTypeError, LowtideValueError: another block size or code map, amsgrad.
    """

    def entry(key: Any, value: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, signed in zip(_MOMENTS["adam"], (True, False), strict=True):
            where = f"{name} of parameter {key}"
            if name not in value:
                raise LowtideValueError(f"{where} is missing: only torchao's Adam variants convert")
            moment = value[name]
            if not hasattr(moment, "codes"):
                _plain(out, name, moment, where)
                continue
            bits = 4 if len(moment.qmap) == 16 else 8
            codes = moment.codes
            if bits == 4:
                if codes.numel() % 16:
                    raise LowtideValueError(
                        f"{where} has {codes.numel()} bytes of codes, not a multiple of 16"
                    )
                codes = _to_planar(codes.reshape(-1))
            _moment(out, name, codes, moment.scale, moment.qmap, bits, signed, where)
        return out

    return _convert(_saved(source, "source"), "adam", entry)


def _to_planar(codes: Tensor) -> Tensor:
    """torchao's nibbles (even index high) in this library's order (code 16 + j above code j)."""
    each = torch.stack([codes >> 4, codes & 15], dim=-1).reshape(-1, 2, 16)
    return (each[:, 0] | each[:, 1] << 4).reshape(-1)


def _from_planar(codes: Tensor) -> Tensor:
    each = _in_order(codes).reshape(-1, 2)
    return each[:, 0] << 4 | each[:, 1]


def _in_order(codes: Tensor) -> Tensor:
    """One code a byte, as the elements follow each other; ``codes`` in whole runs of 16 bytes."""
    pairs = codes.reshape(-1, 16)
    return torch.stack([pairs & 15, pairs >> 4], dim=1).reshape(-1)


def _stored(opt: Composed, rules: tuple[str, ...], bits: tuple[int, ...]) -> int:
    """The optimizer's bits; raises where another library could not hold its states."""
    if not isinstance(opt, Composed):
        raise LowtideTypeError(f"opt must be an optimizer of lowtide.optim, got {type(opt).__name__}")
    if opt._axes.rule.kernel not in rules:
        raise LowtideValueError(
            f"opt must have one of the rules {', '.join(rules)}, got {opt._axes.rule.kernel!r}"
        )
    if any("side" in s for s in opt.state.values()):
        raise LowtideValueError("opt trains matrices in a subspace, which has no counterpart there")
    own = opt._axes.store.bits(opt._axes.store.min_numel)
    if own not in (32, *bits):
        raise LowtideValueError(f"opt must keep its moments in {' or '.join(map(str, bits))} bits, got {own}")
    return own


def _entries(opt: Composed, saved: Mapping[str, Any]) -> Iterator[tuple[Any, Tensor, dict[str, Any]]]:
    """Key, parameter and state of each parameter of ``opt`` that ``saved``, its state dict, has a state of."""
    params = [p for g in opt.param_groups for p in g["params"]]
    ids = [i for g in saved["param_groups"] for i in g["params"]]
    for key, p in zip(ids, params, strict=True):
        if key in saved["state"]:
            yield key, p, saved["state"][key]


def to_bitsandbytes(opt: Composed) -> dict[str, Any]:
    """The other way: a state dict for ``load_state_dict`` of bitsandbytes' AdamW8bit, Lion8bit or SGD8bit.

    Args:
        opt: an ``AdamW8bit``, ``Lion8bit`` or ``SGD8bit`` of this library, stepped at least once.

    Raises:
        LowtideTypeError, LowtideValueError: a state that bitsandbytes has no form for, named.
    """
    _stored(opt, ("adam", "lion", "sgd"), (8,))
    moments = [name for name, _ in opt._axes.rule.moments]
    saved = opt.state_dict()
    state: dict[Any, dict[str, Any]] = {}
    for key, p, entry in _entries(opt, saved):
        out: dict[str, Any] = {}
        for i, name in enumerate(moments, 1):
            if name in entry:
                out[f"state{i}"] = entry[name].clone()
            else:
                out[f"state{i}"] = entry[f"{name}.codes"].reshape(p.shape).clone()
                out[f"qmap{i}"] = dynamic_map(8, signed=i == 1)
                out[f"absmax{i}"] = entry[f"{name}.absmax"].clone()
        state[key] = {"step": entry["step"], _BNB_WRAPPER: out}
    groups = []
    for g in saved["param_groups"]:
        betas = (g["momentum"], 0.0) if opt._axes.rule.kernel == "sgd" else tuple(g["betas"])
        if g.get("nesterov") or g.get("dampening"):
            raise LowtideValueError("nesterov and dampening have no counterpart in bitsandbytes")
        if opt._axes.rule.kernel == "sgd" and g["weight_decay"]:
            raise LowtideValueError("weight_decay of SGD is decoupled here and coupled there; set it to 0")
        own = {"lr": g["lr"], "betas": betas, "eps": g.get("eps", 0.0), "weight_decay": g["weight_decay"]}
        groups.append({**own, "alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": list(g["params"])})
    return {"state": state, "param_groups": groups}


def to_torchao(opt: Composed) -> dict[str, Any]:
    """The other way: a state dict for ``load_state_dict`` of torchao's AdamW8bit or AdamW4bit.

    Args:
        opt: an ``AdamW8bit`` or ``AdamW4bit`` of this library, stepped at least once. Moments whose size torchao's blocks do
            not divide become float32 of the same value: that is how it keeps them.

    Raises:
        LowtideImportError: torchao is not installed.
        LowtideTypeError, LowtideValueError: a state that torchao has no form for, named.
    """
    bits = _stored(opt, ("adam",), (8, 4))
    try:
        from torchao.optim.subclass_4bit import OptimState4bit
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise LowtideImportError("to_torchao needs torchao: pip install torchao") from error
    saved = opt.state_dict()
    state: dict[Any, dict[str, Any]] = {}
    for key, p, entry in _entries(opt, saved):
        out: dict[str, Any] = {"step": torch.tensor(float(entry["step"]))}
        for name, signed in zip(_MOMENTS["adam"], (True, False), strict=True):
            if name in entry:
                out[name] = entry[name].clone()
                continue
            codes, absmax, qmap = (
                entry[f"{name}.codes"],
                entry[f"{name}.absmax"],
                dynamic_map(bits, signed=signed),
            )
            if p.numel() % STATE_BLOCK[bits]:
                out[name] = _values(codes, absmax, qmap, bits, p.numel()).reshape(p.shape)
            elif bits == 8:
                out[name] = OptimState8bit(codes.reshape(p.shape).clone(), absmax.clone(), qmap, signed)
            else:
                out[name] = OptimState4bit(_from_planar(codes), absmax.clone(), qmap, signed, p.shape)
        state[key] = out
    groups = [
        {
            "lr": torch.tensor(float(g["lr"])), "betas": tuple(g["betas"]), "eps": g["eps"],
            "weight_decay": g["weight_decay"], "amsgrad": False, "params": list(g["params"]),
        }
        for g in saved["param_groups"]
    ]  # fmt: skip
    return {"state": state, "param_groups": groups}


def _values(codes: Tensor, absmax: Tensor, qmap: Tensor, bits: int, numel: int) -> Tensor:
    if bits == 4:
        padded = torch.zeros(-(-len(codes) // 16) * 16, dtype=torch.uint8)
        padded[: len(codes)] = codes
        assert len(codes) == row_bytes(numel, 4)
        codes = _in_order(padded)[:numel]
    scale = absmax.repeat_interleave(STATE_BLOCK[bits])[:numel]
    return qmap[codes.long()] * scale
