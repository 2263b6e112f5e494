# SPDX-License-Identifier: Apache-2.0
"""AdaHessian by its formula in double, on products with the exact Hessian of a function where it is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

LR = 0.05
SHAPES = [(6, 5), (4, 3, 3), (3, 2, 3, 2), (2, 2, 2, 3, 2), (7,), ()]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def curvatures() -> list[Tensor]:
    return [noise(s, 50 + i).abs() + 0.3 for i, s in enumerate(SHAPES)]


def loss_of(params: list[Any], cs: list[Tensor]) -> Tensor:
    """Half of sum c p^2 plus sum p^4 / 12: the Hessian is diag(c + p^2), so z * Hz is that diagonal exactly."""
    total: Any = 0.0
    for p, c in zip(params, cs, strict=True):
        total = total + (0.5 * c * p * p + p**4 / 12).sum()
    return total  # type: ignore[no-any-return]


def reference(
    params: list[Tensor], steps: int, k: float, every: int, spatial: bool, wd: float, eps: float = 1e-4
) -> list[Tensor]:
    cs = [c.double() for c in curvatures()]
    ms = [torch.zeros_like(p) for p in params]
    vs = [torch.zeros_like(p) for p in params]
    updates = 0
    for t in range(1, steps + 1):
        due = (t - 1) % every == 0
        updates += due
        for i, (p, c) in enumerate(zip(params, cs, strict=True)):
            g, d = c * p + p**3 / 3, (c + p * p).abs()
            if spatial and p.dim() > 2:
                d = d.mean(tuple(range(2, p.dim())), keepdim=True).expand_as(p)
            ms[i] = 0.9 * ms[i] + 0.1 * g
            if due:
                vs[i] = 0.98 * vs[i] + 0.02 * d * d
            root = (vs[i] / (1 - 0.98**updates)).sqrt() ** k + eps
            params[i] = p * (1 - LR * wd) - LR * ms[i] / (1 - 0.9**t) / root
    return params


@pytest.mark.parametrize("products", ["double", "fd"])
@pytest.mark.parametrize(
    ("k", "every", "spatial"), [(1.0, 1, False), (1.0, 1, True), (0.5, 1, False), (1.0, 4, True)]
)
def test_follows_the_paper_in_double(products: str, k: float, every: int, spatial: bool) -> None:
    params = [nn.Parameter(noise(s, i)) for i, s in enumerate(SHAPES)]
    want = reference([p.detach().double() for p in params], 30, k, every, spatial, 0.1)
    opt = lt.optim.AdaHessian(
        params, lr=LR, betas=(0.9, 0.98), hessian_power=k, update_each=every, products=products,
        average_conv_kernel=spatial, weight_decay=0.1,
    )  # fmt: skip

    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(params, curvatures())
        loss.backward(create_graph=products == "double" and opt.curvature_due)  # type: ignore[no-untyped-call]
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(30)]  # type: ignore[union-attr]
    assert losses[-1] < 0.5 * losses[0]
    # float32 products; differences in float32 are good to some 1e-4 of a product.
    limit = 2e-5 if products == "double" else 2e-3
    for p, q in zip(params, want, strict=True):
        assert float((p.detach() - q).norm() / q.norm()) <= limit


@pytest.mark.parametrize("form", ["abs", "signed"])
def test_forms_differ_in_averages_only(form: str) -> None:
    p = nn.Parameter(noise((2, 3, 4), 0))
    c = torch.where(noise((2, 3, 4), 9) > 0, 1.0, -1.0)
    opt = lt.optim.AdaHessian([p], lr=0.0, betas=(0.9, 0.0), form=form)
    (0.5 * c * p * p).sum().backward(create_graph=True)
    opt.step()
    mean = (c.abs() if form == "abs" else c).mean(2, keepdim=True).expand_as(c)
    assert torch.allclose(opt.state[p]["exp_hessian_diag_sq"], mean.square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_low_bit_states_follow_fp32(kind: str, dtype: torch.dtype) -> None:
    """The distance to the minimum shrinks alike: coded steps differ by less than a third of the way."""
    ends = []
    for store in (None, lt.optim.StateStore(kind, 0)):
        p = nn.Parameter(noise((600,), 1).to(dtype))
        start = p.detach().float().clone()
        opt = lt.optim.AdaHessian([p], lr=LR, state=store)
        c = noise((600,), 2).abs() + 0.5
        for _ in range(30):
            opt.zero_grad()
            (0.5 * c * p.float() ** 2).sum().backward(create_graph=True)
            opt.step()
        assert opt.state_bytes()["states"] <= (8 if store is None else 2.1 if kind == "int8" else 1.1) * 600
        ends.append(p.detach().float())
    assert float((ends[0] - ends[1]).norm() / (ends[0] - start).norm()) < (0.1 if kind == "int8" else 0.33)
    assert float(ends[1].norm()) < 0.6 * float(start.norm())


def test_a_convolution_of_any_dimension_trains() -> None:
    for conv, shape in ((nn.Conv1d, (2, 3, 60)), (nn.Conv2d, (2, 3, 12, 12)), (nn.Conv3d, (2, 3, 6, 6, 6))):
        torch.manual_seed(0)
        layer = conv(3, 4, 3)
        x = torch.randn(shape)
        # One probe's curvature of a bias may be next to 0, and the step along it as large.
        opt = lt.optim.AdaHessian(layer.parameters(), lr=0.3, probes=4)
        losses = []
        for _ in range(12):
            opt.zero_grad()
            loss = (layer(x) - 1.0).square().mean()
            loss.backward(create_graph=opt.curvature_due)
            losses.append(float(loss.detach()))
            opt.step()
        assert losses[-1] < 0.5 * losses[0]
        assert math.isfinite(losses[-1])
