# SPDX-License-Identifier: Apache-2.0
"""Cases for two processes: parameters in shards, as FSDP2 makes them, against the same parameters whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import lowtide as lt

#: Even shards of whole blocks; a block of 256 cut in two; whole blocks but not as many on each; odd everything; one process
#: without a row; more than two dimensions; a small one; no elements.
SHAPES = ((64, 128), (65, 128), (63, 256), (101, 77), (1, 5000), (10, 30, 40), (300,), (33,), (0, 5))

ELEMENTWISE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lt.optim.AdamW,
    "AdamW8bit": lt.optim.AdamW8bit,
    "AdamW4bit": lt.optim.AdamW4bit,
    "AdaBelief8bit": lt.optim.AdaBelief8bit,
    "DiffGrad8bit": lt.optim.DiffGrad8bit,
    "Lion8bit": lt.optim.Lion8bit,
    "SGD8bit": lt.optim.SGD8bit,
    "SGD": lt.optim.SGD,
    "SignSGD": lt.optim.SignSGD,
    "Signum": lt.optim.Signum,
}


def mesh_of(*sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", sizes or (dist.get_world_size(),))


def values(shapes: Sequence[tuple[int, ...]], t: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(t)
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


def shard(x: Tensor, mesh: DeviceMesh, placements: Sequence[Any] = (Shard(0),)) -> Tensor:
    return distribute_tensor(x.clone(), mesh, placements)


def whole(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def pair(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, mesh: DeviceMesh, placements: Sequence[Any]
) -> Any:
    start = values(shapes, 0, dtype)
    return [nn.Parameter(x.clone()) for x in start], [nn.Parameter(shard(x, mesh, placements)) for x in start]


def step(opt: torch.optim.Optimizer, params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = shard(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g.clone()  # type: ignore[attr-defined]
    opt.step()


def same_bits(a: list[nn.Parameter], b: list[nn.Parameter]) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(whole(x.detach()), whole(y.detach())), f"{tuple(x.shape)} differs"


def elementwise(name: str, dtype_name: str) -> None:
    """A sharded run has the bits of the whole one."""
    dtype = getattr(torch, dtype_name)
    a, b = pair(SHAPES, dtype, mesh_of(), [Shard(0)])
    make = ELEMENTWISE[name]
    one, other = make(a, lr=1e-2, weight_decay=0.1), make(b, lr=1e-2, weight_decay=0.1)
    for t in range(1, 6):
        grads = values(SHAPES, t, dtype)
        if t == 3:
            grads[0][3, 5] = float("nan")  # skips a block that lies on one process
        step(one, a, grads)
        step(other, b, grads)
    same_bits(a, b)
    for p, q in zip(a, b, strict=True):
        for key, value in one.state[p].items():
            got = other.state[q][key]
            if isinstance(value, Tensor) and whole(got).shape == value.shape:
                assert torch.equal(value, whole(got)), f"{key} of {tuple(p.shape)} differs"
            elif isinstance(value, Tensor):
                assert got.shape[0] == 2, f"{key} of {tuple(p.shape)} has shape {got.shape}"
            else:
                assert got == value


#: Tall and wide (columns or rows are projected), odd, one process without a row, more than two dimensions, at full rank.
MATRICES = ((96, 40), (40, 96), (65, 31), (31, 65), (1, 50), (12, 5, 9), (33,))
LOW_RANK: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "APOLLO": lt.optim.APOLLO,
    "APOLLO rademacher": lambda p, **k: lt.optim.APOLLO(p, proj="rademacher", **k),
    "APOLLO hadamard": lambda p, **k: lt.optim.APOLLO(p, proj="hadamard", **k),
    "APOLLO tensor": lambda p, **k: lt.optim.APOLLO(p, scale_type="tensor", compat="apollo_torch", **k),
    "APOLLOMini": lt.optim.APOLLOMini,
    "FRUGAL": lt.optim.FRUGAL,
    "FRUGAL hadamard": lambda p, **k: lt.optim.FRUGAL(p, subspace="hadamard", **k),
    "FRUGAL random": lambda p, **k: lt.optim.FRUGAL(p, subspace="random", **k),
    "Fira's residual": lambda p, **k: lt.optim.Composed(
        p, subspace=lt.optim.RandomHadamard(), residual=lt.optim.ScaledResidual(), **k
    ),
    "GaLore's, 8 bits": lambda p, **k: lt.optim.Composed(
        p, subspace=lt.optim.RandomGaussian(), state=lt.optim.StateStore("int8", 0), **k
    ),
    "rotated": lambda p, **k: lt.optim.Composed(
        p,
        subspace=lt.optim.RandomOrthonormal(),
        basis=lt.optim.BasisStore("int4", 32),
        transport=lt.optim.Rotate(),
        **k,
    ),
    "carried over": lambda p, **k: lt.optim.Composed(
        p, subspace=lt.optim.RandomRademacher(), transport=lt.optim.Reproject(), rule=lt.optim.LionRule(), **k
    ),
}


def low_rank(name: str, side: str, dtype_name: str) -> None:
    """Close to the whole run: bit-equal where no sum goes over the processes."""
    dtype = getattr(torch, dtype_name)
    a, b = pair(MATRICES, dtype, mesh_of(), [Shard(0)])
    make = LOW_RANK[name]
    one, other = (
        make(
            [{"params": p, "rank": 5, "update_proj_gap": 3, "scale": 1.0, "proj_type": side}],
            lr=1e-2,
            weight_decay=0.1,
        )
        for p in (a, b)
    )
    for t in range(1, 9):
        grads = values(MATRICES, t, dtype)
        step(one, a, grads)
        step(other, b, grads)
    # Sums over processes round otherwise; bf16 weights may then take another neighbour, 2^-8 of themselves away.
    far = 2e-5 if dtype == torch.float32 else 2**-7
    for p, q, x in zip(a, b, values(MATRICES, 0, dtype), strict=True):
        gap = float((p.detach() - whole(q.detach())).float().norm() / p.detach().float().norm())
        assert not torch.equal(p.detach(), x)
        assert gap <= far, f"{tuple(p.shape)} differs by {gap:.1e}"
        for key, value in other.state[q].items():
            if not isinstance(value, Tensor):
                mine = [None] * dist.get_world_size()
                dist.all_gather_object(mine, value)
                assert mine == mine[:1] * len(mine), f"{key} differs between processes: {mine}"
    if name in BITS_ON_THE_RIGHT and side == "right":
        same_bits(a, b)


#: These have no sum over all rows when columns are projected.
BITS_ON_THE_RIGHT = (
    "FRUGAL",
    "FRUGAL hadamard",
    "FRUGAL random",
    "GaLore's, 8 bits",
    "rotated",
    "carried over",
)


def refusals() -> None:
    """What needs whole matrices is refused by name, when the optimizer is made and before anything has changed."""
    mesh = mesh_of()
    optim, low = lt.optim, {"rank": 4}
    needs: list[tuple[str, Callable[..., Any], dict[str, Any], str]] = [
        ("GaLoreAdamW", optim.GaLoreAdamW, low, "RandomizedSVD is found from the whole gradient"),
        ("QGaLoreAdamW", optim.QGaLoreAdamW, low, "RandomizedSVD"),
        ("FiraAdamW", optim.FiraAdamW, low, "RandomizedSVD"),
        ("LDAdam", optim.LDAdam, low, "PowerQR"),
        ("DCTAdamW", optim.DCTAdamW, low, "Cosines"),
        ("GRASSAdamW", optim.GRASSAdamW, low, "TopIndices"),
        ("SubTrack", optim.SubTrack, low, "Grassmann"),
        ("APOLLO", lambda p, **k: optim.APOLLO(p, proj="svd"), low, "ExactSVD"),
        ("FRUGAL", lambda p, **k: optim.FRUGAL(p, subspace="blocks"), low, "Blocks has no form for shards"),
        ("Flora", optim.Flora, low, "AdafactorRule takes statistics of whole matrices"),
        ("Adafactor", optim.Adafactor, {}, "AdafactorRule"),
        ("AdamMini", optim.AdamMini, {}, "AdamMiniRule"),
        ("AdamP", optim.AdamP, {}, "ScaleInvariant needs inner products"),
        ("AdaHessian", optim.AdaHessian, {}, "Hutchinson"),
        ("SophiaG", lambda p, **k: optim.SophiaG(p, batch_size=8, **k), {}, "GaussNewtonBartlett"),
    ]
    for method, make, keys, reason in needs:
        p = nn.Parameter(shard(torch.ones(8, 6), mesh))
        refused(
            lambda p=p, make=make, keys=keys: make([{"params": [("layer.weight", p)], **keys}], lr=1e-3),
            *(method, "layer.weight", "(8, 6)", "over 2 processes", reason, "ignored_params"),
        )
        make([{"params": [nn.Parameter(torch.ones(8, 6))], **keys}])  # replicated it may be

    model = lt.quant.quantize_model_(nn.Sequential(nn.Linear(64, 64)), weights="int8", group=64, skip=())
    fully_shard(model, mesh=mesh)
    refused(lambda: optim.AdamW8bit(model.parameters()), "packed weights cannot be sharded", "process_group")
    p = nn.Parameter(shard(torch.ones(8, 6), mesh, [Shard(1)]))
    refused(lambda: optim.AdamW8bit([p]), "Shard(dim=1)", "Leave tensor parallelism out")
    p = nn.Parameter(shard(torch.ones(8, 6), mesh))
    opt = optim.AdamW([p])
    q = nn.Parameter(shard(torch.ones(8, 6), mesh))
    refused(lambda: opt.add_param_group({"params": [q], "rank": 2, "proj_type": "full"}), "RandomizedSVD")
    assert len(opt.param_groups) == 1
    refused(lambda: setattr(opt, "constraint", optim.Perpendicular()), "Perpendicular")
    assert opt.constraint is None
    refused(lambda: lt.spsa.SPSA([("w", p)], lr=1e-3, probe="snapshot"), "w is sharded", "comm=")
    refused(lambda: lt.optim.in_backward(optim.AdamW, nn.ParameterList([p])), "in_backward", "fully_shard")
    p.grad = shard(torch.ones(8, 6), mesh, [Replicate()])
    before = whole(p.detach()).clone()
    refused(opt.step, "placements", "redistribute")
    assert torch.equal(whole(p.detach()), before)


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(lt.LowtideError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def nonfinite_raise() -> None:
    """One process has a NaN: both refuse the step, and neither has changed anything."""
    mesh = mesh_of()
    p = nn.Parameter(shard(torch.ones(8, 600), mesh))
    opt = lt.optim.AdamW8bit([p], nonfinite="raise")
    grad = torch.ones(8, 600)
    step(opt, [p], [grad])
    before = whole(p.detach()).clone()
    grad[7, 5] = float("nan")
    refused(lambda: step(opt, [p], [grad]), "hold inf or NaN")
    assert torch.equal(whole(p.detach()), before)


def meshes() -> None:
    """Meshes of two dimensions (HSDP), and DTensors that every process has whole, give the bits of plain tensors."""
    for sizes, placements in (
        ((2, 1), (Replicate(), Shard(0))),
        ((1, 2), (Replicate(), Shard(0))),
        ((2,), (Replicate(),)),
    ):
        for make in (lt.optim.AdamW4bit, lt.optim.AdamW8bit):
            a, b = pair(SHAPES, torch.bfloat16, mesh_of(*sizes), placements)
            one, other = make(a, lr=1e-2), make(b, lr=1e-2)
            for t in range(1, 4):
                grads = values(SHAPES, t, torch.bfloat16)
                step(one, a, grads)
                step(other, b, grads)
            same_bits(a, b)


def measured() -> None:
    """Measuring changes no bit of sharded steps; bytes are those that are here, and together those of the whole."""
    a, b = pair(SHAPES, torch.bfloat16, mesh_of(), (Shard(0),))
    one, other = lt.optim.AdamW8bit(a, lr=1e-4), lt.optim.AdamW8bit(b, lr=1e-4)
    for t in range(1, 3):
        grads = values(SHAPES, t, torch.bfloat16)
        step(one, a, grads)
        with lt.optim.measure(other):
            step(other, b, grads)
    same_bits(a, b)
    for use_torch in (False, True):
        opt = torch.optim.SGD(b, lr=0.1) if use_torch else other
        found = lt.optim.statistics(opt, nn.ParameterList(b))
        here = torch.tensor([found["bytes"]["weights"], found["bytes"]["gradients"]])
        dist.all_reduce(here)
        assert here.tolist() == [sum(p.nbytes for p in a)] * 2
    found = lt.optim.statistics(other)["quantization"]
    assert found["tensors"] == len(b)
    assert 0.1 < found["stalled"] < 1
