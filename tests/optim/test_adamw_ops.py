# SPDX-License-Identifier: Apache-2.0
"""The fused AdamW ops: formula, stores, skipping, torch integration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import _core, ops

BETAS = (0.9, 0.999)
LR, EPS = 1e-2, 1e-8
SIZES = [0, 1, 15, 255, 256, 257, 1000, 40001]


def scalars(step: int, form: str = "torch", lr: float = LR) -> dict[str, float]:
    bc1, bc2 = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
    a, s = (lr / bc1, 1 / math.sqrt(bc2)) if form == "torch" else (lr * math.sqrt(bc2) / bc1, 1.0)
    return {"a": a, "s": s, "eps": EPS, "beta1": BETAS[0], "beta2": BETAS[1]}


def zero_codes(n: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    blocks = -(-n // 256)
    return (
        [torch.full((n,), 127, dtype=torch.uint8)],
        [torch.zeros(blocks)],
        [torch.zeros(n, dtype=torch.uint8)],
        [torch.zeros(blocks)],
    )


def gradient(n: int, step: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1000 + step))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_fifty_steps_equal_torch_adamw(isa: str, decay: float) -> None:
    shapes = [(70, 33), (256,), (1,), (3, 5, 7)]
    start = [gradient(math.prod(s), 0).reshape(s) for s in shapes]
    theirs = [torch.nn.Parameter(x.clone()) for x in start]
    ours = [x.clone() for x in start]
    ms, vs = [torch.zeros_like(x) for x in ours], [torch.zeros_like(x) for x in ours]
    peer = torch.optim.AdamW(theirs, lr=LR, betas=BETAS, eps=EPS, weight_decay=decay, foreach=False)
    for step in range(1, 51):
        gs = [gradient(math.prod(s), step).reshape(s) * 10.0 ** (step % 3 - 2) for s in shapes]
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g.clone()
        peer.step()
        assert ops.adamw_(ours, gs, ms, vs, **scalars(step), decay_before=1 - LR * decay).item() == 0
    for p, q in zip(theirs, ours, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= 1e-6


@pytest.mark.parametrize("form", ["torch", "hf"])
def test_both_forms_follow_their_formula_in_double(isa: str, form: str) -> None:
    n = 999
    p32, m32, v32 = gradient(n, 0), torch.zeros(n), torch.zeros(n)
    p, m, v = p32.double(), m32.double(), v32.double()
    for step in range(1, 51):
        g = gradient(n, step) * 1e-6  # so small that the place of epsilon shows
        ops.adamw_([p32], [g], [m32], [v32], **scalars(step, form), decay_after=0.999)
        m = BETAS[0] * m + (1 - BETAS[0]) * g.double()
        v = BETAS[1] * v + (1 - BETAS[1]) * g.double() ** 2
        bc1, bc2 = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
        if form == "torch":
            p = p - LR * (m / bc1) / ((v / bc2).sqrt() + EPS)
        else:
            p = p - LR * math.sqrt(bc2) / bc1 * m / (v.sqrt() + EPS)
        p = p * 0.999
    assert float((p - p32).norm() / p.norm()) <= 1e-6


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_and_numpy_give_the_same_bits(isa: str, n: int, dtype: torch.dtype) -> None:
    p, g = gradient(n, 1).to(dtype), gradient(n, 2).to(dtype)
    as_numpy = (lambda t: t.view(torch.uint16).numpy()) if dtype == torch.bfloat16 else Tensor.numpy
    p_np, g_np = as_numpy(p.clone()), as_numpy(g.clone())
    states = zero_codes(n)
    states_np = [[s[0].clone().numpy()] for s in states]
    for step in (1, 2):
        tail = {"decay_before": 0.99, "stochastic": True, "seed": 4, "step": step, "params": [3]}
        ops.adamw8_([p], [g], *states, **scalars(step), **tail)
        _core.adamw8([p_np], [g_np], *states_np, **scalars(step), decay_after=1.0, **tail)
    assert as_numpy(p).tobytes() == p_np.tobytes()
    for a, b in zip(states, states_np, strict=True):
        assert a[0].numpy().tobytes() == b[0].tobytes()


def test_eight_bit_states_follow_fp32_adamw() -> None:
    n = 5000
    p8, p32 = gradient(n, 0), gradient(n, 0)
    states, m, v = zero_codes(n), torch.zeros(n), torch.zeros(n)
    start = p32.clone()
    target = gradient(n, 99)
    for step in range(1, 101):  # a quadratic: both must walk to the same place
        ops.adamw8_([p8], [p8 - target], *states, **scalars(step))
        ops.adamw_([p32], [p32 - target], [m], [v], **scalars(step))
    # A code is within 5 % of its value and 1.5 % on average; measured 2.1 % of the way walked.
    assert float((p8 - p32).norm() / (p32 - start).norm()) < 0.04
    assert abs(float((p8 - target).norm() / (p32 - target).norm()) - 1) < 0.01


def test_coordinates_without_gradient_stay_exactly_put() -> None:
    n = 3000
    p = gradient(n, 0)
    start, states = p.clone(), zero_codes(n)
    for step in range(1, 51):
        g = gradient(n, step)
        g[::3] = 0
        ops.adamw8_([p], [g], *states, **scalars(step))
    assert torch.equal(p[::3].view(torch.int32), start[::3].view(torch.int32))
    assert bool((p[1::3] != start[1::3]).all())


def test_a_block_with_a_non_finite_gradient_is_skipped_and_counted() -> None:
    n = 256 * 4
    ps = [gradient(n, 0), gradient(n, 1)]
    start = [p.clone() for p in ps]
    gs = [gradient(n, 2), gradient(n, 3)]
    gs[0][300], gs[0][301], gs[1][1023] = math.nan, math.inf, -math.inf
    ms, vs = [torch.zeros(n), torch.zeros(n)], [torch.zeros(n), torch.zeros(n)]
    assert int(ops.adamw_(ps, gs, ms, vs, **scalars(1))) == 2
    same = torch.stack([a == b for a, b in zip(ps, start, strict=True)]).reshape(2, 4, 256)
    assert same[0, 1].all()
    assert same[1, 3].all()
    assert not same[[0, 0, 0, 1, 1, 1], [0, 2, 3, 0, 1, 2]].any()
    assert all(bool(torch.isfinite(t).all()) for t in (*ps, *ms, *vs))
    rs = [gs[0].clone()]
    assert int(ops.adam_direction_(rs, [torch.zeros(n)], [torch.zeros(n)], **scalars(1))) == 1
    assert bool((rs[0][256:512] == 0).all())


# One step of size f bfloat16 ulps on 100k weights at 1: the mean must be f, with the standard error of
# Bernoulli draws; fixed seed, 5 sigma.
def test_stochastic_rounding_of_bf16_weights_is_unbiased() -> None:
    n, f = 100_000, 0.3
    p = torch.ones(n, dtype=torch.bfloat16)
    g = -torch.ones(n)  # first step: direction a * m / (sqrt(v) * s + eps) = -lr
    ms, vs = [torch.zeros(n)], [torch.zeros(n)]
    ulp = 2.0**-7
    kw: dict[str, Any] = {"stochastic": True, "seed": 5, "step": 1, "params": [0]}
    ops.adamw_([p], [g], ms, vs, **scalars(1, lr=f * ulp), **kw)
    moved = (p.float() - 1) / ulp
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert abs(float(moved.double().mean()) - f) / math.sqrt(f * (1 - f) / n) < 5


def test_stochastic_rounding_depends_on_the_address_only() -> None:
    def step(ids: list[int], order: list[int], seed: int = 1) -> dict[int, Tensor]:
        ps = {i: torch.ones(700, dtype=torch.bfloat16) for i in ids}
        ops.apply_update_(
            [ps[i] for i in order],
            [torch.full((700,), 2.0**-9)] * len(order),
            alpha=1.0,
            stochastic=True,
            seed=seed,
            step=3,
            params=order,
        )
        return ps

    a, b = step([4, 5], [4, 5]), step([4, 5], [5, 4])
    assert torch.equal(a[4], b[4])
    assert torch.equal(a[5], b[5])
    assert not torch.equal(a[4], a[5])
    assert not torch.equal(a[4], step([4], [4], seed=2)[4])


def test_direction_then_apply_equals_the_fused_step() -> None:
    n = 1001
    p, q, g = gradient(n, 0), gradient(n, 0), gradient(n, 1)
    states, same = zero_codes(n), zero_codes(n)
    for step in (1, 2):
        r = g.clone()
        ops.adam8_direction_([r], *states, **scalars(step))
        ops.apply_update_([p], [r], alpha=-1.0)
        ops.adamw8_([q], [g], *same, **scalars(step))
    assert torch.equal(p, q)


def test_strided_gradients_are_copied() -> None:
    p, q = gradient(600, 0).reshape(20, 30), gradient(600, 0).reshape(20, 30)
    g = gradient(600, 1).reshape(30, 20).T
    zeros = lambda: [torch.zeros(20, 30)]  # noqa: E731
    ops.adamw_([p], [g], zeros(), zeros(), **scalars(1))
    ops.adamw_([q], [g.contiguous()], zeros(), zeros(), **scalars(1))
    assert torch.equal(p, q)


def test_empty_lists_do_nothing() -> None:
    assert int(ops.adamw_([], [], [], [], **scalars(1))) == 0
    assert int(ops.adamw8_([], [], [], [], [], [], **scalars(1))) == 0
    assert int(ops.adam_direction_([], [], [], **scalars(1))) == 0
    assert int(ops.adam8_direction_([], [], [], [], [], **scalars(1))) == 0
    ops.apply_update_([], [], alpha=1.0)


def x(n: int = 4) -> Tensor:
    return torch.ones(n)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.adamw_([x().double()], [x()], [x()], [x()], **scalars(1)), r"ps\[0\].*float32"),
        (lambda: ops.adamw_([x()], [x(5)], [x()], [x()], **scalars(1)), r"gs\[0\] must have 4"),
        (lambda: ops.adamw_([x()], [x()], [], [x()], **scalars(1)), "ms must list 1"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x().bfloat16()], **scalars(1)), r"vs\[0\] must be float32"),
        (lambda: ops.adamw_([torch.ones(4, 4).T[1:]], [x(12)], [x(12)], [x(12)], **scalars(1)), "contiguous"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x()], **{**scalars(1), "eps": -1.0}), "eps"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x()], **{**scalars(1), "a": math.nan}), "a must be finite"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x()], **{**scalars(1), "beta2": 1.5}), "beta2"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x()], **scalars(1), stochastic=True), "params"),
        (lambda: ops.adamw_([x()], [x()], [x()], [x()], **scalars(1), seed=-1), "seed"),
        (
            lambda: ops.adamw8_([x()], [x()], [x()], [x(1)], [x()], [x(1)], **scalars(1)),
            r"m_codes\[0\].*uint8",
        ),
        (lambda: ops.adam_direction_([x().bfloat16()], [x()], [x()], **scalars(1)), r"rs\[0\]"),
        (lambda: ops.apply_update_([x()], [x()], alpha=math.inf), "alpha"),
        (lambda: ops.apply_update_([x()], [x().bfloat16()], alpha=1.0), r"us\[0\]"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(call: Callable[[], object], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_leaves_that_record_and_repeated_tensors_are_refused() -> None:
    w = torch.ones(4, requires_grad=True)
    with pytest.raises(lt.LowtideError, match="no_grad"):
        ops.adamw_([w], [x()], [x()], [x()], **scalars(1))
    with torch.no_grad():
        ops.adamw_([w], [x()], [x()], [x()], **scalars(1))
    p = x()
    with pytest.raises(RuntimeError, match="twice"):
        ops.apply_update_([p, p], [x(), x()], alpha=1.0)
    assert torch.equal(p, x())


def test_numpy_arguments_are_checked() -> None:
    a = lambda n=4: np.ones(n, np.float32)  # noqa: E731
    tail = (1.0, 1.0, False, 0, 0, [0])
    rule = tuple(scalars(1).values())
    for args, words in [
        (([a()], [a(5)], [a()], [a()]), "gs must have 4"),
        (([a()], [a()], [a()], []), "vs must list 1"),
        (([np.ones(4)], [a()], [a()], [a()]), "float32"),
    ]:
        with pytest.raises(lt.LowtideValueError, match=words):
            _core.adamw(*args, *rule, *tail)
    frozen = a()
    frozen.flags.writeable = False
    with pytest.raises(ValueError):
        _core.adamw([frozen], [a()], [a()], [a()], *rule, *tail)


def op_arguments(name: str) -> tuple[Any, ...]:
    sizes = (300, 5)
    ts = lambda: [gradient(n, n) for n in sizes]  # noqa: E731
    positive = lambda: [t.abs() for t in ts()]  # noqa: E731
    codes = lambda: [torch.full((n,), 127, dtype=torch.uint8) for n in sizes]  # noqa: E731
    absmax = lambda: [torch.ones(-(-n // 256)) for n in sizes]  # noqa: E731
    rule = list(scalars(1).values())
    tail = (True, 1, 2, [3, 4])
    return {
        "fused_step_": (ts(), ts(), ts(), positive(), [], [], [], [], 0, 32, [*rule, 0.99, 1.0], *tail),
        "fused_direction_": (ts(), codes(), codes(), [], absmax(), absmax(), [], 0, 8, [*rule, 1.0, 1.0]),
        "apply_update_": (ts(), ts(), 0.1, 0.99, 1.0, *tail),
    }[name]


OPS = ["fused_step_", "fused_direction_", "apply_update_"]


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.lowtide, name).default, op_arguments(name))


@pytest.mark.parametrize("name", OPS)
def test_direct_calls_with_wrong_sizes_are_refused(name: str) -> None:
    for position in range(1, 3):
        args = list(op_arguments(name))
        if isinstance(args[position], list) and isinstance(args[position][0], Tensor):
            args[position] = [args[position][0][:-1], *args[position][1:]]
            with pytest.raises(RuntimeError, match="must have"):
                getattr(torch.ops.lowtide, name)(*args)


def test_compiles_without_graph_breaks() -> None:
    def f(p: Tensor, g: Tensor, mc: Tensor, ma: Tensor, vc: Tensor, va: Tensor) -> Tensor:
        q = p * 2
        skipped = ops.adamw8_([q], [g], [mc], [ma], [vc], [va], **scalars(1), decay_before=0.5)
        r = g.clone()
        ops.adam_direction_([r], [g * 0], [g * 0], **scalars(1))
        ops.apply_update_([q], [r], alpha=-0.5)
        return q + skipped

    n = 300
    args = lambda: (gradient(n, 0), gradient(n, 1), *[s[0] for s in zero_codes(n)])  # noqa: E731
    got_args, want_args = args(), args()
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(*got_args)
    assert torch.equal(got, f(*want_args))
    for a, b in zip(got_args, want_args, strict=True):
        assert torch.equal(a, b)


def test_version_counters_move() -> None:
    p, g, m, v = x(), x(), x(), x()
    before = [t._version for t in (p, g, m, v)]
    ops.adamw_([p], [g], [m], [v], **scalars(1))
    assert [t._version - b for t, b in zip((p, g, m, v), before, strict=True)] == [1, 0, 1, 1]
