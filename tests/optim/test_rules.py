# SPDX-License-Identifier: Apache-2.0
"""Each rule against torch or its formula in double precision, and the fused ops that run them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide import ops

SHAPES = [(70, 33), (256,), (1,), (3, 5, 7)]
LR = 1e-2
SCALARS: dict[str, dict[str, float]] = {
    "adam": {"a": 1e-2, "s": 3.0, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
    "adabelief": {"a": 1e-2, "s": 3.0, "eps": 1e-16, "beta1": 0.9, "beta2": 0.999},
    "lion": {"a": 1e-2, "beta1": 0.9, "beta2": 0.99},
    "sgd": {"a": 1e-2, "momentum": 0.9, "weight": 1.0, "nesterov": 1.0},
    "sign": {"a": 1e-2},
    "diffgrad": {"a": 1e-2, "s": 3.0, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
}
MOMENTS = {"adam": 2, "adabelief": 2, "lion": 1, "sgd": 1, "sign": 0, "diffgrad": 3}
LISTS = ("ms", "vs", "ws", "m_absmax", "v_absmax", "w_absmax")
SIZES = [0, 1, 15, 127, 128, 129, 255, 257, 1000, 40001]


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1000 + seed))


def states(rule: str, bits: int, n: int) -> dict[str, Any]:
    """Zero moments as the ops take them."""
    out: dict[str, Any] = {"rule": rule, "bits": bits, "ms": []}
    both = {8: 127, 4: 0x77, 32: 0}[bits]
    for name, zero in (("m", both), ("v", 0), ("w", both))[: MOMENTS[rule]]:
        if bits == 32:
            out[f"{name}s"] = [torch.zeros(n)]
        else:
            size = n if bits == 8 else n // 32 * 16 + min(n % 32, 16)
            out[f"{name}s"] = [torch.full((size,), zero, dtype=torch.uint8)]
            out[f"{name}_absmax"] = [torch.zeros(-(-n // (256 if bits == 8 else 128)))]
    return out


def train(opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> None:
    for step in range(1, steps + 1):
        for p, shape in zip(params, SHAPES, strict=True):
            p.grad = noise(math.prod(shape), step).reshape(shape) * 10.0 ** (step % 3 - 2)
        opt.step()


def start() -> list[nn.Parameter]:
    return [nn.Parameter(noise(math.prod(s), 0).reshape(s)) for s in SHAPES]


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"dampening": 0.3}, {"momentum": 0.0}])
def test_sgd_equals_torch(isa: str, options: dict[str, Any]) -> None:
    ours, theirs = start(), start()
    train(lt.optim.SGD(ours, lr=LR, **options), ours, 50)
    train(torch.optim.SGD(theirs, lr=LR, **{"momentum": 0.9, **options}), theirs, 50)
    for p, q in zip(ours, theirs, strict=True):
        assert float((p - q).detach().norm() / q.detach().norm()) <= 1e-6


def lion(p: Tensor, g: Tensor, s: dict[str, Tensor], step: int) -> Tensor:
    m = s.setdefault("m", torch.zeros_like(p))
    p = p * (1 - LR * 0.1) - LR * (0.9 * m + 0.1 * g).sign()
    s["m"] = 0.99 * m + 0.01 * g
    return p


def adabelief(p: Tensor, g: Tensor, s: dict[str, Tensor], step: int) -> Tensor:
    m = 0.9 * s.setdefault("m", torch.zeros_like(p)) + 0.1 * g
    v = 0.999 * s.setdefault("v", torch.zeros_like(p)) + 0.001 * (g - m) ** 2 + 1e-8
    s["m"], s["v"] = m, v
    root = (v / (1 - 0.999**step)).sqrt() + 1e-8
    return p * (1 - LR * 0.1) - LR * m / (1 - 0.9**step) / root


@pytest.mark.parametrize(
    ("make", "formula"),
    [
        (lambda ps: lt.optim.Lion(ps, lr=LR, weight_decay=0.1), lion),
        (lambda ps: lt.optim.AdaBelief(ps, lr=LR, eps=1e-8, weight_decay=0.1), adabelief),
    ],
    ids=["lion", "adabelief"],
)
def test_rules_follow_their_paper_in_double(isa: str, make: Callable[..., Any], formula: Callable) -> None:
    ours = start()
    want = [p.detach().double() for p in ours]
    memory: list[dict[str, Tensor]] = [{} for _ in want]
    for step in range(1, 51):
        for i, shape in enumerate(SHAPES):
            g = noise(math.prod(shape), step).reshape(shape) * 10.0 ** (step % 3 - 2)
            want[i] = formula(want[i], g.double(), memory[i], step)
    train(make(ours), ours, 50)
    for p, q in zip(ours, want, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= 1e-6


@pytest.mark.parametrize(
    ("coded", "plain", "limit"),
    [
        (lt.optim.AdamW4bit, lt.optim.AdamW, 0.25),  # measured 0.205 of the way walked
        (lt.optim.AdaBelief8bit, lt.optim.AdaBelief, 0.04),  # 0.025
        (lt.optim.SGD8bit, lt.optim.SGD, 0.003),  # 0.0013
    ],
)
def test_coded_states_follow_fp32_ones(coded: Any, plain: Any, limit: float) -> None:
    """A quadratic: both must walk to the same place, and come as near to the optimum."""
    target = noise(5000, 99)
    p8, p32 = nn.Parameter(noise(5000, 0)), nn.Parameter(noise(5000, 0))
    a, b = coded([p8], lr=LR), plain([p32], lr=LR)
    for _ in range(100):
        for p, opt in ((p8, a), (p32, b)):
            p.grad = p.detach() - target
            opt.step()
    with torch.no_grad():
        assert float((p8 - p32).norm()) < limit * float((p32 - noise(5000, 0)).norm())
        assert float((p8 - target).norm()) < 1.06 * float((p32 - target).norm())


@pytest.mark.parametrize("rule", SCALARS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_zero_gradient_columns_stay_exactly_put_for_a_thousand_steps(rule: str, bits: int) -> None:
    rows, cols = 12, 64
    p = noise(rows * cols, 0).reshape(rows, cols)
    before, kept = p.clone(), states(rule, bits, rows * cols)
    for step in range(1000):
        g = noise(rows * cols, step % 7).reshape(rows, cols)
        g[:, ::4] = 0
        ops.fused_step_([p], [g], **kept, **SCALARS[rule])
    assert torch.equal(
        p[:, ::4].contiguous().view(torch.int32), before[:, ::4].contiguous().view(torch.int32)
    )
    assert bool((p[:, 1::4] != before[:, 1::4]).all())


@pytest.mark.parametrize("rule", SCALARS)
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_isa_gives_the_same_bits(rule: str, bits: int, dtype: torch.dtype) -> None:
    def run(isa: str, n: int) -> list[Tensor]:
        lt.set_isa(isa)
        p, kept = noise(n, 1).to(dtype), states(rule, bits, n)
        for step in (1, 2):
            ops.fused_step_(
                [p], [noise(n, step).to(dtype)], **kept, **SCALARS[rule],
                decay_before=0.99, stochastic=True, seed=4, step=step, params=[3],
            )  # fmt: skip
        return [p, *(t for value in kept.values() if isinstance(value, list) for t in value)]

    before = lt.isa()
    try:
        for n in SIZES:
            want = run("scalar", n)
            for isa in lt.available_isas():
                assert all(torch.equal(a, b) for a, b in zip(run(isa, n), want, strict=True)), (isa, n)
    finally:
        lt.set_isa(before)


@pytest.mark.parametrize("rule", SCALARS)
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_stepped_in_shards_equals_the_whole(rule: str, bits: int, dtype: torch.dtype) -> None:
    """As on many ranks: each has a part of the tensor and of its states, cut at a multiple of 256."""
    n, cuts = 40001, [0, 256, 1024, 17 * 256, 40001]
    whole, kept = noise(n, 1).to(dtype), states(rule, bits, n)
    p, shards = whole.clone(), [states(rule, bits, b - a) for a, b in itertools.pairwise(cuts)]
    for step in (1, 2):
        g = noise(n, step).to(dtype)
        how: dict[str, Any] = {"decay_before": 0.99, "stochastic": True, "seed": 4, "step": step}
        ops.fused_step_([whole], [g], **kept, **SCALARS[rule], **how, params=[3])
        ops.apply_update_([whole], [g.float()], alpha=-1e-3, **how, params=[3])
        for (a, b), shard in reversed(list(zip(itertools.pairwise(cuts), shards, strict=True))):
            where: dict[str, Any] = {**how, "params": [3], "offsets": [a]}
            ops.fused_step_([p[a:b]], [g[a:b]], **shard, **SCALARS[rule], **where)
            ops.apply_update_([p[a:b]], [g[a:b].float()], alpha=-1e-3, **where)
    assert torch.equal(p, whole)
    for name in LISTS:
        if name in kept:
            parts = [t for shard in shards for t in shard[name]]
            assert torch.equal(torch.cat(parts), kept[name][0]) if parts else not kept[name]


def op_arguments(name: str, rule: str, bits: int) -> tuple[Any, ...]:
    kept = [states(rule, bits, n) for n in (300, 5)]
    lists = [[k[part][0] for k in kept if k.get(part)] for part in LISTS]
    scalars = [*SCALARS[rule].values(), 0.99, 1.0]
    head = [noise(300, 1), noise(5, 2)]
    kernel = [list(SCALARS).index(rule), bits, scalars]
    if name == "fused_direction_":
        return (head, *lists, *kernel)
    return (head, [noise(300, 3), noise(5, 4)], *lists, *kernel, True, 1, 2, [3, 4], [512, 0])


@pytest.mark.parametrize("name", ["fused_step_", "fused_direction_"])
@pytest.mark.parametrize("rule", SCALARS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_opcheck(name: str, rule: str, bits: int) -> None:
    torch.library.opcheck(getattr(torch.ops.lowtide, name).default, op_arguments(name, rule, bits))


@pytest.mark.parametrize("rule", SCALARS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_direct_calls_that_do_not_fit_are_refused(rule: str, bits: int) -> None:
    name = "fused_step_"
    for position in range(1, 8):
        args = list(op_arguments(name, rule, bits))
        if not args[position]:
            continue
        args[position] = [args[position][0][:-1], *args[position][1:]]
        with pytest.raises(RuntimeError, match="must have"):
            getattr(torch.ops.lowtide, name)(*args)
        args[position] = args[position][:1]
        with pytest.raises(RuntimeError, match="must list"):
            getattr(torch.ops.lowtide, name)(*args)
    for position, value in ((8, 7), (9, 16), (10, [1.0] * 4)):
        args = list(op_arguments(name, rule, bits))
        args[position] = value
        with pytest.raises(RuntimeError, match=r"must be|wrong length"):
            getattr(torch.ops.lowtide, name)(*args)


@pytest.mark.parametrize("rule", SCALARS)
def test_compiles_without_graph_breaks(rule: str) -> None:
    n = 300

    def f(p: Tensor, g: Tensor, kept: list[Tensor]) -> Tensor:
        q, r = p * 2, g.clone()
        has = MOMENTS[rule]
        named = dict(zip(LISTS, ([x] for x in (*kept[:has], *[None] * (3 - has), *kept[has:])), strict=False))
        named = {"ms": [], **{k: x for k, x in named.items() if x != [None]}}
        skipped = ops.fused_step_([q], [g], **named, rule=rule, bits=4, **SCALARS[rule])
        ops.fused_direction_([r], **named, rule=rule, bits=4, **SCALARS[rule])
        return q + skipped + r

    def arguments() -> tuple[Tensor, Tensor, list[Tensor]]:
        k = states(rule, 4, n)
        return noise(n, 0), noise(n, 1), [k[x][0] for x in LISTS if k.get(x)]

    got_args, want_args = arguments(), arguments()
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(*got_args)
    assert torch.equal(got, f(*want_args))
    for a, b in zip(got_args[2], want_args[2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "adagrad"}, "rule must be one of"),
        ({"bits": 16}, "bits must be"),
        ({"beta1": 1.5}, "beta1"),
        ({"vs": [torch.zeros(300, dtype=torch.uint8)]}, "vs|v_codes must list 0"),
        ({"m_absmax": [torch.zeros(3)], "ms": [torch.zeros(151, dtype=torch.uint8)]}, r"m_codes\[0\] must have"),
        ({"m_absmax": [torch.zeros(2)]}, r"m_absmax\[0\] must have 3"),
        ({"ms": [torch.zeros(300)]}, r"m_codes\[0\] must be uint8"),
        ({"momentum": 0.9}, "takes a, beta1, beta2"),
        ({"offsets": [128]}, "offsets must be multiples of 256"),
        ({"offsets": [-256]}, "offsets"),
        ({"offsets": [0, 256]}, "offsets must list 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_and_nothing_changes(change: dict[str, Any], words: str) -> None:
    p, kept = noise(300, 0), {**states("lion", 4, 300), **SCALARS["lion"], **change}
    with pytest.raises(lt.LowtideError, match=words):
        ops.fused_step_([p], [noise(300, 1)], **kept)
    assert torch.equal(p, noise(300, 0))
