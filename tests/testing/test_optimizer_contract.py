# SPDX-License-Identifier: Apache-2.0
"""Every preset against the public contract, and the contract against optimizers that break it."""

from __future__ import annotations

import fractions
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lowtide as lt
from lowtide.testing import OPTIMIZER_CHECKS, optimizer_contract


def low_rank(params: Any, **keys: Any) -> list[dict]:
    """Groups with low-rank keys; vectors and scalars in them fall to the plain rule."""
    params = list(params)
    found = params if params and isinstance(params[0], dict) else [{"params": params}]
    return [{"rank": 4, "update_proj_gap": 3, **keys, **g} for g in found]


def preset(name: str, lr: float, low: bool = False, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    def make(params: Any, **k: Any) -> torch.optim.Optimizer:
        groups = low_rank(params) if low else params
        return getattr(lt.optim, name)(groups, **{"lr": lr, "weight_decay": 0.0, **options, **k})

    return make


def fed(name: str, lr: float, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """Methods that want curvature are handed one: the contract's gradients belong to no function that had a Hessian."""
    kind: Any = getattr(lt.optim, name)

    class Fed(kind):  # type: ignore[misc]
        def update(self, params: Any) -> None:
            params = list(params)
            if self.curvature_due:
                dense = [p for p in params if p.grad is not None and not p.grad.is_sparse]
                # The Hessian of what is maximized has the other sign; squares of gradients have none.
                sign = -1.0 if name == "SophiaH" and self.defaults["maximize"] else 1.0
                self.update_curvature(samples={p: sign * (0.5 + p.grad.float().square()) for p in dense})
            super().update(params)

    def make(params: Any, **k: Any) -> torch.optim.Optimizer:
        opt: torch.optim.Optimizer = Fed(params, **{"lr": lr, "weight_decay": 0.0, **options, **k})
        return opt

    return make


def corrected(name: str, lr: float) -> Callable[..., torch.optim.Optimizer]:
    """Gradients of a linear function, whose Hessian is zero, are what the contract's come nearest to."""
    kind: Any = getattr(lt.optim, name)

    class Corrected(kind):  # type: ignore[misc]
        def update(self, params: Any) -> None:
            params = list(params)
            self.correct({p: torch.zeros(p.shape) for p in params})
            super().update(params)

    def make(params: Any, **k: Any) -> torch.optim.Optimizer:
        opt: torch.optim.Optimizer = Corrected(params, **{"lr": lr, **k})
        return opt

    return make


PRESETS = {
    "AdamW": preset("AdamW", 1e-2),
    "AdamW8bit": preset("AdamW8bit", 1e-2, min_8bit_size=0),
    "AdamW4bit": preset("AdamW4bit", 1e-2, min_4bit_size=0),
    "AdaBelief": preset("AdaBelief", 1e-2),
    "AdaBelief8bit": preset("AdaBelief8bit", 1e-2, min_8bit_size=0),
    "Lion": preset("Lion", 5e-3),
    "Lion8bit": preset("Lion8bit", 5e-3, min_8bit_size=0),
    "SGD": preset("SGD", 0.1),
    "SGD8bit": preset("SGD8bit", 0.1, min_8bit_size=0),
    "Adafactor": preset("Adafactor", 5e-2),
    "Adafactor paper": preset(
        "Adafactor", 1e-2, form="paper", relative_step=False, scale_parameter=False, beta1=0.9
    ),
    "AdamMini": preset("AdamMini", 1e-2),
    "AdamMini8bit": preset("AdamMini8bit", 1e-2, min_8bit_size=0),
    "SignSGD": preset("SignSGD", 5e-3),
    "Signum": preset("Signum", 5e-3),
    "DiffGrad": preset("DiffGrad", 1e-2),
    "DiffGrad8bit": preset("DiffGrad8bit", 1e-2, min_8bit_size=0),
    "AdamP": preset("AdamP", 1e-2),
    "SGDP": preset("SGDP", 0.1),
    "AdaHessian": fed("AdaHessian", 1e-2),
    "AdaHessian 8bit": fed("AdaHessian", 1e-2, state=lt.optim.StateStore("int8", 0)),
    "SophiaG": fed("SophiaG", 5e-3, batch_size=64, update_each=3),
    "SophiaG 4bit": fed("SophiaG", 5e-3, batch_size=64, state=lt.optim.StateStore("int4", 0)),
    "SophiaH": fed("SophiaH", 5e-3, rho=0.04, update_each=2),
    "SophiaH 8bit": fed("SophiaH", 5e-3, rho=0.04, state=lt.optim.StateStore("int8", 0)),
    "MFAC": preset("MFAC", 1.0, ngrads=5, damp=0.1),
    "MFAC int8 momentum": preset("MFAC", 0.6, ngrads=5, damp=0.1, window="int8", momentum=0.9),
    "MFAC tensor": preset("MFAC", 0.1, ngrads=5, damp=0.1, window="bf16", scope="tensor"),
    "HARPG": corrected("HARPG", 0.3),
    "NHARPG": corrected("NHARPG", 0.5),
    "GaLore": preset("GaLore", 2e-2, low=True, rule=lt.optim.LionRule()),
    "GaLoreAdafactor": preset("GaLoreAdafactor", 4e-2, low=True),
    "GaLoreAdamW": preset("GaLoreAdamW", 4e-2, low=True),
    "GaLoreAdamW8bit": preset("GaLoreAdamW8bit", 4e-2, low=True),
    "GaLoreAdamW compat": preset("GaLoreAdamW", 4e-2, low=True, compat="galore_torch"),
    "QGaLoreAdamW": preset("QGaLoreAdamW", 4e-2, low=True),
    "FiraAdamW": preset("FiraAdamW", 2e-2, low=True),
    "FiraAdamW compat": preset("FiraAdamW", 2e-2, low=True, compat="fira"),
    "FRUGAL": preset("FRUGAL", 5e-3, low=True),
    "FRUGAL svd sgd": preset("FRUGAL", 5e-3, low=True, subspace="svd", residual="sgd"),
    "FRUGAL random": preset("FRUGAL", 5e-3, low=True, subspace="random"),
    "APOLLO": preset("APOLLO", 1e-2, low=True),
    # Below density 1 it depends on the other matrices when one moves how.
    "FRUGAL blocks": preset("FRUGAL", 5e-3, low=True, subspace="blocks", density=1.0),
    "FRUGAL blocks 0": preset("FRUGAL", 5e-3, low=True, subspace="blocks", density=0.0),
    "FRUGAL elements": preset("FRUGAL", 5e-3, low=True, subspace="elements"),
    "FRUGAL hadamard": preset("FRUGAL", 5e-3, low=True, subspace="hadamard"),
    "APOLLO hadamard": preset("APOLLO", 1e-2, low=True, proj="hadamard"),
    "APOLLO rademacher": preset("APOLLO", 1e-2, low=True, proj="rademacher"),
    "APOLLO svd": preset("APOLLO", 1e-2, low=True, proj="svd"),
    "APOLLOMini": preset("APOLLOMini", 1e-2, low=True),
    "LDAdam": preset("LDAdam", 2e-2, low=True),
    "LDAdam int4": preset("LDAdam", 2e-2, low=True, error_feedback="int4"),
    "DCTAdamW": preset("DCTAdamW", 2e-2, low=True),
    "DCTAdamW plain": preset("DCTAdamW", 2e-2, low=True, error_feedback=None),
    "GRASSAdamW": preset("GRASSAdamW", 4e-2, low=True),
    "GradNormLoRP": preset("GradNormLoRP", 2e-2, low=True),
    "GradNormLoRP 8bit": preset("GradNormLoRP", 2e-2, low=True, state=lt.optim.StateStore("int8", 0)),
    "GRASSAdamW sampled": preset("GRASSAdamW", 2e-2, low=True, selection="sampled"),
    "SubTrack": preset("SubTrack", 2e-2, low=True),
    "GoLoreAdamW": preset("GoLoreAdamW", 4e-2, low=True, switch_step=6),
    "LotusAdamW": preset("LotusAdamW", 4e-2, low=True),
    # Each new projection enlarges the moment by sqrt(d / r): Flora's gap must be long against the moment's memory.
    "Flora": lambda params, **k: lt.optim.Flora(
        low_rank(params, rank=10, update_proj_gap=8), **{"lr": 2e-2, **k}
    ),
}


def test_every_public_optimizer_is_here() -> None:
    classes = {
        name
        for name in lt.optim.__all__
        if isinstance(getattr(lt.optim, name), type)
        and issubclass(getattr(lt.optim, name), lt.optim.Composed)
    }
    assert classes - {"Composed"} == {name.split()[0] for name in PRESETS}


#: A matrix or a norm that all parameters share makes each step a matter of all of them.
JOINT = {"NHARPG", "MFAC", "MFAC int8 momentum"}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name in PRESETS
        for check in OPTIMIZER_CHECKS
        if name not in JOINT or check != "mixed"
    ],
)
def test_preset(name: str, check: str) -> None:
    optimizer_contract(PRESETS[name], checks=[check])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (preset("AdamW", 1e-2), lambda p, **k: torch.optim.AdamW(p, lr=1e-2, **k)),
        (preset("GaLoreAdamW", 1e-2), lambda p, **k: torch.optim.AdamW(p, lr=1e-2, **k)),
        (preset("APOLLO", 1e-2), lambda p, **k: torch.optim.AdamW(p, lr=1e-2, **k)),
        (preset("FRUGAL", 1e-2), lambda p, **k: torch.optim.AdamW(p, lr=1e-2, **k)),
    ],
)
def test_without_a_rank_presets_equal_torch(ours: Any, theirs: Any, weight_decay: float) -> None:
    optimizer_contract(
        lambda p, **k: ours(p, weight_decay=weight_decay, **k),
        equals=lambda p, **k: theirs(p, weight_decay=weight_decay, **k),
        checks=[],
    )


LOW_RANK = sorted(
    {
        name.split()[0]
        for name, make in PRESETS.items()
        if make(  # what takes a rank
            [torch.nn.Parameter(torch.zeros(2, 2))]
        )
        .param_groups[0]
        .get("rank")
    }
)


@pytest.mark.parametrize("name", LOW_RANK)
def test_vectors_and_scalars_of_a_low_rank_group_take_the_plain_rule(name: str) -> None:
    """What has fewer than two dimensions moves as in a group without rank, which equals a full-rank optimizer."""
    both = []
    for keys in ({"rank": 4}, {}):
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((33,), (), (1,), (0,))]
        demanded = {"switch_step": 6} if name == "GoLoreAdamW" else {}
        opt = getattr(lt.optim, name)([{"params": params, **keys}], lr=1e-2, **demanded)
        for t in range(5):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i))
            opt.step()
        assert all("side" not in state for state in opt.state.values())
        both.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_sgd_and_a_whole_index_subspace_equal_torch() -> None:
    optimizer_contract(
        preset("SGD", 0.1),
        equals=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        checks=[],
    )
    # All columns chosen: the subspace is everything, the residual nothing.
    optimizer_contract(
        lambda p: lt.optim.FRUGAL(low_rank(p, rank=1000, update_proj_gap=1000), lr=1e-2, weight_decay=0.0),
        equals=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
        checks=[],
    )


def test_torch_passes_its_own_contract() -> None:
    optimizer_contract(lambda p, **k: torch.optim.AdamW(p, **{"lr": 1e-2, **k}))


class Broken(torch.optim.AdamW):
    """AdamW with one of the faults seen in the field."""

    def __init__(self, params: Any, fault: str, **k: Any) -> None:
        super().__init__(params, **{"lr": 1e-2, **k})
        self.fault = fault
        self.rate = 1e-2
        self.count = 0
        self.means: dict[int, Any] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.fault != "forgets to zero":
            super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        if self.fault == "starts anew when loaded":
            self.state.clear()

    def step(self, closure: Any = None) -> Any:
        if self.fault == "caches the rate":
            for g in self.param_groups:
                g["lr"] = self.rate
        if self.fault == "forgets the loss":
            super().step(closure)
            return None
        if self.fault == "steps where there is no gradient":
            for g in self.param_groups:
                for p in g["params"]:
                    p.data.mul_(1.001)
        if self.fault == "moves what is frozen":
            for g in self.param_groups:
                for p in g["params"]:
                    if not p.requires_grad:
                        p.data.mul_(0.99)
        if self.fault == "counts outside of the state":
            self.count += 1
            for g in self.param_groups:
                for p in g["params"]:
                    p.data.mul_(1.0 - 0.001 * self.count)
        if self.fault == "keeps a mean outside of the state":
            for g in self.param_groups:
                for p in g["params"]:
                    self.means[id(p)] = 0.9 * self.means.get(id(p), 0.0) + 0.1 * p.grad
                    p.data.add_(self.means[id(p)], alpha=-0.01)
        if self.fault == "eats the gradient":
            loss = super().step(closure)
            for g in self.param_groups:
                for p in g["params"]:
                    if p.grad is not None:
                        p.grad.mul_(0.5)
            return loss
        loss = super().step(closure)
        if self.fault == "keeps an object":
            for g in self.param_groups:
                for p in g["params"]:
                    self.state[p]["projector"] = fractions.Fraction(1, 2)
        return loss


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("caches the rate", "scheduler"),
        ("forgets the loss", "closure"),
        ("steps where there is no gradient", "none_gradients"),
        ("counts outside of the state", "resume"),
        ("eats the gradient", "gradients_stay"),
        ("keeps a mean outside of the state", "distributed_checkpoint"),
        ("forgets to zero", "zero_grad"),
        ("starts anew when loaded", "self_reload"),
        ("moves what is frozen", "frozen_parameters"),
        ("", "unknown_keys"),
        ("", "bad_settings"),
    ],
)
def test_the_contract_finds(fault: str, check: str) -> None:
    with pytest.raises(AssertionError, match=check):
        optimizer_contract(lambda p, **k: Broken(p, fault, **k), checks=[check])


def test_the_contract_finds_objects_in_the_state() -> None:
    with pytest.raises(pickle.UnpicklingError):
        optimizer_contract(lambda p, **k: Broken(p, "keeps an object", **k), checks=["state_round_trip"])


def test_the_contract_finds_another_rule() -> None:
    with pytest.raises(AssertionError, match="equals"):
        optimizer_contract(
            lambda p: torch.optim.Adam(p, lr=1e-2), equals=lambda p: torch.optim.SGD(p, lr=1e-2), checks=[]
        )


def test_unknown_checks_are_named() -> None:
    with pytest.raises(lt.LowtideValueError, match="checks"):
        optimizer_contract(PRESETS["AdamW"], checks=["speed"])
