# SPDX-License-Identifier: Apache-2.0
"""lt.optim.measure and lt.optim.statistics: the numbers against their definitions, and steps that do not change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt

RANK = 4


def model_of(dtype: torch.dtype = torch.float32, *, int8: bool = False, bits: str = "int8") -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 9)).to(dtype)
    return lt.quant.quantize_model_(model, bits, 32, skip=()) if int8 else model


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(seed))
    loss: Tensor = (
        model(x.to(next(p for p in model.parameters() if p.is_floating_point()).dtype)).square().mean()
    )
    loss.backward()
    return loss


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return lt.optim.param_groups(model, rank=RANK, update_proj_gap=2, scale=1.0)


def test_energy_is_the_share_of_the_gradient_that_its_best_subspace_holds() -> None:
    model = model_of()
    opt = lt.optim.GaLoreAdamW(groups(model), lr=1e-2, svd="exact")
    with lt.optim.measure(opt):
        backward(model)
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.ndim == 2}
        opt.step()
    got = lt.optim.statistics(opt, model, by_name=True)["subspace"]
    shares = []
    for name, g in grads.items():
        s = torch.linalg.svdvals(g.double()).square()
        shares.append(float(s[:RANK].sum() / s.sum()))
        # fp32 singular vectors and products: 1e-6 with k eps of 40 terms.
        assert got["by_name"][name]["energy"] == pytest.approx(shares[-1], abs=1e-5)
    assert got["matrices"] == 2
    assert got["energy"] == pytest.approx(sum(shares) / 2, abs=1e-5)
    assert got["energy_min"] == pytest.approx(min(shares), abs=1e-5)
    assert got["refreshes"] == 2
    assert got["gap"] == 2


@pytest.mark.parametrize(
    ("kind", "store"),
    [
        ("GaLoreAdamW", "fp32"), ("GaLoreAdamW", "int4"), ("QGaLoreAdamW", "int8"), ("FiraAdamW", "bf16"), ("FRUGAL", "fp32"),
        ("GRASSAdamW", "bf16"), ("DCTAdamW", "int8"), ("LDAdam", "fp32"), ("APOLLO", "int8"), ("APOLLO", "fp32"),
        ("SubTrack", "bf16"), ("AdamW", "int8"), ("AdamW", "bf16"), ("AdamW", "fp32"),
    ],
)  # fmt: skip
def test_measuring_changes_nothing_and_gives_shares(kind: str, store: str) -> None:
    model = model_of(torch.bfloat16 if store == "bf16" else torch.float32)
    if store.startswith("int"):
        lt.quant.quantize_model_(model, store, 32, skip=())
    twin = copy.deepcopy(model)
    found = []
    for m, measured in ((model, True), (twin, False)):
        params = m.parameters() if kind == "AdamW" else groups(m)
        opt = getattr(lt.optim, kind)(params, lr=1e-2)
        handle = lt.optim.measure(opt) if measured else None
        for step in range(3):
            opt.zero_grad()
            backward(m, step)
            opt.step()
        found.append(lt.optim.statistics(opt, m))
        if handle:
            handle.close()
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    measured_one, bare = found
    assert measured_one["bytes"] == bare["bytes"]
    assert ("quantization" in measured_one) == (store != "fp32")
    if store != "fp32":
        assert 0.0 <= measured_one["quantization"]["stalled"] < 1.0
        assert "stalled" not in bare["quantization"]
    if kind == "AdamW":
        assert "subspace" not in measured_one
    else:
        assert "energy" not in bare["subspace"]
        assert ("energy" in measured_one["subspace"]) == (kind != "APOLLO")
        assert 0 <= measured_one["subspace"].get("energy", 0) <= 1


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("elements", [None, 40])
def test_stalls_and_sqnr_of_packed_weights(bits: str, elements: int | None) -> None:
    model = model_of(int8=True, bits=bits)
    opt = lt.optim.SGD(model.parameters(), lr=0.5)
    quants = {n: p.quant for n, p in model.named_parameters() if lt.quant.is_quant_weight(p)}
    with lt.optim.measure(opt, elements=elements):
        backward(model)
        ideal = {n: q.dequantize() - 0.5 * q.main_grad for n, q in quants.items()}
        before = {n: codes_of(q) for n, q in quants.items()}
        opt.step()
    got = lt.optim.statistics(opt, model, by_name=True)["quantization"]["by_name"]
    assert len(got) == 2
    for name, q in quants.items():
        rows = (
            slice(None) if elements is None else torch.arange(n := max(1, 40 // q.shape[1])) * q.shape[0] // n
        )
        same = (codes_of(q) == before[name])[rows].double().mean()
        assert got[name]["stalled"] == pytest.approx(float(same), abs=1e-12)
        want, is_now = ideal[name][rows].double(), q.dequantize()[rows].double()
        sqnr = 10 * torch.log10(want.square().sum() / (want - is_now).square().sum())
        # The kernel forms the target in fp32, the measure in fp64: 1e-7 of a noise that is 1e-2 of it.
        assert got[name]["sqnr_db"] == pytest.approx(float(sqnr), abs=1e-3)


def codes_of(q: Any) -> Tensor:
    codes = q.codes.clone()
    if q.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    return codes[:, : q.shape[1]]


def test_bf16_stalls_when_updates_are_too_small_for_it() -> None:
    p = nn.Parameter(torch.ones(64, 8, dtype=torch.bfloat16))
    found = []
    for stochastic in (False, True):
        opt = lt.optim.SGD([p], lr=1e-3, stochastic=stochastic)
        with lt.optim.measure(opt):
            p.grad = torch.ones_like(p)
            opt.step()
        found.append(lt.optim.statistics(opt)["quantization"]["stalled"])
    assert found[0] == 1.0  # half a unit of the last place is 2^-9 above and below 1
    # Below 1 a unit is 2^-8: each element moves with probability 1e-3 * 2^8 = 0.256; 512 of them: 5 sigma are 0.1.
    assert found[1] == pytest.approx(1 - 0.256, abs=0.1)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_within_the_backward_pass(accumulate: int, clip: float | None) -> None:
    model = model_of(int8=True)
    opt = lt.optim.in_backward(
        lt.optim.QGaLoreAdamW(groups(model), lr=1e-2),
        model,
        accumulate=accumulate,
        max_grad_norm=clip,
        refresh_from="first",
    )
    with lt.optim.measure(opt):
        for i in range(2 * accumulate):
            backward(model, i)
    opt.step()
    got = lt.optim.statistics(opt, model)
    assert 0 < got["subspace"]["energy"] <= 1
    assert got["quantization"]["sqnr_db"] > 20
    assert got["bytes"]["gradients"] > 0
    # A step that was not measured shows nothing of the one before.
    for i in range(accumulate):
        backward(model, i)
    assert "energy" not in lt.optim.statistics(opt)["subspace"]
    assert "stalled" not in lt.optim.statistics(opt)["quantization"]


def test_bytes_by_kind() -> None:
    model = model_of()
    opt = lt.optim.AdamW(list(model.parameters())[:1], lr=1e-2)
    backward(model)
    opt.step()
    assert lt.optim.statistics(opt)["bytes"] == opt.state_bytes()
    whole = sum(p.nbytes for p in model.parameters())
    assert lt.optim.statistics(opt, model)["bytes"]["weights"] == whole
    torch_one = torch.optim.AdamW(model.parameters())
    torch_one.step()
    got = lt.optim.statistics(torch_one)
    assert got == {"bytes": {"weights": whole, "gradients": whole, "states": 2 * whole + 4 * 4}}
    assert lt.optim.measure(torch_one).close() is None


def test_gradients_that_are_not_finite_have_no_energy() -> None:
    model = model_of()
    opt = lt.optim.GaLoreAdamW(groups(model), lr=1e-2)
    with lt.optim.measure(opt):
        backward(model)
        opt.step()
        for p in model.parameters():
            assert p.grad is not None
            p.grad[0] = torch.nan
        with pytest.warns(RuntimeWarning, match="skipped"):
            opt.step()
    assert "energy" not in lt.optim.statistics(opt)["subspace"]


def test_refusals() -> None:
    opt = lt.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(lt.LowtideValueError, match="elements"):
        lt.optim.measure(opt, elements=0)
    for function in (lt.optim.measure, lt.optim.statistics):
        with pytest.raises(lt.LowtideTypeError, match="optimizer"):
            function(nn.Linear(2, 2))  # type: ignore[arg-type]
