# SPDX-License-Identifier: Apache-2.0
"""OSF: the leading singular part stays, densely and in factors; the factor form against peft's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowtide as lt
from lowtide.continual import OSF, OSFLinear, factorize_, merge_


def net(dims: tuple[int, ...] = (20, 30, 12)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(dims)))


def step(model: nn.Module, opt: torch.optim.Optimizer, t: int, d: int = 20) -> None:
    opt.zero_grad()
    x = torch.randn(16, d, generator=torch.Generator().manual_seed(t))
    model(x).square().mean().backward()
    opt.step()


@pytest.mark.parametrize("rule", ["AdamW", "GaLoreAdamW", "SGD"])
def test_the_leading_part_stays_under_any_rule(rule: str) -> None:
    model = net()
    memory = OSF(model, 0.5)
    with pytest.raises(lt.LowtideValueError, match=r"call renew\(\)"):
        memory.constraint()
    assert memory.renew() == {"0": 10, "1": 6}
    w = model[0].weight.detach().clone()
    u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
    groups = lt.optim.param_groups(model, rank=4, scale=1.0) if rule == "GaLoreAdamW" else model.parameters()
    opt = getattr(lt.optim, rule)(groups, lr=1e-2, weight_decay=0.1, constraint=memory.constraint())
    for t in range(10):
        step(model, opt, t)
    now = model[0].weight.detach().double()
    assert float((now - w).norm()) > 1e-2
    # Ten roundings of fp32 weights below 1.
    assert torch.allclose(u[:, :10].T @ now, torch.diag(s[:10]) @ v[:10], atol=2e-6)
    assert torch.allclose(now @ v[:10].T, u[:, :10] * s[:10], atol=2e-6)
    assert memory.nbytes == 4 * (10 * (30 + 20) + 6 * (12 + 30))


def test_state_round_trip(tmp_path: Path) -> None:
    memory = OSF(net(), 0.5)
    memory.renew()
    save_file(memory.state_dict(), tmp_path / "osf.safetensors")
    again = OSF(net(), 0.5)
    again.load_state_dict(load_file(tmp_path / "osf.safetensors"))
    for name, layer in memory.layers.items():
        assert memory.constraint().digest(layer.weight) == again.constraint().digest(
            again.layers[name].weight
        )
    with pytest.raises(lt.LowtideValueError, match="right"):
        again.load_state_dict({**memory.state_dict(), "0.right": memory.right["0"][1:]})


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_factors_are_the_same_layer(project: str) -> None:
    model = net()
    x = torch.randn(7, 20)
    want, names = model(x), [n for n, _ in model.named_modules()]
    constraint = factorize_(model, 0.5, project=project)
    assert isinstance(model[0], OSFLinear)
    assert model[0].U_low.shape == (30, 10)
    assert torch.allclose(model(x), want, atol=1e-5)
    assert len(constraint.bases) == (4 if project == "update" else 0)
    merge_(model)
    assert [n for n, _ in model.named_modules()] == names
    assert torch.allclose(model(x), want, atol=1e-5)


def test_projecting_gradients_leaks_under_adam_and_projecting_updates_does_not() -> None:
    leaks = {}
    for project in ("gradient", "update"):
        model = net()
        constraint = factorize_(model, 0.5, project=project)
        opt = lt.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, constraint=constraint)
        for t in range(10):
            step(model, opt, t)
        layer = model[0]
        leaks[project] = float((layer.U_high.T @ layer.U_low.detach()).abs().max())
    assert leaks["gradient"] > 1e-2
    assert leaks["update"] < 1e-5


def test_the_gradient_form_follows_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    if not hasattr(peft, "OSFConfig"):
        pytest.skip("this peft has no OSF (it came with 0.18)")
    ours, base = net((20, 30, 12)), net((20, 30, 12))
    factorize_(ours, 0.5, project="gradient")
    config = peft.OSFConfig(target_modules=["0", "1"], effective_rank=0.5)
    theirs = peft.get_peft_model(base, config)
    pairs = []
    for i in range(2):
        factors = dict(theirs.base_model.model[i].osf_svd_params["default"])
        for name in ("U_low", "S_low", "V_low"):
            pairs.append((getattr(ours[i], name), factors[name]))
    start = [a.detach().clone() for a, _ in pairs]
    # SVDs of one matrix by one LAPACK: the same factors, signs included.
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    for p in theirs.parameters():
        p.requires_grad_(any(p is b for _, b in pairs))
    for t in range(20):
        opts = [
            torch.optim.SGD([p for p, _ in pairs], lr=0.1),
            torch.optim.SGD([p for _, p in pairs], lr=0.1),
        ]
        step(ours, opts[0], t)
        step(theirs, opts[1], t)
    for (a, b), before in zip(pairs, start, strict=True):
        moved: Tensor = b.detach() - before
        assert float(moved.norm()) > 1e-4
        # Products in another order, over 20 steps.
        assert float((a.detach() - b.detach()).norm()) < 1e-4 * float(moved.norm())


def test_bad_arguments_are_named_and_change_nothing() -> None:
    model = net()
    for make, words in (
        (lambda: OSF(model, 0.0), "preserved"),
        (lambda: factorize_(model, 1.5), "preserved"),
        (lambda: factorize_(model, project="weight"), "project"),
        (lambda: factorize_(nn.Linear(4, 4)), "Sequential"),
    ):
        with pytest.raises(lt.LowtideError, match=words):
            make()
    packed = net((64, 64))
    lt.quant.quantize_model_(packed, weights="int8", group=64, skip=())
    with pytest.raises(lt.LowtideTypeError, match=r"torch\.nn\.Linear"):
        factorize_(packed)
    assert isinstance(model[0], nn.Linear)
