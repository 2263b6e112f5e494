# SPDX-License-Identifier: Apache-2.0
"""Checks of an optimizer: what is saved, loaded and copied."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.testing._runs import Factory, parameters, run, same, values


def reloaded(opt: torch.optim.Optimizer, values: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
    file = io.BytesIO()
    torch.save((opt.state_dict(), values), file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    return state, weights


def state_round_trip(make: Factory) -> None:
    """The state passes through ``torch.save`` and ``torch.load(weights_only=True)`` unchanged."""
    for dtype in (torch.float32, torch.bfloat16):
        params = parameters(dtype=dtype)
        opt = make(params)
        run(opt, params, range(3))
        state, _ = reloaded(opt, [])
        fresh = make(parameters(dtype=dtype))
        fresh.load_state_dict(state)
        assert same(fresh.state_dict(), opt.state_dict()), f"the state of {dtype} parameters changed"


def resume(make: Factory) -> None:
    """A run that was saved, loaded and continued equals the one that was not, bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        whole = parameters(dtype=dtype)
        opt = make(whole)
        run(opt, whole, range(5))
        state, weights = reloaded(opt, values(whole))
        run(opt, whole, range(5, 11))
        params = [nn.Parameter(w) for w in weights]
        again = make(params)
        again.load_state_dict(state)
        run(again, params, range(5, 11))
        assert same(values(whole), values(params)), f"{dtype} parameters differ"


def deepcopy(make: Factory) -> None:
    """A deep copy of parameters and optimizer goes on alone."""
    params = parameters()
    opt = make(params)
    run(opt, params, range(2))
    twin, twin_params = copy.deepcopy((opt, params))
    run(opt, params, range(2, 5))
    run(twin, twin_params, range(2, 5))
    assert same(values(params), values(twin_params))


def self_reload(make: Factory) -> None:
    """Loading its own state, before the first step or later, changes nothing (accelerate does so in ``prepare``)."""
    whole, params = parameters(), parameters()
    opt, again = make(whole), make(params)
    for t in range(5):
        again.load_state_dict(again.state_dict())
        run(opt, whole, range(t, t + 1))
        run(again, params, range(t, t + 1))
    assert same(values(whole), values(params))


def distributed_checkpoint(make: Factory) -> None:
    """The state by parameter names, as torch.distributed.checkpoint saves it, goes on in a fresh optimizer."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def model_of(params: list[nn.Parameter]) -> nn.Module:
        model = nn.Module()
        for i, p in enumerate(params):
            model.register_parameter(f"p{i}", p)
        return model

    whole = parameters(((24, 40), (40, 24), (33,), (), (0, 5)))
    opt = make(whole)
    run(opt, whole, range(5))
    state = copy.deepcopy(get_optimizer_state_dict(model_of(whole), opt))
    params = [nn.Parameter(v) for v in values(whole)]
    again = make(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_optimizer_state_dict(model_of(params), again, state)
    assert same(values(whole), values(params)), "loading moved a parameter"
    run(opt, whole, range(5, 9))
    run(again, params, range(5, 9))
    assert same(values(whole), values(params))
