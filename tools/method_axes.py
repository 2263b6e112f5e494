# SPDX-License-Identifier: Apache-2.0
"""In words: what a method chooses on each axis of the engine, read from an optimizer that was built with its defaults."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lowtide as lt
from lowtide.optim.engine import Composed
from lowtide.optim.memory import factory

LAYER = (4096, 4096)
RANK = 128
WEIGHTS = "fp32; bf16 and packed codes are rounded stochastically"


def build(name: str, **options: Any) -> Composed:
    """A preset over one matrix without memory, low rank if that is what it is for."""
    _, make = factory(name)
    p = nn.Parameter(torch.empty(LAYER, device="meta"))
    opt = make([{"params": [p]}], **options)
    if opt._low_rank:
        opt = make([{"params": [p], "rank": RANK}], **options)
    return opt


def number(x: Any) -> str:
    """A number as short as it can be read back."""
    return f"{x:g}" if isinstance(x, float) else str(x)


def subspace(s: Any) -> tuple[str, str]:
    """Long and short."""
    o = lt.optim
    match s:
        case o.RandomizedSVD():
            start = "warm-started" if s.warm_start else "from a fresh sketch each time"
            return f"singular vectors, randomized SVD {start}", "SVD"
        case o.ExactSVD():
            return "singular vectors, exact SVD", "SVD"
        case o.PowerQR():
            return (
                f"a power iteration from the basis in use (share of the moment {number(s.rho)})",
                "power QR",
            )
        case o.Grassmann():
            size = "the best angle" if s.step_size is None else f"eta {number(s.step_size)}"
            return f"a step on the Grassmannian ({size})", "Grassmann step"
        case o.Switch():
            first, then = subspace(s.first), subspace(s.then)
            return f"{first[0]}; from `switch_step` on {then[0]}", f"{first[1]}, then {then[1]}"
        case o.RandomOrthonormal():
            return "random orthonormal rows", "random orthonormal"
        case o.RandomGaussian():
            return "random Gaussian rows of variance 1/r", "random"
        case o.RandomIndices():
            return "random rows or columns", "random rows"
        case o.TopIndices():
            return "rows or columns of largest norm", "top rows"
        case o.Cosines():
            return f"cosines (DCT-II) in which the gradient is largest, by {s.power} norm", "DCT columns"
    raise NotImplementedError(f"no words for subspace {s!r}")


def basis(axes: Any) -> str:
    """How a basis is kept."""
    kind = axes.subspace.kind
    if kind == "dense":
        group = f" in groups of {axes.basis.group}" if axes.basis.bits else ""
        return f"{axes.basis.kind.upper() if axes.basis.bits else axes.basis.kind}{group}"
    return {"seed": "a seed", "indices": "r int32"}[kind]


def refresh(opt: Composed) -> tuple[str, str]:
    """Long and short."""
    r, gap = opt._axes.refresh, opt.default_gap
    every = "each step" if gap == 1 else f"every {gap} steps"
    if isinstance(r, lt.optim.EveryT):
        return every, f"T={gap}"
    if isinstance(r, lt.optim.LazyDoubling):
        words = (
            f"{every}; the gap times {number(r.gamma)} where bases overlap by {number(r.threshold)} on "
            f"average over {r.queue} refreshes"
        )
        return words, "lazy"
    if isinstance(r, lt.optim.Displacement):
        return (
            f"looked at {every}; when the displacement a step is {number(r.threshold)} or less",
            "displacement",
        )
    raise NotImplementedError(f"no words for refresh {r!r}")


TRANSPORT = {
    "Stale": ("kept as they are", "stale"),
    "Reset": ("set to zero, bias correction restarts", "reset"),
    "Rotate": ("rotated into the new basis (between indices: gathered)", "rotate"),
    "Reproject": ("first moment projected back and down again", "reproject"),
}
RULES = {
    "AdamRule": "Adam", "AdaBeliefRule": "AdaBelief", "LionRule": "Lion", "SGDRule": "SGD with momentum",
    "GradientRule": "SGD", "DiffGradRule": "diffGrad", "AdafactorRule": "Adafactor", "AdamMiniRule": "Adam-mini",
    "AdaHessianRule": "AdaHessian", "SophiaRule": "Sophia", "DecayingRule": "SGD at a falling rate",
}  # fmt: skip
STATES = {"fp32": "fp32", "int8": "INT8 dynamic map, blocks of 256", "int4": "INT4, blocks of 128"}


def rule(r: Any) -> str:
    """Of a rule."""
    if isinstance(r, lt.optim.SignRule):
        return "Signum" if r.momentum else "sign"
    return RULES[type(r).__name__]


def residual(r: Any) -> tuple[str, str]:
    """Long and short."""
    o = lt.optim
    match r:
        case o.Drop():
            return "dropped", "drop"
        case o.SignResidual():
            return f"{r.kind} of it at {number(r.lr_scale)} times the rate", f"{r.kind} residual"
        case o.ScaledResidual():
            return (
                f"by channel at the subspace's rate, growth of its norm limited to {number(r.limiter)}",
                "scaled",
            )
        case o.ScaledGradient():
            return (
                f"scale only: the whole gradient at one rate a {r.per}, growth of its norm limited to "
                f"{number(r.limiter)}"
            ), "scale only"
        case o.ErrorFeedback():
            more = ", with what moments lose" if r.of_moments else ""
            store = r.store.upper() if r.store.startswith("int") else r.store
            return f"error feedback kept in {store}{more}", "error feedback"
    raise NotImplementedError(f"no words for residual {r!r}")


def curvature(source: Any) -> str:
    """What feeds a second moment."""
    name = type(source).__name__
    words = {
        "Hutchinson": "products with the Hessian and random signs",
        "GaussNewtonBartlett": "gradients of sampled labels",
    }
    return f"{words[name]}, every {source.every} steps" if source.every > 1 else f"{words[name]}, each step"


def states(axes: Any) -> list[str]:
    """What is kept of gradients."""
    kept = [STATES[axes.store.kind]] if axes.rule.moments else []
    if axes.rule.factor_names:
        kept.append("second moments of rows, columns or blocks in fp32")
    if isinstance(axes.transform, lt.optim.InverseFisher):
        kept.append(f"the last {axes.transform.ngrads} gradients in {axes.transform.window}")
    if isinstance(axes.transform, lt.optim.HessianAidedMean):
        kept.append("the mean and the last weights in fp32")
    if isinstance(axes.refresh, lt.optim.Displacement):
        kept.append("a reference gradient of the subspace in bf16")
    return kept


def rows(name: str) -> list[tuple[str, str]]:
    """(axis, choice) of a preset."""
    opt = build(name)
    axes = opt._axes
    table = [("gradient source", "backpropagation")]
    if axes.transform is not None:
        words = {
            "InverseFisher": "times the inverse Fisher matrix of the last ones",
            "HessianAidedMean": "a mean that products with the Hessian carry along",
        }
        table.append(("transform of gradients", words[type(axes.transform).__name__]))
    if axes.curvature is not None:
        table.append(("curvature source", curvature(axes.curvature)))
    if opt._low_rank:
        table += [
            ("subspace", subspace(axes.subspace)[0]),
            ("basis store", basis(axes)),
            ("refresh", refresh(opt)[0]),
            ("moments at a refresh", TRANSPORT[type(axes.transport).__name__][0]),
            ("rule", rule(axes.rule)),
            ("residual", residual(axes.residual)[0]),
        ]
    else:
        table += [
            ("subspace, basis store, refresh, transport, residual", "full rank: none"),
            ("rule", rule(axes.rule)),
        ]
    table.append(("state store", "; ".join(states(axes)) or "nothing kept"))
    if axes.constraint is not None:
        words = {"ScaleInvariant": "no steps along weights whose size does not matter"}
        table.append(("constraint", words[type(axes.constraint).__name__]))
    if axes.parametrization is not None:
        table.append(("parametrization", "rows as magnitude and direction"))
    if axes.decay != "before":
        table.append(("weight decay", axes.decay))
    return [*table, ("weight store", WEIGHTS)]


def brief(name: str) -> str:
    """The axes in a word."""
    opt = build(name)
    axes = opt._axes
    words = [rule(axes.rule)]
    if opt._low_rank:
        words = [
            subspace(axes.subspace)[1],
            refresh(opt)[1],
            TRANSPORT[type(axes.transport).__name__][1],
            *words,
        ]
        words.append(residual(axes.residual)[1])
    words.append(axes.store.kind if axes.rule.moments else "fp32" if states(axes) else "no state")
    if opt._low_rank and axes.basis.bits:
        words.append(f"{axes.basis.kind} basis")
    for part, word in (
        (axes.constraint, "scale-invariant"), (axes.parametrization, "weight norm"), (axes.curvature, "curvature"),
        (axes.transform, "transform"),
    ):  # fmt: skip
        if part is not None:
            words.append(word)
    return " · ".join(words)


def per_parameter(name: str) -> tuple[float, float]:
    """Bytes of states and of bases a parameter of a square layer."""
    layer = nn.Linear(LAYER[1], LAYER[0], bias=False, device="meta")
    report = lt.optim.memory(layer, name, rank=RANK)
    return report.states / report.parameters, report.basis / report.parameters
