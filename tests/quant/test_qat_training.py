# SPDX-License-Identifier: Apache-2.0
"""What runs around the optimizer's step, and that training through the estimators beats rounding afterwards."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant import qat

# ---- confidence-guided annealing


def statsq_free(w: torch.Tensor, bits: int, boundary: float) -> torch.Tensor:
    """The published rule, level by level, in float64."""
    w = w.double()
    n = 2 ** (bits - 1)
    x = (w / (2 * w.abs().mean(1, keepdim=True))).clamp(-1, 1 - 1e-6)
    t = x * n - 0.5
    free = torch.zeros_like(t, dtype=torch.bool)
    for i in range(-n, n - 1):
        free |= (t - i >= 0.5 - boundary) & (t - i <= 0.5 + boundary)
    return free


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=2e-4, weight_decay=0.5),
    ],
)
def test_annealing_freezes_all_but_the_undecided(make: Callable[..., torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    layer = qat.attach_(nn.Linear(64, 32), qat.StatsQ, bits=3)
    (w,) = qat.latent_weights(layer)
    opt = make(layer.parameters())
    x, y = torch.randn(16, 64), torch.randn(16, 32)

    def step() -> None:
        opt.zero_grad()
        (layer(x) - y).square().mean().backward()
        opt.step()

    before = w.detach().clone()
    for _ in range(3):  # momentum and Adam's states are full
        step()
    assert bool((w != before).all())

    cga = qat.ConfidenceAnnealing(opt, qat.latent_weights(layer), boundary=0.05)
    bias = layer.bias.detach().clone()
    for _ in range(5):
        before = w.detach().clone()
        free = statsq_free(before, 3, 0.05)
        step()
        assert cga.free == int(free.sum())
        assert 0 < cga.free < w.numel() // 5
        assert torch.equal(w[~free], before[~free])  # bit for bit, in spite of decay and momentum
        assert not torch.equal(w[free], before[free])
    assert not torch.equal(layer.bias, bias)
    cga.remove()
    before = w.detach().clone()
    step()
    assert bool((w != before).all())


def test_a_clipped_weight_is_not_undecided() -> None:
    q = qat.StatsQ(2)
    w = torch.tensor([[-4.0, 4.0, 0.01, -0.01, 0.0, 0.0, 0.0, 0.0]])  # s = 2: x = -1 and 1 at the ends
    assert q.position(w)[0, 0] == -2.5  # half an integer, but there is no level below -2
    free = qat.near_boundary(q.position(w), 0.02, *q.level_range)
    assert free.tolist() == [[False, False, True, True, True, True, True, True]]
    lsq = qat.LSQ(w, bits=3)
    with torch.no_grad():
        lsq.scale.fill_(1.0)
    w = torch.tensor([[-9.0, -4.0, -3.5, 2.5, 2.49, 2.4, 3.0, 9.0]])
    free = qat.near_boundary(lsq.position(w), 0.02, *lsq.level_range)
    assert free.tolist() == [[False, False, True, True, True, False, False, False]]


# ---- oscillation


def test_the_tracker_counts_reversals_and_freezes() -> None:
    tracker = qat.OscillationTracker((4,), momentum=0.5, threshold=0.7)
    rows = [  # oscillates each step; rises; rests; oscillates with pauses
        [0, 0, 5, 0],
        [1, 1, 5, 1],
        [0, 2, 5, 1],
        [1, 3, 5, 0],
        [0, 4, 5, 0],
    ]
    frequency = [0.0] * 4
    last = [0] * 4
    for k, row in enumerate(rows):
        tracker.update(torch.tensor(row, dtype=torch.float32))
        for j in range(4):
            d = row[j] - rows[k - 1][j] if k else 0
            frequency[j] = 0.5 * (d * last[j] < 0) + 0.5 * frequency[j]
            last[j] = (d > 0) - (d < 0) or last[j]
    assert tracker.frequency.tolist() == frequency
    assert tracker.count.tolist() == [3, 0, 0, 1]
    assert tracker.frozen.tolist() == [True, False, False, False]
    # Frozen at the fourth step, f = 3/4. The EMA before it, of 0, 1, 0 with m = 1/2: 0, 1/2, 1/4, rounds to 0.
    assert tracker.frozen_level.tolist()[0] == 0
    assert tracker.update(torch.tensor([9.0, 9.0, 9.0, 9.0])).tolist() == [0, 9, 9, 9]

    other = qat.OscillationTracker((4,), momentum=0.5, threshold=0.7)
    file = io.BytesIO()
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    levels = torch.tensor([3.0, 8.0, 9.0, 10.0])
    assert torch.equal(tracker.update(levels), other.update(levels))
    assert torch.equal(tracker.frequency, other.frequency)


def test_oscillating_weights_are_held_at_their_level() -> None:
    layer = qat.attach_(nn.Linear(4, 1, bias=False), qat.LSQ, bits=4, per_channel=False)
    ((w, q),) = qat.latent_weights(layer).items()
    with torch.no_grad():
        q.scale.fill_(1.0)
        w.copy_(torch.tensor([[0.45, 0.45, 2.0, -3.0]]))
    opt = torch.optim.SGD([w], lr=1.0)
    freeze = qat.FreezeOscillating(opt, qat.latent_weights(layer), momentum=0.2, threshold=0.5)
    for step in range(20):
        w.grad = torch.tensor([[0.1 if step % 2 else -0.1, 0.0, -0.01, 0.0]])
        opt.step()
    tracker = freeze.trackers[w]
    assert tracker.frozen.tolist() == [[True, False, False, False]]
    assert freeze.frozen == 1
    assert w[0, 0].item() in (0.0, 1.0)
    assert w[0, 2].item() == pytest.approx(2.2)
    freeze.remove()
    w.grad = torch.ones_like(w)
    opt.step()
    assert w[0, 0].item() in (-1.0, 0.0)


# ---- GAQAT


def test_scales_with_little_disorder_lose_their_task_gradient_for_a_window() -> None:
    scales = [torch.ones(3, 1), torch.ones(())]
    freeze = qat.GradientConflictFreeze(scales, window=5, threshold=0.5)
    signs = torch.tensor([[1, 1, 1, 1, 1], [1, -1, 1, -1, 1], [1, 0, -1, 1, 1]], dtype=torch.float32)
    flat = [torch.full((3, 1), 10.0), torch.tensor(10.0)]
    for k in range(5):
        task = [signs[:, k : k + 1], torch.tensor(1.0)]
        got = freeze.combine(task, flat)
        assert torch.equal(got[0], task[0] + 10)  # nothing is frozen in the first window
    # Flips over four pairs of steps; the zero keeps the sign before it.
    assert freeze.disorder[0].flatten().tolist() == [0.0, 1.0, 0.5]
    assert freeze.frozen[0].flatten().tolist() == [True, False, False]
    assert bool(freeze.frozen[1])
    state = freeze.state_dict()
    other = qat.GradientConflictFreeze(scales, window=5, threshold=0.5)
    other.load_state_dict(state)
    for k in range(5):
        task = [torch.full((3, 1), 2.0), torch.tensor(2.0 * (-1) ** k)]
        got = freeze.combine(task, flat)
        assert [t.tolist() for t in other.combine(task, flat)] == [t.tolist() for t in got]
        assert got[0].flatten().tolist() == [10.0, 12.0, 12.0]
        assert float(got[1]) == 10.0
    assert freeze.frozen[0].flatten().tolist() == [True] * 3
    assert not bool(freeze.frozen[1])
    freeze.apply_(task, flat)
    assert scales[0].grad.flatten().tolist() == [10.0] * 3


def test_the_mirror_images() -> None:
    scale = torch.ones(2)
    freeze = qat.GradientConflictFreeze([scale], window=2, threshold=0.5, freeze="flat", when="above")
    freeze.combine([torch.tensor([1.0, 1.0])], [torch.ones(2)])
    freeze.combine([torch.tensor([-1.0, 1.0])], [torch.ones(2)])
    assert freeze.combine([torch.tensor([3.0, 3.0])], [torch.ones(2)])[0].tolist() == [3.0, 4.0]
    with pytest.raises(lt.LowtideValueError, match="must have 1 gradients"):
        freeze.combine([], [])
    with pytest.raises(lt.LowtideValueError, match="does not fit"):
        freeze.load_state_dict({"step": 0, "frozen": [torch.zeros(3)], "flips": [], "signs": []})
    with pytest.raises(lt.LowtideValueError, match="window"):
        qat.GradientConflictFreeze([scale], window=1)


def test_two_objectives_train_learned_scales() -> None:
    """LSQ with the gradient at w and at SAM's point w + rho g/|g|, combined over several windows."""
    x, y, student = _task()
    model = qat.attach_(student, qat.LSQ, bits=3)
    scales = [q.scale for q in qat.latent_weights(model).values()]
    others = [p for p in model.parameters() if not any(p is s for s in scales)]
    freeze = qat.GradientConflictFreeze(scales, window=10, threshold=0.4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)

    def gradients() -> tuple[float, list[torch.Tensor]]:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.item(), [s.grad.clone() for s in scales]

    losses, shares = [], []
    for _ in range(100):
        loss, task = gradients()
        losses.append(loss)
        norm = torch.stack([p.grad.norm() for p in others]).norm()
        steps = [0.02 * p.grad / norm for p in others]
        with torch.no_grad():
            torch._foreach_add_(others, steps)
        _, flat = gradients()
        with torch.no_grad():
            torch._foreach_sub_(others, steps)
        freeze.apply_(task, flat)
        opt.step()
        shares.append(sum(int(f.sum()) for f in freeze.frozen) / sum(s.numel() for s in scales))
    assert losses[-1] < losses[0] / 3
    assert shares[:9] == [0.0] * 9
    assert len(set(shares)) > 3  # scales freeze and thaw
    assert 0 < max(shares) <= 1


# ---- attaching


def test_attach_and_bake() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))
    model.add_module("lm_head", nn.Linear(10, 5))
    x = torch.randn(2, 3, 6, 6)
    dense = model(x)
    assert qat.attach_(model, qat.LSQ, bits=8) is model
    assert len(qat.latent_weights(model)) == 2
    assert type(model.lm_head) is nn.Linear
    assert sum("scale" in name for name, _ in model.named_parameters()) == 2
    y = model(x)
    assert 0 < (y - dense).norm() < 0.1 * dense.norm()
    with pytest.raises(lt.LowtideValueError, match="parametrized already"):
        qat.attach_(model, qat.StatsQ)
    state = copy.deepcopy(model.state_dict())
    other = qat.attach_(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10)), qat.LSQ, bits=8
    )
    other.add_module("lm_head", nn.Linear(10, 5))
    other.load_state_dict(state)
    assert torch.equal(other(x), y)
    qat.bake_(model)
    assert torch.equal(model(x), y)
    assert type(model[0]) is nn.Conv2d
    assert not any("scale" in name for name, _ in model.named_parameters())
    with pytest.raises(lt.LowtideValueError, match="no linear or convolution layer"):
        qat.attach_(nn.ReLU(), qat.StatsQ)
    with pytest.raises(lt.LowtideTypeError, match=r"nn\.Module"):
        qat.attach_("model", qat.StatsQ)
    with pytest.raises(lt.LowtideValueError, match="weights is empty"):
        qat.ConfidenceAnnealing(torch.optim.SGD(model.parameters(), lr=1.0), qat.latent_weights(model))


# ---- training


def _task() -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    """A student that fits a random teacher almost exactly in fp32."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    x = torch.randn(512, 16)
    with torch.no_grad():
        y = teacher(x) * 2
    student = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    _train(student, x, y, 400, 1e-2)
    return x, y, student


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, lr: float) -> None:
    opt = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for step in range(steps):
        for m in model.modules():
            if isinstance(m, qat.ReSTE):
                m.set_progress(step / steps)
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
        schedule.step()


@pytest.mark.parametrize(
    ("make", "settings", "gain"),
    [
        (qat.StatsQ, {"bits": 2}, 3),
        (qat.LSQ, {"bits": 2}, 3),
        (qat.LSQ, {"bits": 3}, 3),
        (qat.ReSTE, {"per_channel": True}, 3),
        (qat.BiPer, {}, 3),
    ],
)
def test_training_through_the_estimator_beats_rounding_the_trained_weights(
    make: Callable[..., nn.Module], settings: dict[str, object], gain: float
) -> None:
    """``gain``: how many times smaller the loss must be than with the same quantizer put on the trained weights."""
    x, y, student = _task()
    fp32 = (student(x) - y).square().mean().item()
    model = qat.attach_(student, make, **settings)
    rounded = (model(x) - y).square().mean().item()
    _train(model, x, y, 300, 5e-3)
    qat.bake_(model)
    trained = (model(x) - y).square().mean().item()
    assert rounded > 10 * fp32
    assert trained < rounded / gain
