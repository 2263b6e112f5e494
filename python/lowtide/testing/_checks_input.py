# SPDX-License-Identifier: Apache-2.0
"""Checks of an optimizer: gradients and settings that are missing, empty or bad."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from typing import Any

import torch

from lowtide.testing._runs import Factory, finite, gradients, moved, parameters, run, same, values


def none_gradients(make: Factory) -> None:
    """Parameters without a gradient are left alone and get no state."""
    params = parameters()
    opt = make(params)
    opt.step()
    gradients(params, 0)
    params[0].grad = params[3].grad = None
    before = values(params)
    opt.step()
    assert moved(before, params) == [i not in (0, 3) for i in range(len(params))]
    assert not opt.state.get(params[0])


def empty_parameters(make: Factory) -> None:
    """Tensors without elements are stepped like the others."""
    params = parameters(((0,), (0, 5), (5, 0), (6, 6)))
    opt = make(params)
    before = values(params)
    run(opt, params, range(3))
    assert moved(before, params) == [False, False, False, True]


def sparse_gradients(make: Factory) -> None:
    """A sparse gradient is refused before anything has changed."""
    params = parameters(((8, 6), (8, 6)))
    opt = make(params)
    gradients(params, 0)
    params[1].grad = torch.eye(8, 6).to_sparse()
    before = values(params)
    try:
        opt.step()
    except (RuntimeError, TypeError, ValueError):
        assert not moved(before, params)[1], "the error came after the parameter had changed"
        return
    raise AssertionError("a sparse gradient was taken without a word")


def nonfinite(make: Factory) -> None:
    """inf or NaN in a gradient leaves the weights finite, by skipping or by an error."""
    params = parameters(((24, 40), (33,)))
    opt = make(params)
    run(opt, params, range(2))
    for bad in (float("nan"), float("inf")):
        gradients(params, 2)
        for p in params:
            assert p.grad is not None
            p.grad.view(-1)[3] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with contextlib.suppress(RuntimeError, ValueError):
                opt.step()
        assert finite(params), f"{bad} got into the weights"
    run(opt, params, range(3, 6))
    assert finite(params), "the state was poisoned"


def other_shapes(make: Factory) -> None:
    """The state of other shapes is refused, and the optimizer goes on without it."""
    params, others = parameters(((24, 40), (33,))), parameters(((24, 41), (34,)))
    opt, other = make(params), make(others)
    run(opt, params, range(2))
    run(other, others, range(2))
    kept = copy.deepcopy(other.state_dict())
    try:
        other.load_state_dict(opt.state_dict())
    except (RuntimeError, TypeError, ValueError):
        assert same(other.state_dict(), kept), "the state was refused but changed"
        return
    raise AssertionError("the state of other shapes was loaded without a word")


def frozen_parameters(make: Factory) -> None:
    """A parameter that does not require gradients may be in a group and stays put."""
    params = parameters(((24, 40), (33,), (16, 16)))
    params[1].requires_grad_(False)
    opt = make(params)
    before = values(params)
    for t in range(2):
        gradients(params, t)
        params[1].grad = None
        opt.step()
    assert moved(before, params) == [True, False, True]


def zero_grad(make: Factory) -> None:
    """``zero_grad`` drops gradients, or zeros them in place."""
    params = parameters(((24, 40), (33,)))
    opt = make(params)
    gradients(params, 0)
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params), "set_to_none=False"
    opt.zero_grad()
    assert all(p.grad is None for p in params)


def unknown_keys(make: Factory) -> None:
    """A group key that nothing reads is refused, and nothing has changed."""
    _refuses(make, [{"learning_rate_of_this_group": 1e-3}, {"weight_deacy": 0.1}])


def bad_settings(make: Factory) -> None:
    """Rates, decays and ranks that make no sense are refused in groups, and nothing has changed."""
    bad: list[dict[str, Any]] = [
        {"lr": -1e-3},
        {"lr": math.nan},
        {"weight_decay": -0.1},
        {"weight_decay": math.inf},
    ]
    if any("rank" in group for group in make(parameters()).param_groups):
        bad += [{"rank": r} for r in (0, -1, 1.5, math.nan, "many", True, None)]
        bad += [{"rank": 4, "update_proj_gap": 0}, {"rank": 4, "scale": -1.0}, {"rank": 4, "proj_type": "up"}]
    _refuses(make, bad)


def _refuses(make: Factory, groups: list[dict[str, Any]]) -> None:
    params, more = parameters(((24, 40), (33,))), parameters(((16, 16),))
    opt = make(params)
    run(opt, params, range(2))
    before, state = values([*params, *more]), copy.deepcopy(opt.state_dict())
    for group in groups:
        try:
            opt.add_param_group({"params": more, **group})
        except (TypeError, ValueError):
            assert same(opt.state_dict(), state), f"{group} was refused but left something behind"
            continue
        raise AssertionError(f"{group} was taken without a word")
    run(opt, params, range(2, 4))
    assert moved(before, [*params, *more]) == [True, True, False]
