# SPDX-License-Identifier: Apache-2.0
"""What a training loop may expect of any ``torch.optim.Optimizer``, as checks over a factory."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideValueError

#: ``make(params, **options)``: params as torch.optim takes them (tensors or groups), options ``lr`` and ``maximize``.
Factory: TypeAlias = "Callable[..., torch.optim.Optimizer]"

_SHAPES = ((24, 40), (40, 24), (16, 16), (33,), (1, 7), (7, 1), (), (4, 3, 2), (300,))


def _parameters(
    shapes: Sequence[tuple[int, ...]] = _SHAPES, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


def _gradients(params: Iterable[nn.Parameter], t: int, sign: float = 1.0) -> None:
    """A gradient for each parameter, a pure function of its place and ``t``."""
    for i, p in enumerate(params):
        g = torch.Generator().manual_seed(1000 * t + i)
        p.grad = (sign * torch.randn(p.shape, generator=g)).to(p.dtype)


def _values(params: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _moved(before: list[Tensor], params: Iterable[nn.Parameter]) -> list[bool]:
    return [not torch.equal(b, p.detach()) for b, p in zip(before, params, strict=True)]


def _run(opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        _gradients(params, t)
        opt.step()


def _finite(params: Iterable[nn.Parameter]) -> bool:
    return all(bool(p.detach().isfinite().all()) for p in params)


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
    a, b, c = (_parameters(((24, 40), (5,)), seed=s) for s in range(3))
    opt = make([{"params": a}, {"params": b, "lr": 0.0}])
    before = [*_values(a), *_values(b), *_values(c)]
    _run(opt, [*a, *b], range(2))
    assert _moved(before, [*a, *b, *c]) == [True] * 2 + [False] * 4, (
        "a group with lr 0 moved, or one with lr did not"
    )
    opt.add_param_group({"params": c})
    _run(opt, [*a, *b, *c], range(2, 4))
    assert _moved(before, [*a, *b, *c]) == [True, True, False, False, True, True], (
        "an added group does not train"
    )
    try:
        opt.add_param_group({"params": a})
    except ValueError:
        return
    raise AssertionError("a parameter was accepted into a second group")


def _closure(make: Factory) -> None:
    """``step(closure)`` calls it with gradients enabled and returns its loss."""
    params = _parameters(((24, 40),))
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
    params = _parameters()
    opt = make(params)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: float(t < 2))
    for t in range(4):
        before = _values(params)
        _gradients(params, t)
        opt.step()
        schedule.step()
        assert all(_moved(before, params)) if t < 2 else not any(_moved(before, params)), f"at step {t}"


def _tensor_lr(make: Factory) -> None:
    """A learning rate in a tensor is as good as a number."""
    a, b = _parameters(), _parameters()
    one, other = make(a), make(b)
    for group in other.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    _run(one, a, range(3))
    _run(other, b, range(3))
    assert _same(_values(a), _values(b))


def _maximize(make: Factory) -> None:
    """``maximize=True`` is the other sign of every gradient, which stays as it is."""
    a, b = _parameters(), _parameters()
    one, other = make(a), make(b, maximize=True)
    for t in range(6):
        _gradients(a, t)
        _gradients(b, t, sign=-1.0)
        kept = [p.grad.clone() for p in b if p.grad is not None]
        one.step()
        other.step()
        assert _same(kept, [p.grad for p in b]), "the gradient was changed"
    assert _same(_values(a), _values(b))


def _gradients_stay(make: Factory) -> None:
    """A step leaves gradients as they are: full size, same values (clipping and logging read them)."""
    params = _parameters()
    opt = make(params)
    _gradients(params, 0)
    kept = [p.grad.clone() for p in params if p.grad is not None]
    opt.step()
    assert _same(kept, [p.grad for p in params])


def _reloaded(opt: torch.optim.Optimizer, values: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
    file = io.BytesIO()
    torch.save((opt.state_dict(), values), file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    return state, weights


def _state_round_trip(make: Factory) -> None:
    """The state passes through ``torch.save`` and ``torch.load(weights_only=True)`` unchanged."""
    for dtype in (torch.float32, torch.bfloat16):
        params = _parameters(dtype=dtype)
        opt = make(params)
        _run(opt, params, range(3))
        state, _ = _reloaded(opt, [])
        fresh = make(_parameters(dtype=dtype))
        fresh.load_state_dict(state)
        assert _same(fresh.state_dict(), opt.state_dict()), f"the state of {dtype} parameters changed"


def _resume(make: Factory) -> None:
    """A run that was saved, loaded and continued equals the one that was not, bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        whole = _parameters(dtype=dtype)
        opt = make(whole)
        _run(opt, whole, range(5))
        state, weights = _reloaded(opt, _values(whole))
        _run(opt, whole, range(5, 11))
        params = [nn.Parameter(w) for w in weights]
        again = make(params)
        again.load_state_dict(state)
        _run(again, params, range(5, 11))
        assert _same(_values(whole), _values(params)), f"{dtype} parameters differ"


def _deepcopy(make: Factory) -> None:
    """A deep copy of parameters and optimizer goes on alone."""
    params = _parameters()
    opt = make(params)
    _run(opt, params, range(2))
    twin, twin_params = copy.deepcopy((opt, params))
    _run(opt, params, range(2, 5))
    _run(twin, twin_params, range(2, 5))
    assert _same(_values(params), _values(twin_params))


def _none_gradients(make: Factory) -> None:
    """Parameters without a gradient are left alone and get no state."""
    params = _parameters()
    opt = make(params)
    opt.step()
    _gradients(params, 0)
    params[0].grad = params[3].grad = None
    before = _values(params)
    opt.step()
    assert _moved(before, params) == [i not in (0, 3) for i in range(len(params))]
    assert not opt.state.get(params[0])


def _empty_parameters(make: Factory) -> None:
    """Tensors without elements are stepped like the others."""
    params = _parameters(((0,), (0, 5), (5, 0), (6, 6)))
    opt = make(params)
    before = _values(params)
    _run(opt, params, range(3))
    assert _moved(before, params) == [False, False, False, True]


def _sparse_gradients(make: Factory) -> None:
    """A sparse gradient is refused before anything has changed."""
    params = _parameters(((8, 6), (8, 6)))
    opt = make(params)
    _gradients(params, 0)
    params[1].grad = torch.eye(8, 6).to_sparse()
    before = _values(params)
    try:
        opt.step()
    except (RuntimeError, TypeError, ValueError):
        assert not _moved(before, params)[1], "the error came after the parameter had changed"
        return
    raise AssertionError("a sparse gradient was taken without a word")


def _mixed(make: Factory) -> None:
    """Parameters of many shapes and dtypes together move as each of them alone."""
    together = [*_parameters(), *_parameters(dtype=torch.bfloat16)]
    alone = [nn.Parameter(v) for v in _values(together)]
    one = make([{"params": together, "param_ids": list(range(len(together)))}])
    each = [make([{"params": [p], "param_ids": [i]}]) for i, p in enumerate(alone)]
    for t in range(4):
        _gradients(together, t)
        _gradients(alone, t)
        one.step()
        for opt in each:
            opt.step()
    assert _same(_values(together), _values(alone))


def _bf16(make: Factory) -> None:
    """bfloat16 parameters stay bfloat16 and finite, and move."""
    params = _parameters(dtype=torch.bfloat16)
    opt = make(params)
    before = _values(params)
    _run(opt, params, range(10))
    assert all(p.dtype == torch.bfloat16 for p in params)
    assert _finite(params)
    assert all(_moved(before, params)), "a bfloat16 parameter did not move in 10 steps"


def _zero_gradient_first(make: Factory) -> None:
    """A first step with zero gradients, as distributed checkpointing makes, changes nothing and spoils nothing."""
    params = _parameters()
    opt = make(params)
    before = _values(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    rates = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()
    assert not any(_moved(before, params))
    for group, lr in zip(opt.param_groups, rates, strict=True):
        group["lr"] = lr
    _run(opt, params, range(3))
    assert _finite(params)
    assert all(_moved(before, params))


def _nonfinite(make: Factory) -> None:
    """inf or NaN in a gradient leaves the weights finite, by skipping or by an error."""
    params = _parameters(((24, 40), (33,)))
    opt = make(params)
    _run(opt, params, range(2))
    for bad in (float("nan"), float("inf")):
        _gradients(params, 2)
        for p in params:
            assert p.grad is not None
            p.grad.view(-1)[3] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with contextlib.suppress(RuntimeError, ValueError):
                opt.step()
        assert _finite(params), f"{bad} got into the weights"
    _run(opt, params, range(3, 6))
    assert _finite(params), "the state was poisoned"


def _other_shapes(make: Factory) -> None:
    """The state of other shapes is refused, and the optimizer goes on without it."""
    params, others = _parameters(((24, 40), (33,))), _parameters(((24, 41), (34,)))
    opt, other = make(params), make(others)
    _run(opt, params, range(2))
    _run(other, others, range(2))
    kept = copy.deepcopy(other.state_dict())
    try:
        other.load_state_dict(opt.state_dict())
    except (RuntimeError, TypeError, ValueError):
        assert _same(other.state_dict(), kept), "the state was refused but changed"
        return
    raise AssertionError("the state of other shapes was loaded without a word")


def _hooks(make: Factory) -> None:
    """Step hooks run around each step."""
    params = _parameters(((6, 6),))
    opt = make(params)
    calls: list[str] = []
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    _run(opt, params, range(2))
    assert calls == ["before", "after"] * 2


#: The checks by name; each takes a factory and raises AssertionError.
OPTIMIZER_CHECKS: dict[str, Callable[[Factory], None]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _learns, _param_groups, _closure, _scheduler, _tensor_lr, _maximize, _gradients_stay, _state_round_trip, _resume,
        _deepcopy, _none_gradients, _empty_parameters, _sparse_gradients, _mixed, _bf16, _zero_gradient_first, _nonfinite,
        _other_shapes, _hooks,
    )
}  # fmt: skip
#: What torch.optim does not promise itself, left out by default.
_BEYOND_TORCH = ("nonfinite", "other_shapes")


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
            (``nonfinite``: inf and NaN never get into weights; ``other_shapes``: the state of other shapes is refused).

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
        a, b = _parameters(), _parameters()
        _run(make(a), a, range(20))
        _run(equals(b), b, range(20))
        for x, y in zip(a, b, strict=True):
            far = float((x.detach() - y.detach()).norm() / y.detach().norm())
            assert far <= 1e-5, f"equals: a parameter of shape {tuple(x.shape)} differs by {far:.1e}"
