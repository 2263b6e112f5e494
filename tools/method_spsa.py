# SPDX-License-Identifier: Apache-2.0
"""In words: what a zeroth-order method chooses, read from an optimizer that was built with its defaults."""

from __future__ import annotations

import math
from typing import Any

import torch

import lowtide as lt

DISTS = {"rademacher": "random signs", "gaussian": "Gaussian", "ih4": "ih4", "lut8": "lut8"}
EVALUATIONS = {
    "central": "central differences, {} evaluations a step",
    "forward": "one-sided differences, {} evaluations a step",
    "fzoo": "one-sided differences over their spread, {} evaluations a step",
}


def build(name: str) -> lt.spsa.SPSA:
    """A preset over a small layer; quantized where it wants that."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    if name in ("QZO", "QuZO"):
        lt.quant.quantize_model_(layer, weights="int4", group=32, skip=())
    kind = getattr(lt.spsa, name)
    made: lt.spsa.SPSA = (
        kind(layer)
        if name == "QZO"
        else kind(layer.parameters() if name == "QuZO" else layer.named_parameters(), module=layer)
    )
    return made


def _moves(opt: lt.spsa.SPSA) -> tuple[str, str]:
    m, group = opt.method, opt.param_groups[0]
    if m.rank:
        return f"U Vᵀ of rank {m.rank}, V kept for {m.interval} steps", f"rank {m.rank}"
    if m.seeds:
        return f"none; z is one of {m.seeds} candidates", f"{m.seeds} candidates"
    if group["keep"] is not None:
        return f"the smallest {group['keep']:.0%} of each tensor's elements", "smallest weights"
    if isinstance(opt, lt.spsa.QZO):
        return "the scales of quantized layers", "scales"
    if group["packed"]:
        return "none; codes of packed weights move too", "codes"
    return "none", "dense"


def _weights(opt: lt.spsa.SPSA) -> str:
    if opt.method.kind != "plain":
        return "fp32 (16-bit models: `masters='float32'`)"
    if isinstance(opt, lt.spsa.QZO):
        return "packed codes that stay; their scales in fp32"
    packed = ", packed codes" if opt.param_groups[0]["packed"] else ""
    return f"fp32; bf16, fp16{packed} rounded stochastically"


def evaluations(opt: lt.spsa.SPSA) -> int:
    """Of the loss in a step."""
    n = opt.directions
    return n + 1 if opt.method.estimator != "central" else 2 * n + (opt.method.kind == "hizoo")


def rows(name: str) -> list[tuple[str, str]]:
    """(axis, choice) of a preset."""
    opt = build(name)
    m, group = opt.method, opt.param_groups[0]
    source = f"SPSA, {EVALUATIONS[m.estimator].format(evaluations(opt))}"
    if m.kind == "hizoo":
        source += ", the third for the curvature"
    rule = {
        "plain": "SGD",
        "hizoo": "SGD, preconditioned by a learned diagonal",
        "conmezo": "SGD; a momentum bends directions",
    }
    limits = [f"slopes clipped to {opt.clip:g}"] if opt.clip is not None else []
    limits += [f"never below {group['floor']:g}"] if group["floor"] > -math.inf else []
    scale = {"rms": "relative to the tensor's root mean square"}.get(group["scale"])
    return [
        ("gradient source", source),
        ("directions z", ", ".join([DISTS[m.dist], *([scale] if scale else [])])),
        ("subspace", _moves(opt)[0]),
        ("rule", ", ".join([rule[m.kind], *limits])),
        (
            "state store",
            "one fp32 a weight" if m.kind != "plain" else f"{m.seeds} sums" if m.seeds else "nothing kept",
        ),
        ("weight store", _weights(opt)),
    ]


def brief(name: str) -> str:
    """The axes in a word."""
    opt = build(name)
    m = opt.method
    kind = {"plain": "SGD", "hizoo": "curvature", "conmezo": "momentum"}[m.kind]
    source = {"fzoo": "one-sided over spread", "forward": "one-sided"}.get(m.estimator, m.estimator)
    return " · ".join([f"{source}, {evaluations(opt)} evaluations", DISTS[m.dist], _moves(opt)[1], kind])


def state_bytes(name: str) -> float:
    """Bytes of state a parameter."""
    opt: Any = build(name)
    return 4.0 if opt.method.kind != "plain" else 0.0
