# SPDX-License-Identifier: Apache-2.0
"""Step-for-step against torch.optim and galore-torch 1.0."""

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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("proj_type", ["std", "left", "right"])
def test_galore_follows_galore_torch(shape: tuple[int, int], proj_type: str) -> None:
    reference = peers.peer_module("galore_torch", "adamw").AdamW
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(30, generator=torch.Generator().manual_seed(1))
    ours, theirs = [[torch.nn.Parameter(start.clone()), torch.nn.Parameter(bias.clone())] for _ in range(2)]

    def groups(ps: list[torch.nn.Parameter]) -> list[dict]:
        low = {"params": ps[:1], "rank": 8, "update_proj_gap": 17, "scale": 0.25, "proj_type": proj_type}
        return [low, {"params": ps[1:]}]

    a = lt.optim.GaLoreAdamW(groups(ours), lr=1e-2, weight_decay=0.05, compat="galore_torch")
    b = reference(groups(theirs), lr=1e-2, weight_decay=0.05, no_deprecation_warning=True)
    for t, g in enumerate(gradients(shape, 60, 3)):
        for ps in (ours, theirs):
            ps[0].grad, ps[1].grad = g.clone(), g.flatten()[:30].clone()
        a.step()
        b.step()
        for x, y in zip(ours, theirs, strict=True):
            # fp32 round-off of 60 steps; a wrong sign, phase or epsilon shows at 1e-3 and above.
            assert relative(x.detach(), y.detach()) <= 1e-5, f"step {t}"
    assert a.state[ours[0]]["refreshes"] == 4


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
