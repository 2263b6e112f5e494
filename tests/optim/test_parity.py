# SPDX-License-Identifier: Apache-2.0
"""Step-for-step against torch.optim, galore-torch 1.0, fira 1.0.2 and apollo-torch 1.0.3."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import lowtide as lt

_spec = importlib.util.spec_from_file_location("lowtide_test_peers", Path(__file__).parent / "peers.py")
assert _spec is not None
assert _spec.loader is not None
peers = importlib.util.module_from_spec(_spec)
sys.modules["lowtide_test_peers"] = peers
_spec.loader.exec_module(peers)

SHAPES = {"tall": (96, 40), "wide": (40, 96), "square": (48, 48)}


def gradients(shape: tuple[int, int], steps: int, seed: int) -> list[torch.Tensor]:
    """A slowly turning low-rank signal with noise: distinct singular values, so that bases are well defined."""
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(shape[0], 8, generator=g), torch.randn(8, shape[1], generator=g)
    du, dv = torch.randn(shape[0], 8, generator=g), torch.randn(8, shape[1], generator=g)
    s = torch.diag(2.0 ** -torch.arange(8.0))
    return [
        (u + 0.05 * t * du) @ s @ (v + 0.05 * t * dv) + 0.05 * torch.randn(shape, generator=g)
        for t in range(steps)
    ]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def start(shape: tuple[int, int]) -> list[torch.nn.Parameter]:
    """A matrix and a bias, the same each time."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(30, generator=torch.Generator().manual_seed(1))
    return [torch.nn.Parameter(matrix), torch.nn.Parameter(bias)]


def follow(
    a: torch.optim.Optimizer,
    b: torch.optim.Optimizer,
    ours: list[torch.nn.Parameter],
    theirs: list[torch.nn.Parameter],
    shape: tuple[int, int],
) -> int:
    """60 steps of both; the number of steps at which the growth limiter held the norm at its limit."""
    limited, last = 0, None
    for t, g in enumerate(gradients(shape, 60, 3)):
        g = g * (1.0 + 0.5 * (t % 7 == 3))  # jumps, for the limiter
        for ps in (ours, theirs):
            ps[0].grad, ps[1].grad = g.clone(), g.flatten()[:30].clone()
        b.step()
        a.step()
        for x, y in zip(ours, theirs, strict=True):
            # fp32 round-off of 60 steps; a wrong sign, phase or epsilon shows at 1e-3 and above.
            assert relative(x.detach(), y.detach()) <= 1e-5, f"step {t}"
        norm = a.state[ours[0]].get("residual_norm")
        limited += last is not None and norm is not None and abs(norm / last - 1.01) < 1e-5
        last = norm
    return limited


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("proj_type", ["std", "left", "right", "full"])
def test_galore_follows_galore_torch(shape: tuple[int, int], proj_type: str) -> None:
    reference = peers.peer_module("galore_torch", "adamw").AdamW
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(30, generator=torch.Generator().manual_seed(1))
    ours, theirs = [[torch.nn.Parameter(start.clone()), torch.nn.Parameter(bias.clone())] for _ in range(2)]

    def groups(ps: list[torch.nn.Parameter]) -> list[dict]:
        low = {"params": ps[:1], "rank": 8, "update_proj_gap": 17, "scale": 0.25, "proj_type": proj_type}
        return [low, {"params": ps[1:]}]

    # Between both sides' singular vectors R is diagonal but for round-off, which a small eps would blow up, in either library.
    eps = 1e-2 if proj_type == "full" else 1e-6
    a = lt.optim.GaLoreAdamW(groups(ours), lr=1e-2, eps=eps, weight_decay=0.05, compat="galore_torch")
    b = reference(groups(theirs), lr=1e-2, eps=eps, weight_decay=0.05, no_deprecation_warning=True)
    for t, g in enumerate(gradients(shape, 60, 3)):
        for ps in (ours, theirs):
            ps[0].grad, ps[1].grad = g.clone(), g.flatten()[:30].clone()
        a.step()
        b.step()
        for x, y in zip(ours, theirs, strict=True):
            # fp32 round-off of 60 steps; a wrong sign, phase or epsilon shows at 1e-3 and above.
            assert relative(x.detach(), y.detach()) <= 1e-5, f"step {t}"
    assert a.state[ours[0]]["refreshes"] == 4


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("proj_type", ["std", "left", "right"])
def test_fira_follows_fira(shape: tuple[int, int], proj_type: str, scale: float) -> None:
    reference = peers.peer_module("fira", "fira_adamw").AdamW
    ours, theirs = start(shape), start(shape)
    low = {"rank": 8, "update_proj_gap": 17, "proj_type": proj_type}
    a = lt.optim.FiraAdamW(
        [{"params": ours[:1], **low, "scale": scale}, {"params": ours[1:]}],
        lr=1e-2, weight_decay=0.05, compat="fira",
    )  # fmt: skip
    b = reference(
        [{"params": theirs[:1], **low, "alpha": scale}, {"params": theirs[1:]}],
        lr=1e-2, weight_decay=0.05, no_deprecation_warning=True,
    )  # fmt: skip
    limited = follow(a, b, ours, theirs, shape)
    assert a.state[ours[0]]["refreshes"] == 4
    # The difference |G|^2 - |R|^2 of sums that agree in all but 1e-3, in fp32; weights hardly see it.
    norm = float(b.state[theirs[0]]["scaling_grad"])
    assert a.state[ours[0]]["residual_norm"] == pytest.approx(norm, rel=1e-2)
    assert limited > 5  # the limiter took part


class _PeerProjection:
    """The random projections that apollo-torch drew: ours come from another generator."""

    needs_prev = False
    needs_gradient = False
    needs_mean = False
    varies = False
    kind = "dense"

    def __init__(self, peer: torch.optim.Optimizer, p: torch.nn.Parameter) -> None:
        self.peer, self.p = peer, p

    def find(self, request: lt.optim.RefreshRequest) -> torch.Tensor:
        matrix = self.peer.state[self.p]["projector"].ortho_matrix
        return (matrix if request.side == "right" else matrix.T).contiguous()

    def keep(self, state: dict, found: torch.Tensor, request: object, store: lt.optim.BasisStore) -> None:
        store.save(state, found)

    def load(self, state: dict, store: lt.optim.BasisStore) -> object:
        return lt.optim.bases.DenseBasis(store.load(state), state["side"])


@pytest.mark.parametrize("mini", [False, True], ids=["apollo", "mini"])
@pytest.mark.parametrize("proj", ["random", "svd"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_apollo_follows_apollo_torch(shape: tuple[int, int], proj: str, mini: bool) -> None:
    reference = peers.peer_module("apollo_torch", "apollo").AdamW
    ours, theirs = start(shape), start(shape)
    keys = {
        "rank": 1 if mini else 8,
        "update_proj_gap": 17,
        "proj_type": "std",
        "scale": 128.0 if mini else 4.0,
    }
    kind = lt.optim.APOLLOMini if mini else lt.optim.APOLLO
    a = kind(
        [{"params": ours[:1], **keys}, {"params": ours[1:]}],
        lr=1e-2, weight_decay=0.05, proj=proj, compat="apollo_torch",
    )  # fmt: skip
    named = {"proj": proj, "scale_type": "tensor" if mini else "channel"}
    b = reference(
        [{"params": theirs[:1], **keys, **named}, {"params": theirs[1:]}], lr=1e-2, weight_decay=0.05
    )
    if proj == "random":
        a._axes.subspace = _PeerProjection(b, theirs[0])
    limited = follow(a, b, ours, theirs, shape)
    assert a.state[ours[0]]["refreshes"] == 4
    assert limited > 5


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_torch(decay: float) -> None:
    shapes = [(33, 65), (64, 64), (7,), (1,), (300, 41)]
    gen = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s, generator=gen)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = lt.optim.AdamW(ours, lr=3e-3, betas=(0.9, 0.95), weight_decay=decay)
    b = torch.optim.AdamW(theirs, lr=3e-3, betas=(0.9, 0.95), weight_decay=decay)
    for _ in range(60):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn(x.shape, generator=gen)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    assert max(relative(x.detach(), y.detach()) for x, y in zip(ours, theirs, strict=True)) <= 1e-6


def test_full_rank_galore_momentum_free_equals_sgd_direction() -> None:
    """With rank = min dimension and betas (0, 0) each step is R / |R| in a rotated frame: bases cancel for rank 1."""
    w = torch.nn.Parameter(torch.zeros(1, 50))
    opt = lt.optim.GaLoreAdamW(
        [{"params": [w], "rank": 4, "scale": 1.0}], lr=0.5, betas=(0.0, 0.0), svd="exact"
    )
    w.grad = torch.linspace(-1, 1, 50)[None]
    opt.step()
    assert opt.state[w]["rank"] == 1  # clamped to the smaller side
    assert torch.allclose(w.detach(), -0.5 * w.grad.sign(), atol=1e-6)


def test_q_galore_projector_quantization_matches_on_two_sided_groups() -> None:
    projector = peers.peer_module("q_galore_torch", "q_galore_projector").GaLoreProjector(8)
    basis = torch.linalg.qr(torch.randn(512, 8, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()
    codes, scale, zero, _ = projector._quantize(basis, q_group_size=256, n_bit=4)
    packed = lt.quant.quantize(basis, bits=4, group=256, scheme="asymmetric")
    want = (codes.float().reshape(-1, 256) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)
    got = lt.quant.dequantize(packed).reshape(-1, 256)
    # Scales may differ in the last bit, so a value exactly between two codes may fall to either side.
    step = scale.reshape(-1, 1)
    assert ((got - want).abs() <= 1e-6 * step + 1e-7).float().mean() > 0.999
    assert packed.codes.nbytes * 2 == basis.numel()  # half a byte an element, where the peer takes one
