# SPDX-License-Identifier: Apache-2.0
"""What a training loop may expect of any ``torch.optim.Optimizer``, as checks over a factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideValueError
from lowtide.testing import _checks_input as bad
from lowtide.testing import _checks_state as saved
from lowtide.testing._runs import Factory, finite, gradients, moved, parameters, run, same, values


def _learns(make: Factory) -> None:
    """The loss of a small regression falls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 12))
    opt = make(list(model.parameters()))
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
    y = x[:, :12].sin()
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in 60 steps"


def _param_groups(make: Factory) -> None:
    """Each group has its own learning rate, groups can be added, and a parameter is in one of them only."""
    a, b, c = (parameters(((24, 40), (5,)), seed=s) for s in range(3))
    opt = make([{"params": a}, {"params": b, "lr": 0.0}])
    before = [*values(a), *values(b), *values(c)]
    run(opt, [*a, *b], range(2))
    assert moved(before, [*a, *b, *c]) == [True] * 2 + [False] * 4, (
        "a group with lr 0 moved, or one with lr did not"
    )
    opt.add_param_group({"params": c})
    run(opt, [*a, *b, *c], range(2, 4))
    assert moved(before, [*a, *b, *c]) == [True, True, False, False, True, True], (
        "an added group does not train"
    )
    try:
        opt.add_param_group({"params": a})
    except ValueError:
        return
    raise AssertionError("a parameter was accepted into a second group")


def _closure(make: Factory) -> None:
    """``step(closure)`` calls it with gradients enabled and returns its loss."""
    params = parameters(((24, 40),))
    opt = make(params)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = params[0].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    expected = float(params[0].detach().square().sum())
    with torch.no_grad():
        loss: Any = opt.step(closure)  # type: ignore[arg-type]
    assert loss is not None, "step(closure) returned nothing"
    loss = loss.detach() if isinstance(loss, Tensor) else loss
    assert abs(float(loss) - expected) <= 1e-5 * expected, (
        "step(closure) returned something else than the loss"
    )
    assert float(params[0].detach().square().sum()) < expected


def _scheduler(make: Factory) -> None:
    """A scheduler's rate holds from the next step on: nothing may be cached."""
    params = parameters()
    opt = make(params)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: float(t < 2))
    for t in range(4):
        before = values(params)
        gradients(params, t)
        opt.step()
        schedule.step()
        assert all(moved(before, params)) if t < 2 else not any(moved(before, params)), f"at step {t}"


def _tensor_lr(make: Factory) -> None:
    """A learning rate in a tensor is as good as a number."""
    a, b = parameters(), parameters()
    one, other = make(a), make(b)
    for group in other.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    run(one, a, range(3))
    run(other, b, range(3))
    assert same(values(a), values(b))


def _maximize(make: Factory) -> None:
    """``maximize=True`` is the other sign of every gradient, which stays as it is."""
    a, b = parameters(), parameters()
    one, other = make(a), make(b, maximize=True)
    for t in range(6):
        gradients(a, t)
        gradients(b, t, sign=-1.0)
        kept = [p.grad.clone() for p in b if p.grad is not None]
        one.step()
        other.step()
        assert same(kept, [p.grad for p in b]), "the gradient was changed"
    assert same(values(a), values(b))


def _gradients_stay(make: Factory) -> None:
    """A step leaves gradients as they are: full size, same values (clipping and logging read them)."""
    params = parameters()
    opt = make(params)
    gradients(params, 0)
    kept = [p.grad.clone() for p in params if p.grad is not None]
    opt.step()
    assert same(kept, [p.grad for p in params])


def _mixed(make: Factory) -> None:
    """Parameters of many shapes and dtypes together move as each of them alone."""
    together = [*parameters(), *parameters(dtype=torch.bfloat16)]
    alone = [nn.Parameter(v) for v in values(together)]
    one = make([{"params": together, "param_ids": list(range(len(together)))}])
    each = [make([{"params": [p], "param_ids": [i]}]) for i, p in enumerate(alone)]
    for t in range(4):
        gradients(together, t)
        gradients(alone, t)
        one.step()
        for opt in each:
            opt.step()
    assert same(values(together), values(alone))


def _bf16(make: Factory) -> None:
    """bfloat16 parameters stay bfloat16 and finite, and move."""
    params = parameters(dtype=torch.bfloat16)
    opt = make(params)
    before = values(params)
    run(opt, params, range(10))
    assert all(p.dtype == torch.bfloat16 for p in params)
    assert finite(params)
    assert all(moved(before, params)), "a bfloat16 parameter did not move in 10 steps"


def _zero_gradient_first(make: Factory) -> None:
    """A first step with zero gradients, as distributed checkpointing makes, changes nothing and spoils nothing."""
    params = parameters()
    opt = make(params)
    before = values(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    rates = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()
    assert not any(moved(before, params))
    for group, lr in zip(opt.param_groups, rates, strict=True):
        group["lr"] = lr
    run(opt, params, range(3))
    assert finite(params)
    assert all(moved(before, params))


def _named_parameters(make: Factory) -> None:
    """Parameters may come with names, as ``named_parameters()`` gives them."""
    a, b = parameters(), parameters()
    one, other = make(a), make([(f"p{i}", p) for i, p in enumerate(b)])
    run(one, a, range(3))
    run(other, b, range(3))
    assert same(values(a), values(b))


def _hooks(make: Factory) -> None:
    """Step hooks run around each step."""
    params = parameters(((6, 6),))
    opt = make(params)
    calls: list[str] = []
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    run(opt, params, range(2))
    assert calls == ["before", "after"] * 2


#: The checks by name; each takes a factory and raises AssertionError.
OPTIMIZER_CHECKS: dict[str, Callable[[Factory], None]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _learns, _param_groups, _closure, _scheduler, _tensor_lr, _maximize, _gradients_stay, saved.state_round_trip,
        saved.resume, saved.self_reload, saved.distributed_checkpoint, saved.deepcopy, bad.none_gradients,
        bad.frozen_parameters, bad.empty_parameters, bad.sparse_gradients, bad.zero_grad, _named_parameters, _mixed, _bf16,
        _zero_gradient_first, bad.nonfinite, bad.other_shapes, bad.unknown_keys, bad.bad_settings, _hooks,
    )
}  # fmt: skip
#: What torch.optim does not promise itself, left out by default.
_BEYOND_TORCH = ("nonfinite", "other_shapes", "unknown_keys", "bad_settings")


def optimizer_contract(
    make: Factory, *, equals: Factory | None = None, checks: Sequence[str] | None = None
) -> None:
    """Hold an optimizer against everything that training loops, schedulers and checkpoints rely on.

    Args:
        make: ``make(params, **options)`` returns a new optimizer with a learning rate at which 60 steps lower the loss of
            a small regression. ``params`` are tensors or groups as for ``torch.optim``; options are ``maximize``. A low-rank
            method adds its keys there (``rank``...).
        equals: another factory, for degenerate settings: 20 steps must agree to 1e-5 of the weights.
        checks: names from :data:`OPTIMIZER_CHECKS`. Default: all but those that torch's own optimizers fail
            (``nonfinite``: inf and NaN never get into weights; ``other_shapes``: the state of other shapes is refused;
            ``unknown_keys``, ``bad_settings``: groups with them are).

    Raises:
        AssertionError: a check failed; names it and says how.
        LowtideValueError: an unknown check.
    """
    if checks is None:
        checks = [name for name in OPTIMIZER_CHECKS if name not in _BEYOND_TORCH]
    for name in checks:
        if name not in OPTIMIZER_CHECKS:
            raise LowtideValueError(f"checks must be from {', '.join(OPTIMIZER_CHECKS)}, got {name!r}")
        check = OPTIMIZER_CHECKS[name]
        try:
            check(make)
        except AssertionError as error:
            about = (check.__doc__ or "").strip().splitlines()[0]
            raise AssertionError(f"{name}: {about} {error}".strip()) from error
    if equals is not None:
        a, b = parameters(), parameters()
        run(make(a), a, range(20))
        run(equals(b), b, range(20))
        for x, y in zip(a, b, strict=True):
            far = float((x.detach() - y.detach()).norm() / y.detach().norm())
            assert far <= 1e-5, f"equals: a parameter of shape {tuple(x.shape)} differs by {far:.1e}"
