# SPDX-License-Identifier: Apache-2.0
"""States of bitsandbytes and torchao: from committed ones (golden/make.py wrote them), and through the real packages."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lowtide as lt

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("lowtide_golden_make", GOLDEN / "make.py")
assert _spec is not None
assert _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

LR = golden.LR
BNB = {
    "adamw8bit": (lambda ps: lt.optim.AdamW8bit(ps, lr=LR), "AdamW8bit", "adam"),
    "lion8bit": (lambda ps: lt.optim.Lion8bit(ps, lr=LR), "Lion8bit", "lion"),
    "sgd8bit": (lambda ps: lt.optim.SGD8bit(ps, lr=LR, momentum=0.9), "SGD8bit", "sgd"),
}
AO = {
    "torchao8": lambda ps: lt.optim.AdamW8bit(ps, lr=LR),
    "torchao4": lambda ps: lt.optim.AdamW4bit(ps, lr=LR),
}
GROUPS = {
    "adamw8bit": {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    "lion8bit": {"lr": LR, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0},
    "sgd8bit": {"lr": LR, "betas": (0.9, 0), "eps": 0.0, "weight_decay": 0},
    "torchao8": {"lr": torch.tensor(LR), "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False},
}  # fmt: skip
GROUPS["torchao4"] = GROUPS["torchao8"]


def saved(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state dict as its package gave it (torchao's tensors as objects with the same fields), and all arrays."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files}
    state: dict[int, dict[str, Any]] = {}
    for key, value in arrays.items():
        index, _, part = key.partition(".")
        if not index.isdigit():
            continue
        entry = state.setdefault(int(index), {"step": golden.STEPS})
        moment, _, field = part.partition(".")
        if field:
            entry.setdefault(moment, types.SimpleNamespace())
            setattr(entry[moment], field, value)
        elif name in BNB:
            entry.setdefault("__bnb_optimizer_quant_state__", {})[part] = value
        else:
            entry[part] = value
    return {"state": state, "param_groups": [{**GROUPS[name], "params": list(state)}]}, arrays


def convert(name: str, source: Any) -> dict[str, Any]:
    return (
        lt.optim.from_bitsandbytes(source, rule=BNB[name][2])
        if name in BNB
        else lt.optim.from_torchao(source)
    )


@pytest.mark.parametrize("name", [*BNB, *AO])
def test_training_goes_on_where_the_other_library_stopped(name: str) -> None:
    source, arrays = saved(name)
    params = [torch.nn.Parameter(arrays[f"before.{i}"].clone()) for i in source["state"]]
    opt = (BNB[name][0] if name in BNB else AO[name])(params)
    opt.load_state_dict(convert(name, source))
    golden.step(opt, params, golden.STEPS + 1)
    for i, p in enumerate(params):
        want, before = arrays[f"after.{i}"], arrays[f"before.{i}"]
        moved = float((want - before).norm())
        # The same codes and the same formula: what is left is float32 rounding of the weights and the moments.
        assert float((p.detach() - want).norm()) <= 2e-5 * moved, i


def same_codes(name: str, a: Any, arrays: dict[str, Tensor]) -> int:
    """Compare an exported state dict to the golden arrays; counts the coded moments."""
    coded = 0
    for index, entry in a["state"].items():
        assert int(entry["step"]) == golden.STEPS
        flat = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
        for part, value in flat.items():
            if part in ("step", "__bnb_optimizer_quant_state__"):
                continue
            if hasattr(value, "codes"):
                coded += 1
                for field in ("codes", "scale", "qmap"):
                    got, want = getattr(value, field), arrays[f"{index}.{part}.{field}"]
                    assert got.dtype == want.dtype
                    assert torch.equal(got, want), (index, part, field)
            else:
                coded += value.dtype == torch.uint8
                assert torch.equal(value, arrays[f"{index}.{part}"]), (index, part)
    return coded


@pytest.mark.parametrize("name", BNB)
def test_bitsandbytes_states_survive_the_round_trip_bit_for_bit(name: str) -> None:
    source, arrays = saved(name)
    opt = BNB[name][0](golden.parameters("bitsandbytes"))
    opt.load_state_dict(convert(name, source))
    assert same_codes(name, lt.optim.to_bitsandbytes(opt), arrays) == (2 if name == "adamw8bit" else 1)


@pytest.mark.parametrize("signed", [True, False])
def test_the_maps_are_the_same_256_values(signed: bool) -> None:
    arrays = saved("adamw8bit")[1]
    theirs = arrays["0.qmap1" if signed else "0.qmap2"]
    codes = torch.arange(256, dtype=torch.uint8)[None]
    name = "dynamic8" if signed else "dynamic8_unsigned"
    ours = lt.ops.dequantize_map(codes, torch.ones(1, 1), map=name, group=256, cols=256)[0]
    assert torch.allclose(ours, theirs, rtol=1.5e-7, atol=0)
    assert torch.equal(lt.optim.convert.dynamic_map(8, signed=signed), theirs)
    nibbles = saved("torchao4")[1]["0.exp_avg.qmap" if signed else "0.exp_avg_sq.qmap"]
    assert torch.equal(lt.optim.convert.dynamic_map(4, signed=signed), nibbles)


def peer(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install --no-deps -r requirements/bench.txt")
    return importlib.import_module(f"{name}.optim")


@pytest.mark.parametrize("name", BNB)
def test_through_the_real_bitsandbytes(name: str) -> None:
    bnb = peer("bitsandbytes")
    make, theirs, _ = BNB[name]
    options = {"momentum": 0.9} if name == "sgd8bit" else {}
    params, others = golden.parameters("bitsandbytes"), golden.parameters("bitsandbytes")
    a = getattr(bnb, theirs)(params, lr=LR, **options)
    for number in (1, 2):
        golden.step(a, params, number)
    b = make(others)
    b.load_state_dict(lt.optim.from_bitsandbytes(a))
    back = getattr(bnb, theirs)(others, lr=LR, **options)
    back.load_state_dict(lt.optim.to_bitsandbytes(b))
    for p, q in zip(params, others, strict=True):
        with torch.no_grad():
            q.copy_(p)
    golden.step(a, params, 3)
    golden.step(back, others, 3)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("name", AO)
def test_through_the_real_torchao(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ao = peer("torchao")
    monkeypatch.setattr(torch, "compile", lambda f=None, **_: f or (lambda g: g))
    cls = ao.AdamW8bit if name == "torchao8" else ao.AdamW4bit
    params, others = golden.parameters("torchao"), golden.parameters("torchao")
    a = cls(params, lr=LR)
    for number in (1, 2):
        golden.step(a, params, number)
    b = AO[name](others)
    b.load_state_dict(lt.optim.from_torchao(a))
    exported = lt.optim.to_torchao(b)
    assert same_codes(name, exported, saved(name)[1]) == 2
    back = cls(others, lr=LR)
    back.load_state_dict(exported)
    for p, q in zip(params, others, strict=True):
        with torch.no_grad():
            q.copy_(p)
    golden.step(a, params, 3)
    golden.step(back, others, 3)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_stepped_optimizer_exports_odd_sizes_by_value() -> None:
    peer("torchao")
    for make in AO.values():
        params = golden.parameters("torchao")
        opt = make(params)
        golden.step(opt, params, 1)
        odd = lt.optim.to_torchao(opt)["state"][1]["exp_avg"]
        assert type(odd) is Tensor
        assert torch.allclose(odd, 0.1 * params[1].grad, atol=0.012)  # an absmax of 0.04, in 4 bits at worst


def wrapped(source: dict[str, Any]) -> dict[str, Any]:
    return source["state"][0]["__bnb_optimizer_quant_state__"]


def foreign_map(s: dict[str, Any]) -> None:
    wrapped(s)["qmap1"] = torch.linspace(-1, 1, 256)


def other_blocks(s: dict[str, Any]) -> None:
    wrapped(s)["absmax2"] = wrapped(s)["absmax2"][:3]


def no_codes(s: dict[str, Any]) -> None:
    wrapped(s)["absmax1"] = None


def no_second(s: dict[str, Any]) -> None:
    del wrapped(s)["state2"]


def amsgrad(s: dict[str, Any]) -> None:
    s["param_groups"][0]["amsgrad"] = True


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (foreign_map, "state1 of parameter 0 is not the signed 8-bit dynamic map"),
        (other_blocks, "only blocks of 256"),
        (no_codes, "scales of state1"),
        (no_second, "2 moments"),
        (amsgrad, "amsgrad"),
    ],
)
def test_what_cannot_be_converted_is_refused(spoil: Any, words: str) -> None:
    source = copy.deepcopy(saved("adamw8bit")[0])
    spoil(source)
    with pytest.raises(lt.LowtideError, match=words):
        lt.optim.from_bitsandbytes(source)


def test_other_sources_are_refused() -> None:
    lion = saved("lion8bit")[0]
    with pytest.raises(lt.LowtideValueError, match="rule must be"):
        lt.optim.from_bitsandbytes(lion)
    with pytest.raises(lt.LowtideTypeError, match="state_dict"):
        lt.optim.from_torchao([1])
    sgd = saved("sgd8bit")[0]
    sgd["param_groups"][0]["weight_decay"] = 0.1
    with pytest.raises(lt.LowtideValueError, match="coupled"):
        lt.optim.from_bitsandbytes(sgd, rule="sgd")
    blocks = saved("torchao8")[0]
    blocks["state"][0]["exp_avg"].scale = torch.ones(4)
    with pytest.raises(lt.LowtideValueError, match="blocks of 256"):
        lt.optim.from_torchao(blocks)
    p = torch.nn.Parameter(torch.zeros(64, 64))
    with pytest.raises(lt.LowtideValueError, match="rules"):
        lt.optim.to_bitsandbytes(lt.optim.AdaBelief8bit([p]))
    with pytest.raises(lt.LowtideValueError, match="8 bits, got 4"):
        lt.optim.to_bitsandbytes(lt.optim.AdamW4bit([p]))
    with pytest.raises(lt.LowtideTypeError, match=r"lowtide\.optim"):
        lt.optim.to_bitsandbytes(torch.optim.SGD([p]))
    low = lt.optim.GaLoreAdamW8bit([{"params": [p], "rank": 2}])
    p.grad = torch.ones(64, 64)
    low.step()
    with pytest.raises(lt.LowtideValueError, match="subspace"):
        lt.optim.to_bitsandbytes(low)
