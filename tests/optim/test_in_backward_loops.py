# SPDX-License-Identifier: Apache-2.0
"""Updates inside the backward pass under schedulers, checkpoints, shared weights, broken passes and several ranks."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layerwise_loops import (
    METHODS,
    PARALLEL,
    batch,
    far,
    layerwise,
    loss_of,
    make_model,
    params_of,
    plain,
    same,
    weights,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowtide as lt


@pytest.mark.parametrize("attach", [lambda h: h, lambda h: h.optimizer])
def test_schedulers_attach_to_the_handle_or_its_optimizer(attach: Callable[[Any], Any]) -> None:
    a, b = make_model(), make_model()
    opt = METHODS["galore"](a)
    handle = lt.optim.in_backward(METHODS["galore"], b)
    rates: list[list[float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, step, to in ((a, opt, opt), (b, handle, attach(handle))):
            schedule = torch.optim.lr_scheduler.SequentialLR(
                to,
                [
                    torch.optim.lr_scheduler.LinearLR(to, 0.1, total_iters=3),
                    torch.optim.lr_scheduler.CosineAnnealingLR(to, 10),
                ],
                milestones=[3],
            )
            rates.append([])
            for t in range(8):
                loss_of(model, t).backward()
                step.step()
                schedule.step()
                step.zero_grad()
                rates[-1].append(schedule.get_last_lr()[0])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 6
    assert same(a, b)


def test_plateau_and_one_cycle_schedulers_run() -> None:
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(handle, factor=0.5, patience=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cycle = torch.optim.lr_scheduler.OneCycleLR(handle, 1e-2, total_steps=10, cycle_momentum=False)
        for t in range(3):
            loss_of(model, t).backward()
            handle.step()
            cycle.step()
            plateau.step(1.0)
    assert isinstance(handle, torch.optim.Optimizer)


@pytest.mark.parametrize("method", ["adamw", "galore", "qgalore", "apollo"])
@pytest.mark.parametrize("stop", [7, 8, 9])
@pytest.mark.parametrize("refresh_from", ["all", "first"])
def test_resume_is_bit_for_bit_also_within_a_step(method: str, stop: int, refresh_from: str) -> None:
    """2 passes a step and a refresh every 3 steps: passes 6 and 7 are those of a refresh."""

    def handle_of(model: nn.Module) -> Any:
        return lt.optim.in_backward(METHODS[method], model, accumulate=2, refresh_from=refresh_from)

    def run(model: nn.Module, passes: range) -> None:
        for t in passes:
            loss_of(model, t).backward()

    quantized = method == "qgalore"
    whole, first, second = (make_model(seed, quantized) for seed in (0, 0, 5))
    one, two, three = (handle_of(m) for m in (whole, first, second))
    run(whole, range(13))
    run(first, range(stop))
    file = io.BytesIO()
    torch.save((first.state_dict(), two.state_dict()), file)
    file.seek(0)
    model_state, state = torch.load(file, weights_only=True)
    assert ("in_backward" in state) == bool(stop % 2)
    second.load_state_dict(model_state)
    three.load_state_dict(state)
    run(second, range(stop, 13))
    for handle in (one, three):
        assert handle.passes == 1
        handle.step()
        assert handle.passes == 0
    assert same(whole, second)


def test_a_saved_step_that_does_not_fit_is_refused() -> None:
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, accumulate=2)
    for t in range(3):
        loss_of(model, t).backward()
    saved = handle.state_dict()
    other = lt.optim.in_backward(METHODS["galore"], make_model())
    with pytest.raises(lt.LowtideValueError, match="accumulate"):
        other.load_state_dict(saved)
    broken = copy.deepcopy(saved)
    place = next(iter(broken["in_backward"]["projected"]))
    broken["in_backward"]["projected"][place] = torch.zeros(5, 5)
    fresh = lt.optim.in_backward(METHODS["galore"], make_model(), accumulate=2)
    with pytest.raises(lt.LowtideValueError, match=r"shape \(5, 5\)"):
        fresh.load_state_dict(broken)
    assert not fresh.state
    assert fresh.passes == 0


def test_a_step_of_fewer_passes() -> None:
    """The end of an epoch: step() takes what is there."""
    a, b = make_model(), make_model()
    opt = METHODS["fira"](a)
    handle = lt.optim.in_backward(METHODS["fira"], b, accumulate=4, max_grad_norm=0.05)
    for t in range(3):
        loss_of(a, t).backward()
        loss_of(b, t).backward()
    nn.utils.clip_grad_norm_(params_of(opt), 0.05)
    opt.step()
    handle.step()
    assert same(a, b)
    assert handle.passes == 0


class Tied(nn.Module):
    """A small language model: the embedding is the output head, blocks may be checkpointed."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.Embedding(40, 24), nn.Linear(24, 40, bias=False)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.Tanh()) for _ in range(3))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + (
                block(h)
                if self.how == "plain"
                else checkpoint(block, h, use_reentrant=self.how == "reentrant")
            )
        return (
            self.head(h)
            if self.how == "plain"
            else checkpoint(self.head, h, use_reentrant=self.how == "reentrant")
        )


@pytest.mark.parametrize("how", ["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2}, {"max_grad_norm": 0.1}, {"max_grad_norm": 0.1, "clip": "two_pass"}]
)
def test_tied_weights_and_activation_checkpointing(how: str, options: dict[str, Any]) -> None:
    """The tied weight gets two contributions, from two backward passes where checkpoints are reentrant."""
    a, b = Tied(), Tied(how)
    opt = METHODS["fira"](a)
    handle = lt.optim.in_backward(METHODS["fira"], b, **options)
    n = options.get("accumulate", 1)
    if how == "reentrant" and options.get("clip") == "two_pass":
        pytest.skip("torch: reentrant checkpoints cannot run backward twice")
    for t in range(5):
        for i in range(n):
            x = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(10 * t + i))
            a(x).logsumexp(-1).mean().backward()
            handle.backward(b(x).logsumexp(-1).mean())
        if "max_grad_norm" in options:
            nn.utils.clip_grad_norm_(params_of(opt), 0.1)
        opt.step()
        opt.zero_grad()
        handle.step()
        if (
            how == "reentrant" and n > 1
        ):  # the second step's contributions are added one by one to the first one's
            assert far(a, b, Tied()) < 1e-3
        else:
            assert same(a, b), t


def test_a_module_reused_in_reentrant_checkpoints_is_refused() -> None:
    layer = nn.Linear(8, 8)
    lt.optim.in_backward(lambda m: lt.optim.AdamW(m.parameters()), layer)
    h = torch.ones(2, 8, requires_grad=True)
    for _ in range(2):
        h = checkpoint(layer, h, use_reentrant=True)
    with pytest.raises(lt.LowtideError, match="use_reentrant=False"):
        h.sum().backward()


def test_parameters_without_a_gradient_in_some_passes() -> None:
    """Experts: what the last pass does not reach is updated at its end."""
    a, b = make_model(), make_model()
    opt = METHODS["galore"](a)
    handle = lt.optim.in_backward(METHODS["galore"], b, accumulate=2)
    for t in range(5):
        for model in (a, b):
            loss_of(model, t).backward()
            model[0](batch(t)[0]).square().mean().backward()
        opt.step()
        opt.zero_grad()
        assert all(p.grad is None for p in b.parameters())
        handle.step()
    assert far(a, b, make_model()) < 1e-3


def test_a_broken_backward_pass_is_said() -> None:
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, max_grad_norm=1.0)
    x, _ = batch(0)
    x.requires_grad_(True)
    x.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x).sum().backward()
    with pytest.raises(lt.LowtideError, match="broken off"):
        handle.step()
    handle.zero_grad()
    fresh = make_model()
    assert same(model, fresh)
    layerwise(model, handle, range(2))
    layerwise(fresh, lt.optim.in_backward(METHODS["galore"], fresh, max_grad_norm=1.0), range(2))
    assert same(model, fresh)


@pytest.mark.parametrize("method", ["galore", "grass"])
def test_nonfinite_gradients_in_an_accumulation(method: str) -> None:
    model = make_model()
    handle = lt.optim.in_backward(METHODS[method], model, accumulate=2)
    layerwise(model, handle, range(1), n=2)
    (loss_of(model, 2) * float("inf")).backward()
    with pytest.warns(RuntimeWarning, match="skipped_blocks"):
        loss_of(model, 3).backward()
    assert handle.skipped_blocks > 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    layerwise(model, handle, range(2, 5), n=2)
    strict = lt.optim.in_backward(lambda m: METHODS[method](m, nonfinite="raise"), model, accumulate=2)
    handle.close()
    loss = loss_of(model, 2) * float("inf")
    with pytest.raises(lt.LowtideError, match="inf or NaN"):
        _twice(loss)
    strict.close()


def _twice(loss: Tensor) -> None:
    for _ in range(2):
        loss.backward(retain_graph=True)


def test_groups_can_be_added_and_the_handle_not_copied() -> None:
    model = make_model()
    handle = lt.optim.in_backward(lambda m: lt.optim.AdamW(m[0].parameters()), model)
    handle.add_param_group({"params": list(model[2].parameters())})
    before = weights(model)
    handle.backward(loss_of(model, 0))
    handle.step()
    moved = [k for k, v in weights(model).items() if not torch.equal(v, before[k])]
    assert moved == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with pytest.raises(lt.LowtideTypeError, match="hooks"):
        copy.deepcopy(handle)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": True}, "accumulate"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"max_grad_norm": 1.0, "clip": "value"}, "clip"),
        ({"refresh_from": "last"}, "refresh_from"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(lt.LowtideValueError, match=words):
        lt.optim.in_backward(METHODS["galore"], make_model(), **options)


def test_two_ranks_equal_one_with_both_batches(tmp_path: Path) -> None:
    script = Path(__file__).with_name("layerwise_rank.py")
    ranks = [subprocess.Popen([sys.executable, script, str(rank), tmp_path]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for i, options in enumerate(PARALLEL):
        a, b = (torch.load(tmp_path / f"{i}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(a[k], b[k]) for k in a)
        model, other = make_model(), make_model()
        n = 2 * options.get("accumulate", 1)
        plain(model, METHODS["galore"](model), range(5), n, options.get("max_grad_norm"))
        other.load_state_dict(a)
        assert far(model, other, make_model()) < 1e-3
