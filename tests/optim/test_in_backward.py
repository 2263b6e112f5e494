# SPDX-License-Identifier: Apache-2.0
"""Updates inside the backward pass: with accumulation, clipping, schedulers, checkpoints and shared weights they are those of step()."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowtide as lt
from lowtide.optim import Composed

GAP = 3


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return lt.optim.param_groups(model, rank=4, update_proj_gap=GAP, scale=1.0)


METHODS: dict[str, Callable[..., Composed]] = {
    "adamw": lambda m, **k: lt.optim.AdamW(m.parameters(), lr=1e-2, **k),
    "galore": lambda m, **k: lt.optim.GaLoreAdamW(groups(m), lr=1e-2, **k),
    "qgalore": lambda m, **k: lt.optim.QGaLoreAdamW(groups(m), lr=1e-2, **k),
    "grass": lambda m, **k: lt.optim.GRASSAdamW(groups(m), lr=1e-2, **k),
    "fira": lambda m, **k: lt.optim.FiraAdamW(groups(m), lr=1e-2, **k),
    "frugal": lambda m, **k: lt.optim.FRUGAL(groups(m), lr=1e-2, **k),
    "apollo": lambda m, **k: lt.optim.APOLLO(groups(m), lr=1e-2, **k),
    "ldadam": lambda m, **k: lt.optim.LDAdam(lt.optim.param_groups(m, rank=4), lr=1e-2, **k),
}
SUMS_PROJECTED = ("galore", "qgalore", "grass")
#: Two refreshes. Q-GaLore's are cold: at a third one a direction's sign may hang on the last bit.
STEPS = 2 * GAP


def make_model(seed: int = 0, quantized: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(33, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 17))
    if quantized:
        lt.quant.quantize_model_(model, weights="int8", group=32)
    return model


def batch(t: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 + t)
    x = torch.randn(8, 33, generator=g)
    return x, x[:, :17].sin()


def loss_of(model: nn.Module, t: int) -> Tensor:
    x, y = batch(t)
    return (model(x) - y).square().mean()


def plain(
    model: nn.Module, opt: Composed, steps: range, n: int = 1, limit: float | None = None
) -> list[float]:
    """The loop that in_backward has to equal; returns the norms."""
    norms = []
    for t in steps:
        for i in range(n):
            (loss_of(model, n * t + i) / n).backward()
        if limit is not None:
            norms.append(float(nn.utils.clip_grad_norm_(params_of(opt), limit)))
        opt.step()
        opt.zero_grad()
    return norms


def params_of(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the optimizer's order: a norm of norms depends on it in its last bit."""
    return [p for g in opt.param_groups for p in g["params"]]


def layerwise(model: nn.Module, handle: Any, steps: range, n: int = 1) -> list[float]:
    norms = []
    for t in steps:
        for i in range(n):
            handle.backward(loss_of(model, n * t + i) / n)
        handle.step()
        norms.append(handle.grad_norm)
        assert all(p.grad is None for p in model.parameters())
    return norms


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def far(a: nn.Module, b: nn.Module, start: nn.Module) -> float:
    """How far apart, relative to the way walked."""
    way = [(x - y, x - z) for x, y, z in zip(a.parameters(), b.parameters(), start.parameters(), strict=True)]
    return max(float((d.norm() / w.norm()).detach()) for d, w in way)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantized", [False, True])
def test_accumulation_equals_one_step_on_the_sum(method: str, quantized: bool) -> None:
    """Bit for bit where whole gradients add up. Projected ones are summed after their product instead of before: float
    rounding, which Adam's first steps (m / sqrt(v) near zero gradients) enlarge; INT8 weights may then round to a neighbour."""
    a, b = make_model(quantized=quantized), make_model(quantized=quantized)
    plain(a, METHODS[method](a), range(STEPS), n=4)
    layerwise(b, lt.optim.in_backward(METHODS[method], b, accumulate=4), range(STEPS), n=4)
    if method not in SUMS_PROJECTED:
        assert same(a, b)
    elif quantized:
        for x, y in zip(a.modules(), b.modules(), strict=True):
            if isinstance(x, lt.quant.Linear):
                assert float((x.dequantize() - y.dequantize()).norm() / x.dequantize().norm()) < 2e-3
    else:
        assert far(a, b, make_model()) < 1e-3


def test_four_small_batches_equal_one_big() -> None:
    a, b = make_model(), make_model()
    opt = METHODS["galore"](a)
    handle = lt.optim.in_backward(METHODS["galore"], b, accumulate=4)
    for t in range(7):
        x, y = (torch.cat(parts) for parts in zip(*(batch(4 * t + i) for i in range(4)), strict=True))
        (a(x) - y).square().mean().backward()
        opt.step()
        opt.zero_grad()
        layerwise(b, handle, range(t, t + 1), n=4)
    assert far(a, b, make_model()) < 1e-3


@pytest.mark.parametrize("refresh_from", ["all", "first"])
def test_where_gradients_are_kept_between_passes(refresh_from: str) -> None:
    """Projected while the subspace stays; whole, or already projected, in the step that replaces it."""
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, accumulate=2, refresh_from=refresh_from)
    matrices = [m for m in model if isinstance(m, nn.Linear)]
    whole = sum(4 * m.weight.numel() for m in matrices)
    biases = sum(4 * m.bias.numel() for m in matrices)
    projected = sum(4 * 4 * max(m.weight.shape) for m in matrices)
    for t in range(2 * GAP):
        handle.zero_grad()
        loss_of(model, 2 * t).backward()
        kept = handle.state_bytes()
        if refresh_from == "all" and t % GAP == 0:
            assert (kept["kept_projected"], kept["kept_whole"]) == (0, whole + biases)
        else:
            assert (kept["kept_projected"], kept["kept_whole"]) == (projected, biases)
        loss_of(model, 2 * t + 1).backward()
        handle.step()
        peak = handle.state_bytes()["gradients"]
        if refresh_from == "first" or t % GAP:
            assert peak <= projected + biases + 4 * 64 * 64
        else:
            assert peak > whole
        assert handle.optimizer.state[matrices[0].weight]["step"] == t + 1
        assert handle.optimizer.state[matrices[0].weight]["refreshes"] == t // GAP + 1


def test_a_subspace_found_in_the_first_pass_is_that_of_its_gradient() -> None:
    model, twin = make_model(), make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, accumulate=3, refresh_from="first")
    layerwise(model, handle, range(1), n=3)
    opt = METHODS["galore"](twin)
    (loss_of(twin, 0) / 3).backward()
    opt.step()
    assert torch.equal(opt.state[twin[0].weight]["basis"], handle.optimizer.state[model[0].weight]["basis"])
    losses = [float(loss_of(model, 0).detach())]
    layerwise(model, handle, range(1, 40), n=3)
    losses.append(float(loss_of(model, 0).detach()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", ["exact", "two_pass"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_exact_clipping_equals_clip_grad_norm(method: str, clip: str, accumulate: int) -> None:
    """Bit for bit where gradients wait at full size; scaling a projection instead of what is projected differs by rounding."""
    if clip == "two_pass" and accumulate > 1:
        with pytest.raises(lt.LowtideValueError, match="accumulate is 3"):
            lt.optim.in_backward(METHODS[method], make_model(), accumulate=3, max_grad_norm=0.1, clip=clip)
        return
    a, b = make_model(), make_model()
    want = plain(a, METHODS[method](a), range(STEPS), accumulate, limit=0.1)
    handle = lt.optim.in_backward(METHODS[method], b, accumulate=accumulate, max_grad_norm=0.1, clip=clip)
    got = layerwise(b, handle, range(STEPS), accumulate)
    assert min(want) > 0.1, "nothing was clipped"
    if clip == "two_pass" or accumulate > 1 or method not in SUMS_PROJECTED:
        assert want == got
        assert same(a, b)
    else:
        assert got == pytest.approx(want, rel=1e-4)
        assert far(a, b, make_model()) < 1e-3


def test_gradients_that_wait_for_their_norm_wait_projected() -> None:
    model = make_model()
    handle = lt.optim.in_backward(METHODS["galore"], model, max_grad_norm=1.0)
    layerwise(model, handle, range(1))
    handle.zero_grad()
    layerwise(model, handle, range(1, 2))
    matrices = [m for m in model if isinstance(m, nn.Linear)]
    projected = sum(4 * 4 * max(m.weight.shape) + 4 * m.bias.numel() for m in matrices)
    assert handle.state_bytes()["gradients"] < projected + 4 * 64 * 64


def test_clipping_by_the_norm_of_the_step_before() -> None:
    a, b = make_model(), make_model()
    opt = lt.optim.SGD(a.parameters(), lr=0.1, momentum=0.0)
    handle = lt.optim.in_backward(
        lt.optim.SGD(b.parameters(), lr=0.1, momentum=0.0), b, max_grad_norm=0.1, clip="previous"
    )
    before: float | None = None
    for t in range(5):
        loss_of(a, t).backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in a.parameters()]))
        for p in a.parameters():
            limit = float(p.grad.norm()) if before is None else before
            p.grad *= min(1.0, 0.1 / (limit + 1e-6))
        opt.step()
        opt.zero_grad()
        before = norm
        layerwise(b, handle, range(t, t + 1))
        assert handle.grad_norm == pytest.approx(norm, rel=1e-5)
    assert far(a, b, make_model()) < 1e-5


def test_two_pass_clipping_refuses_a_plain_backward() -> None:
    model = make_model()
    lt.optim.in_backward(METHODS["galore"], model, max_grad_norm=1.0, clip="two_pass")
    before = make_model()
    with pytest.raises(lt.LowtideError, match=r"handle\.backward"):
        loss_of(model, 0).backward()
    assert same(model, before)


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


PARALLEL = ({"accumulate": 2}, {"max_grad_norm": 0.1})


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for i, options in enumerate(PARALLEL):
        model = make_model()
        handle = lt.optim.in_backward(
            METHODS["galore"], model, process_group=torch.distributed.group.WORLD, **options
        )
        n = options.get("accumulate", 1)
        for t in range(2 * 5 * n):
            if t % 2 == rank:
                handle.backward(loss_of(model, t) / n)
        torch.save(weights(model), f"{folder}/{i}{rank}.pt")
    with pytest.raises(lt.LowtideValueError, match="DistributedDataParallel"):
        lt.optim.in_backward(METHODS["galore"], nn.parallel.DistributedDataParallel(make_model()))
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_with_both_batches(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    for i, options in enumerate(PARALLEL):
        a, b = (torch.load(tmp_path / f"{i}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(a[k], b[k]) for k in a)
        model, other = make_model(), make_model()
        n = 2 * options.get("accumulate", 1)
        plain(model, METHODS["galore"](model), range(5), n, options.get("max_grad_norm"))
        other.load_state_dict(a)
        assert far(model, other, make_model()) < 1e-3
