# SPDX-License-Identifier: Apache-2.0
"""The fused end of a low-rank step: its formula, every weight store, torch integration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lowtide as lt
from lowtide import ops
from lowtide.optim.updates import Update


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(m: int, n: int, kind: str, along: str) -> dict[str, Any]:
    k = {"all": noise(1, 1, seed=3), "rows": noise(m, 1, seed=3), "columns": noise(1, n, seed=3)}[along]
    made: dict[str, Any] = {"g": noise(m, n, seed=4), "k": k, "sign": "sign" in kind}
    if "whole" in kind:
        made["u"] = noise(m, n, seed=5)
    if "index" in kind:
        made["dim"] = dim = int("columns" in kind)
        made["index"] = torch.arange(0, (m, n)[dim], 3, dtype=torch.int32)
        made["u"] = (
            noise(m, made["index"].numel(), seed=5) if dim else noise(made["index"].numel(), n, seed=5)
        )
    if "alone" in kind:
        made["g"] = made["k"] = None
    return made


def direction(m: int, n: int, a: dict[str, Any]) -> Tensor:
    g = torch.zeros(m, n) if a["g"] is None else (a["g"].sign() if a["sign"] else a["g"]) * a["k"]
    if "index" in a:
        return g.index_copy(a["dim"], a["index"].long(), a["u"])
    return g + a["u"] if "u" in a else g


KINDS = [
    "scaled",
    "sign",
    "scaled whole",
    "sign whole",
    "sign index columns",
    "sign index rows",
    "index columns alone",
]


@pytest.mark.parametrize("along", ["all", "rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (70, 33), (9, 256)])
def test_follows_its_formula(isa: str, shape: tuple[int, int], kind: str, along: str) -> None:
    a = arguments(*shape, kind, along)
    p = noise(*shape, seed=9)
    # multiply, then add, in float32: the same bits
    want = (p * 0.75 + -0.5 * direction(*shape, a)) * 0.875
    ops.combine_(p, alpha=-0.5, decay_before=0.75, decay_after=0.875, **a)
    assert torch.equal(p, want)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_weights_round_as_apply_update_does(kind: str, stochastic: bool) -> None:
    m, n = 20, 90
    a = arguments(m, n, kind, "columns")
    p = noise(m, n, seed=9).bfloat16()
    q = p.clone()
    ops.combine_(p, alpha=-0.5, decay_before=0.75, stochastic=stochastic, seed=3, step=4, param=5, **a)
    ops.apply_update_(
        [q], [direction(m, n, a)], alpha=-0.5, decay_before=0.75, stochastic=stochastic, seed=3, step=4, params=[5]
    )  # fmt: skip
    assert torch.equal(p, q)


def test_bf16_gradients_are_read_as_they_are() -> None:
    g, k = noise(7, 40).bfloat16(), noise(7, 1, seed=1)
    p, q = torch.zeros(7, 40), torch.zeros(7, 40)
    ops.combine_(p, alpha=1.0, g=g, k=k)
    ops.combine_(q, alpha=1.0, g=g.float(), k=k)
    assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_may_be_made_where_the_gradient_was(kind: str) -> None:
    m, n = 12, 50
    a = arguments(m, n, kind, "rows")
    want = direction(m, n, a)
    update = Update(a.get("u"), 1.0, a["g"], a["k"], a["sign"], a.get("index"), a.get("dim", 1))
    assert torch.equal(update.dense(m, n), want)
    got = update.dense(m, n, spoil_gradient=True)
    assert torch.equal(got, want)
    assert a["g"] is None or got.data_ptr() == a["g"].data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str) -> None:
    a = arguments(6, 10, kind, "columns")
    chosen = (2 if a["dim"] else 1) if "index" in a else 0
    torch.library.opcheck(
        torch.ops.lowtide.combine_.default,
        (noise(6, 10), a["g"], a["k"], 2, a["sign"], a.get("u"), a.get("index"), chosen, -0.1, 0.9, 1.0, False, 0, 0, 0, 0),
    )  # fmt: skip


def test_compiles_without_graph_breaks() -> None:
    def f(p: Tensor, g: Tensor, k: Tensor) -> Tensor:
        q = p * 2
        ops.combine_(q, alpha=-0.5, g=g, k=k)
        return q

    args = (noise(6, 10), noise(6, 10, seed=1), noise(6, 1, seed=2))
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*args), f(*args))


def test_version_counters_move_and_leaves_are_refused() -> None:
    p = noise(3, 4)
    before = p._version
    ops.combine_(p, alpha=1.0, g=noise(3, 4), k=noise(1, 1))
    assert p._version == before + 1
    with pytest.raises(lt.LowtideError, match="requires grad"):
        ops.combine_(torch.nn.Parameter(p), alpha=1.0, g=noise(3, 4), k=noise(1, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": None}, "come together"),
        ({"k": noise(3, 4)}, "k must have shape"),
        ({"g": noise(4, 3)}, "g must have shape"),
        ({"u": noise(3, 3)}, "u must have shape"),
        ({"index": torch.tensor([1], dtype=torch.int32)}, "index needs u"),
        ({"index": torch.tensor([1])}, "int32"),
        ({"alpha": float("nan")}, "alpha"),
        ({"offset": 3}, "offset"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(change: dict[str, Any], words: str) -> None:
    p = noise(3, 4)
    before = p.clone()
    with pytest.raises(lt.LowtideError, match=words):
        ops.combine_(p, **{"alpha": 1.0, "g": noise(3, 4), "k": noise(3, 1), **change})
    assert torch.equal(p, before)


@pytest.mark.parametrize("index", [[-1], [4], [2, 1], [1, 1]])
def test_an_index_out_of_range_or_order_is_refused(index: list[int]) -> None:
    p = noise(3, 4)
    before = p.clone()
    with pytest.raises(RuntimeError, match="ascending"):
        ops.combine_(p, alpha=1.0, u=noise(3, len(index)), index=torch.tensor(index, dtype=torch.int32))
    assert torch.equal(p, before)
