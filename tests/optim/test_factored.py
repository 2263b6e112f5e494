# SPDX-License-Identifier: Apache-2.0
"""Adafactor and Adam-mini step for step against torch.optim, transformers, galore-torch and adam-mini; and their ops."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide import ops

_spec = importlib.util.spec_from_file_location("lowtide_test_peers", Path(__file__).parent / "peers.py")
assert _spec is not None
assert _spec.loader is not None
peers = importlib.util.module_from_spec(_spec)
sys.modules["lowtide_test_peers"] = peers
_spec.loader.exec_module(peers)

SHAPES = [(96, 40), (40, 96), (48, 48), (30,), (1, 7), (7, 1), ()]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


def far(make: Callable[[Any], torch.optim.Optimizer], peer: Callable[[Any], Any], steps: int = 50) -> float:
    """The largest relative difference after ``steps`` steps with gradients of changing size, and on the way."""
    sides = [[nn.Parameter(noise(s, 0)) for s in SHAPES] for _ in range(2)]
    opts = [make(sides[0]), peer(sides[1])]
    worst = 0.0
    for t in range(steps):
        for params, opt in zip(sides, opts, strict=True):
            for i, p in enumerate(params):
                p.grad = noise(tuple(p.shape), 100 * t + i) * 10.0 ** (t % 3 - 2)
            opt.step()
        for p, q in zip(*sides, strict=True):
            worst = max(worst, float((p - q).detach().norm() / q.detach().norm()))
    return worst


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"d": 1.5, "beta2_decay": -0.5}, {"eps": (1e-2, 2.0)}, {"lr": 0.5}],
)
def test_adafactor_equals_torch(options: dict[str, Any]) -> None:
    assert (
        far(lambda p: lt.optim.Adafactor(p, **options), lambda p: torch.optim.Adafactor(p, **options)) <= 1e-6
    )


# Both would differ: transformers keeps the rate, which then follows the weight, in the moment.
@pytest.mark.parametrize(("beta1", "scaled"), [(0.0, False), (0.0, True), (0.9, False)])
def test_adafactor_follows_transformers(beta1: float, scaled: bool) -> None:
    peer = pytest.importorskip("transformers.optimization").Adafactor
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "scale_parameter": scaled}
    ours = {"form": "paper", "relative_step": False, "beta1": beta1}
    if scaled:
        options["weight_decay"] = 0.0  # which it multiplies by the scaled rate
    theirs = {"relative_step": False, "beta1": beta1 or None}
    assert (
        far(lambda p: lt.optim.Adafactor(p, **options, **ours), lambda p: peer(p, **options, **theirs))
        <= 2e-6
    )


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (48, 48)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_galore_adafactor_follows_galore_torch(shape: tuple[int, int], beta1: float) -> None:
    reference = peers.peer_module("galore_torch", "adafactor").Adafactor
    sides = [[nn.Parameter(noise(shape, 0)), nn.Parameter(noise((30,), 1))] for _ in range(2)]
    keys = {"rank": 8, "update_proj_gap": 17, "scale": 0.25, "proj_type": "std"}
    groups = [[{"params": ps[:1], **keys}, {"params": ps[1:]}] for ps in sides]
    a = lt.optim.GaLoreAdafactor(groups[0], lr=1e-2, weight_decay=0.05, beta1=beta1, compat="galore_torch")
    b = reference(
        groups[1], lr=1e-2, weight_decay=0.05, beta1=beta1 or None, relative_step=False, scale_parameter=False
    )
    u, v = noise((shape[0], 8), 2), noise((8, shape[1]), 3)
    du, dv = noise((shape[0], 8), 4), noise((8, shape[1]), 5)
    decay = torch.diag(2.0 ** -torch.arange(8.0))  # distinct singular values: bases are well defined
    for t in range(60):
        g = (u + 0.05 * t * du) @ decay @ (v + 0.05 * t * dv) + 0.05 * noise(shape, 10 + t)
        for ps, opt in zip(sides, (a, b), strict=True):
            ps[0].grad, ps[1].grad = g.clone(), g.flatten()[:30].clone()
            opt.step()
        for x, y in zip(*sides, strict=True):
            assert float((x - y).detach().norm() / y.detach().norm()) <= 1e-5, f"step {t}"
    assert a.state[sides[0][0]]["refreshes"] == 4


class Attention(nn.Module):
    """Names that adam-mini knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 32)
        self.q_proj = nn.Linear(32, 32, bias=False)
        self.k_proj = nn.Linear(32, 16, bias=False)
        self.v_proj = nn.Linear(32, 16, bias=True)
        self.mlp = nn.Linear(32, 48, bias=False)


def test_adam_mini_follows_adam_mini() -> None:
    """Heads of queries and keys (two to a key head), rows elsewhere, Adam for the bias."""
    reference = peers.peer_module("adam_mini", "adam_mini").Adam_mini
    ours, theirs = Attention(), Attention()
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    groups = lt.optim.head_groups(ours, 4, 2)
    assert [(g["blocks"], len(g["params"])) for g in groups] == [(0, 4), (4, 1), (2, 1)]
    bias = next(p for n, p in ours.named_parameters() if n.endswith("bias"))
    a = lt.optim.AdamMini(
        [*_without(groups, bias), {"params": [bias], "param_names": ["bias"], "weight_decay": 0.0}], **options
    )
    b = reference(theirs.named_parameters(), dim=32, n_heads=4, n_kv_heads=2, verbose=False, **options)
    for t in range(50):
        for model, opt in ((ours, a), (theirs, b)):
            for i, p in enumerate(model.parameters()):
                p.grad = noise(tuple(p.shape), 100 * t + i) * 10.0 ** (t % 3 - 2)
            opt.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert float((p - q).detach().norm() / q.detach().norm()) <= 1e-6, name
    assert a.state[ours.q_proj.weight]["exp_avg_sq"].numel() == 4
    assert a.state[ours.k_proj.weight]["exp_avg_sq"].numel() == 2


def _without(groups: list[dict[str, Any]], p: Tensor) -> list[dict[str, Any]]:
    kept = []
    for g in groups:
        at = [i for i, q in enumerate(g["params"]) if q is not p]
        lists = {k: [g[k][i] for i in at] for k in ("params", "param_names", "param_ids")}
        kept.append({**g, **lists})
    return kept


def test_coded_moments_follow_fp32_ones() -> None:
    target = noise((80, 64), 99)
    runs = []
    for make in (lt.optim.AdamMini, lambda p, lr: lt.optim.AdamMini8bit(p, lr, min_8bit_size=0)):
        p = nn.Parameter(noise((80, 64), 0))
        opt = make([p], 1e-2)
        for _ in range(100):
            p.grad = p.detach() - target
            opt.step()
        runs.append(p.detach())
    plain, coded = runs
    assert float((coded - plain).norm()) < 0.045 * float(
        (plain - noise((80, 64), 0)).norm()
    )  # measured 0.029


@pytest.mark.parametrize(
    ("name", "method"),
    [("Adafactor", "adafactor"), ("AdamMini", "adam-mini"), ("GaLoreAdafactor", "galore-adafactor"),
     ("AdamMini8bit", "adam-mini8bit")],
)  # fmt: skip
def test_counted_bytes_are_measured_bytes(name: str, method: str) -> None:
    model = nn.Sequential(
        nn.Linear(65, 96), nn.Linear(96, 65), nn.LayerNorm(65), nn.Linear(65, 33, bias=False)
    )
    groups = lt.optim.param_groups(model, rank=8) if "GaLore" in name else model.parameters()
    opt = getattr(lt.optim, name)(groups)
    model(torch.ones(2, 65)).square().sum().backward()
    opt.step()
    got, want = opt.state_bytes(), lt.optim.memory(model, method, rank=8).as_dict()
    assert {k: got[k] for k in ("states", "basis", "weights")} == {
        k: want[k] for k in ("states", "basis", "weights")
    }


OPS: dict[str, tuple[Any, ...]] = {
    "adafactor_": (
        noise((6, 17), 1),
        noise((6, 17), 2),
        torch.ones(6),
        torch.ones(17),
        0.5,
        1e-30,
        0.0,
        0.0,
        1.0,
    ),
    "block_adam_": (torch.zeros(6), noise((6, 17), 2), torch.ones(6), 0.5, 1e-2, 1.0, 1e-8),
    "row_dots": (noise((6, 17), 1), noise((6, 17), 2), 6),
    "shear_rows_": (noise((6, 17), 1), noise((6,), 2), noise((6, 17), 3)),
    "scale_rows_": (noise((6, 17), 1), noise((6,), 2)),
}


@pytest.mark.parametrize("name", ["adafactor_", "block_adam_", "row_dots", "shear_rows_", "scale_rows_"])
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.lowtide, name).default, OPS[name])


@pytest.mark.parametrize("name", OPS)
def test_direct_calls_that_do_not_fit_are_refused(name: str) -> None:
    for i, x in enumerate(OPS[name]):
        if not isinstance(x, Tensor):
            continue
        for wrong in (x.flatten()[:-1], x.double()):
            args = [a.clone() if isinstance(a, Tensor) else a for a in OPS[name]]
            args[i] = wrong
            with pytest.raises(RuntimeError, match="must"):
                getattr(torch.ops.lowtide, name)(*args)


def test_ops_compile_without_graph_breaks() -> None:
    def f(u: Tensor, g: Tensor, row: Tensor, col: Tensor) -> Tensor:
        v, factor = u * 1.0, row * 0.0
        skipped = ops.adafactor_(v, g, row, col, beta2=0.5)
        skipped = skipped + ops.block_adam_(factor, g, row, beta2=0.5, a=1.0, s=1.0, eps=1e-8)
        ops.shear_rows_(v, factor, g)
        ops.scale_rows_(v, factor)
        return v + skipped + ops.row_dots(v, g, 6).sum()

    args = [noise((6, 17), 1), noise((6, 17), 2), torch.ones(6), torch.ones(17)]
    want = f(*[x.clone() for x in args])
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(*[x.clone() for x in args])
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.adafactor_(noise((6, 17), 1), None, torch.ones(5), torch.ones(17), beta2=0.5), "5 rows do not divide"),
        (lambda: ops.adafactor_(noise((6, 17), 1), None, torch.ones(6), torch.ones(16), beta2=0.5), "col must have 17"),
        (lambda: ops.adafactor_(noise((6, 17), 1), None, torch.ones(6), torch.ones(17), beta2=1.5), "beta2"),
        (lambda: ops.adafactor_(noise((6, 17), 1).T, None, torch.ones(6), torch.ones(17), beta2=0.5), "contiguous"),
        (lambda: ops.block_adam_(torch.ones(6), noise((6, 17), 1), torch.ones(6), beta2=0.5, a=-1.0, s=1, eps=0), "a must be"),
        (lambda: ops.row_dots(noise((6, 17), 1), noise((6, 16), 1), 6), "y must have 102"),
        (lambda: ops.shear_rows_(noise((6, 17), 1), torch.ones(6), noise((6, 17), 1).double()), "w must be float32 or"),
        (lambda: lt.optim.AdafactorRule(beta2_decay=0.8), "beta2_decay must be"),
        (lambda: lt.optim.AdafactorRule(d=0.0), "d must be"),
        (lambda: lt.optim.AdafactorRule(form="hf"), "form must be"),
        (lambda: lt.optim.AdafactorRule(eps=(1e-30, -1.0)), "eps must be"),
        (lambda: lt.optim.AdamMiniRule(blocks=-1), "blocks must be"),
        (lambda: lt.optim.head_groups(Attention(), 5), "heads must divide"),
        (lambda: lt.optim.head_groups(nn.Linear(3, 3), 3), "no weight of Linear"),
        (lambda: lt.optim.Composed([nn.Parameter(torch.ones(2))], rule=lt.optim.AdafactorRule(), transport=lt.optim.Rotate()), "Rotate"),
        (lambda: lt.optim.Composed([nn.Parameter(torch.ones(2))], rule=lt.optim.AdafactorRule(), subspace=lt.optim.PowerQR(0.5)), "running mean"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        call()


def test_blocks_that_do_not_divide_are_refused_before_the_step() -> None:
    p = nn.Parameter(noise((7, 5), 0))
    opt = lt.optim.AdamMini([{"params": [p], "blocks": 2}])
    p.grad = noise((7, 5), 1)
    with pytest.raises(lt.LowtideError, match="blocks must divide"):
        opt.step()
    assert torch.equal(p.detach(), noise((7, 5), 0))
