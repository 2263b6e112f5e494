# SPDX-License-Identifier: Apache-2.0
"""GPM, SGP, Adam-NSCL and NSGP: which directions they protect, and that old outputs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowtide as lt
from lowtide.continual import GPM, NSGP, SGP, AdamNSCL, Memory
from lowtide.continual.null_space import elbow

MEMORIES = {
    "gpm": lambda m, **k: GPM(m, 1.0, **k),
    "sgp": lambda m, **k: SGP(m, 1.0, alpha=1e9, **k),
    "adam-nscl": lambda m, **k: AdamNSCL(m, 2.0, **k),
    "nsgp": lambda m, **k: NSGP(m, **k),
}


def inputs(rank: int, d: int, seed: int, n: int = 80) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, rank, generator=g) @ torch.randn(rank, d, generator=g)


def net(d: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 20, bias=False), nn.Tanh(), nn.Linear(20, 5, bias=False))


def train(model: nn.Module, memory: Memory, x: Tensor, rule: str = "AdamW", steps: int = 15) -> None:
    # The default decay of AdamW is on: it must not move what is protected.
    opt = getattr(lt.optim, rule)(model.parameters(), lr=1e-2, constraint=memory.constraint())
    y = torch.randn(x.shape[0], 5, generator=torch.Generator().manual_seed(9))
    for _ in range(steps):
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("rule", ["AdamW", "SGD", "Lion"])
@pytest.mark.parametrize("name", ["gpm", "sgp", "adam-nscl"])
def test_outputs_of_old_tasks_stay(name: str, rule: str) -> None:
    """Inputs of low rank leave room: all of their energy is protected, and the new task is learned beside it."""
    model = nn.Sequential(nn.Linear(24, 5, bias=False))
    memory = MEMORIES[name](model)
    first, second = inputs(4, 24, 1), inputs(6, 24, 2)
    train(model, memory, first, rule)
    assert memory.learn([first]) == {"0": 4}
    before = model(first).detach()
    start = model(second).detach()
    train(model, memory, second, rule)
    assert memory.tasks == 1
    # fp32 weights: 15 steps that each round a weight of size 1 over 24 inputs of size ~2.
    assert float((model(first).detach() - before).abs().max()) < 1e-4 * float(before.abs().max()) + 1e-4
    assert float((model(second).detach() - start).abs().max()) > 1e-2
    assert memory.learn([second]) == {"0": 10}


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_gpm_holds_the_share_of_energy_it_was_asked_for(share: float) -> None:
    memory = GPM(net(), share)
    for t in range(3):
        x = inputs(24, 24, t) * torch.logspace(0, -2, 24)
        kept = memory.learn([x[:40], x[40:]])
        b = memory.bases["0"].double()
        held = float((x.double() @ b.T).square().sum() / x.double().square().sum())
        assert held >= share - 1e-9
        assert torch.allclose(b @ b.T, torch.eye(b.shape[0], dtype=torch.float64), atol=1e-5)
        assert kept["0"] == b.shape[0]
    first = GPM(net(), share)
    x = inputs(24, 24, 0) * torch.logspace(0, -2, 24)
    count = first.learn([x])["0"]
    energy = np.linalg.svd(x.double().numpy(), compute_uv=False) ** 2
    ratio = np.cumsum(energy) / energy.sum()
    assert count == int((ratio < share).sum()) + 1  # the fewest that hold it
    assert GPM(net(), share, compat="gpm").learn([x])["0"] == int((ratio < share).sum())


def test_thresholds_grow() -> None:
    memory = GPM(net(), 0.5, growth=0.4)
    x = inputs(24, 24, 0)
    assert memory.learn([x])["0"] < memory.learn([x])["0"] < memory.learn([x])["0"] <= 24


def reference_sgp(tasks: list[np.ndarray], share: float, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The paper's algorithm on stored activations: singular value decompositions instead of Gram matrices."""
    basis = np.zeros((tasks[0].shape[1], 0))
    importance = np.zeros(0)
    for x in tasks:
        a = x.T
        whole = np.sum(np.linalg.svd(a, compute_uv=False) ** 2)
        inside = basis @ (basis.T @ a)
        old = np.zeros(basis.shape[1])
        if basis.shape[1]:
            uc, sc, _ = np.linalg.svd(inside, full_matrices=False)
            k = basis.shape[1]
            old = np.sqrt((basis.T @ uc[:, :k]) ** 2 @ sc[:k] ** 2)
        u, s, _ = np.linalg.svd(a - inside, full_matrices=False)
        held = (whole - np.sum(s**2)) / whole
        r = 0
        while held < share:
            held += s[r] ** 2 / whole
            r += 1
        strengths = np.concatenate([old, s[:r]])
        scores = (alpha + 1) * strengths / (alpha * strengths + strengths.max())
        scores[: len(importance)] += importance
        importance = np.clip(scores, 0, 1)
        basis = np.concatenate([basis, u[:, :r]], axis=1)
    return basis, importance


@pytest.mark.parametrize("alpha", [0.0, 1.0, 10.0])
def test_sgp_equals_the_paper_on_stored_activations(alpha: float) -> None:
    tasks = [inputs(24, 24, t) * torch.logspace(0, -1.5, 24).roll(3 * t) for t in range(3)]
    memory = SGP(net(), 0.9, alpha=alpha)
    for x in tasks:
        memory.learn([x])
    basis, importance = reference_sgp([x.double().numpy() for x in tasks], 0.9, alpha)
    got = memory.bases["0"].double()
    assert got.shape[0] == basis.shape[1]
    # Vectors are unique up to sign; stored as fp32, and old ones enter the next task's statistics as such.
    assert torch.allclose(
        (got @ torch.from_numpy(basis)).abs(), torch.eye(len(importance)).double(), atol=1e-4
    )
    assert torch.allclose(memory.importance["0"].double(), torch.from_numpy(importance), atol=1e-5)
    assert float(memory.importance["0"].min()) >= 0.0


def test_sgp_moves_along_what_matters_little() -> None:
    memory = SGP(net(), 0.999, alpha=1.0)
    memory.learn([inputs(24, 24, 0) * torch.logspace(0, -1.5, 24)])
    part = memory.constraint().bases[memory.layers["0"].weight]
    u = torch.randn(20, 24)
    (left,) = part if isinstance(part, tuple) else (part,)
    before, after = u @ memory.bases["0"].T, left(u) @ memory.bases["0"].T
    share = (after / before).mean(0)
    assert torch.allclose(share, 1.0 - memory.importance["0"], atol=1e-3)
    assert float(share[0]) < 0.01 < 0.5 < float(share[-1])


def test_adam_nscl_keeps_the_smallest_eigenvalues_of_the_running_mean() -> None:
    memory = AdamNSCL(net(), ratio=10.0, normalize=True)
    parts = [inputs(24, 24, t, n) * torch.logspace(0, -3, 24) for t, n in ((0, 80), (1, 200))]
    for x in parts:
        protected = memory.learn([x])["0"]
    stacked = torch.cat(parts).double()
    mean = stacked.T @ stacked / 280
    assert torch.allclose(memory.covariances["0"], mean, rtol=1e-10, atol=1e-14)
    values = torch.linalg.eigvalsh(mean)
    assert protected == int((values > 10.0 * values[0]).sum())
    u = torch.randn(20, 24)
    (part,) = memory.constraint().bases[memory.layers["0"].weight]
    free = torch.linalg.eigh(mean)[1][:, : 24 - protected].float()
    want = u @ free @ free.T / (free @ free.T).norm()
    assert torch.allclose(part(u), want, atol=1e-5)


def test_elbow() -> None:
    bent = np.array([10.0, 8.0, 6.0, 4.0, 0.5, 0.4, 0.3, 0.2])
    assert elbow(bent) == 4
    assert elbow(bent, 0.5) == 6
    assert elbow(bent, -2) == 2
    assert elbow(bent, 100) == 7
    assert elbow(np.ones(2)) == 0
    long = np.concatenate([np.linspace(50, 10, 100), np.linspace(1, 0.5, 200)])
    assert 95 <= elbow(long) <= 115  # smoothed over 10
    flat = np.concatenate([np.full(5, 3.0), np.full(5, 1.0)])
    assert elbow(flat) == 9  # equal eigenvalues stay together


def test_layers_of_all_kinds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 32),
        nn.Linear(32, 32),
    )
    lt.quant.quantize_model_(model, weights="int8", group=32, skip=("4",))
    memory = GPM(model, 1.0, layers=["0", "3", "4"])
    x = torch.randn(4, 3, 8, 8)
    model.train()
    kept = memory.learn([x])
    assert model.training
    assert memory.layers["0"].features == 27
    assert kept["3"] == 4  # four samples span four directions
    assert memory.unprotected() == ["0.bias", "3.bias", "4.bias"]
    conv = model[0]
    memory = GPM(model, 1.0, layers="^0$")
    few = x[:1, :, :2, :2]
    before, elsewhere = conv(few).detach(), conv(x).detach()
    memory.learn([few], lambda m, b: m[0](b))
    opt = lt.optim.AdamW([conv.weight], lr=1e-2, constraint=memory.constraint())
    for _ in range(5):
        conv.weight.grad = torch.randn_like(conv.weight)
        opt.step()
    assert torch.allclose(conv(few), before, atol=1e-5)
    assert not torch.allclose(conv(x), elsewhere, atol=1e-3)


def test_shared_weights_see_the_inputs_of_all_their_modules() -> None:
    a, b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, nn.Tanh(), b)
    memory = GPM(model, 1.0)
    x = inputs(2, 8, 0)
    assert list(memory.layers) == ["0"]
    assert memory.learn([x])["0"] > 2


@pytest.mark.parametrize("name", MEMORIES)
def test_batches_may_be_tuples_and_mappings_and_add_up(name: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(24, 5)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.lin(x * scale)

    x = inputs(5, 24, 3)
    counts = []
    for batches in ([x], [(x[:30], 1.0), (x[30:], 1.0)], [{"x": x, "scale": 1.0}]):
        counts.append(MEMORIES[name](Two()).learn(batches))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("name", MEMORIES)
def test_state_round_trip_gives_the_same_constraint(name: str, tmp_path: Path) -> None:
    model = net()
    memory = MEMORIES[name](model)
    again = MEMORIES[name](net())
    again.load_state_dict(memory.state_dict())  # nothing learned yet
    for t in range(2):
        memory.learn([inputs(4, 24, t)])
    file = tmp_path / "memory.safetensors"
    save_file(memory.state_dict(), file)
    again.load_state_dict(load_file(file))
    assert again.tasks == 2
    assert memory.nbytes == again.nbytes == sum(t.nbytes for t in memory.tensors().values()) > 0
    one, other = memory.constraint(), again.constraint()
    for layer, twin in zip(memory.layers.values(), again.layers.values(), strict=True):
        assert one.holds(layer.weight) == other.holds(twin.weight)
        if one.holds(layer.weight):
            assert one.digest(layer.weight) == other.digest(twin.weight)


@pytest.mark.parametrize("name", MEMORIES)
def test_hostile_states_change_nothing(name: str) -> None:
    memory = MEMORIES[name](net())
    memory.learn([inputs(4, 24, 0)])
    good = memory.state_dict()
    main = next(k for k in good if k.startswith("0.") and good[k].dim() == 2)
    bad: list[dict[str, Any]] = [
        {},
        {**good, "tasks": torch.tensor(-1)},
        {**good, "tasks": torch.tensor(0.5)},
        {**good, "nowhere.basis": good[main]},
        {**good, main: good[main][:, :-1]},
        {**good, main: good[main].half()},
        {**good, main: torch.full_like(good[main], float("nan"))},
        {**good, main: None},
        {k: v for k, v in good.items() if k != main},
    ]
    if name in ("gpm", "sgp"):
        bad.append({**good, main: torch.ones_like(good[main])})
    if name == "sgp":
        bad.append({**good, "0.importance": torch.full((4,), 2.0)})
        bad.append({k: v for k, v in good.items() if "importance" not in k})
    for state in bad:
        with pytest.raises(lt.LowtideError):
            memory.load_state_dict(state)
        after = memory.state_dict()
        assert after.keys() == good.keys()
        assert all(torch.equal(after[k], good[k]) for k in good)


def test_a_poisoned_or_empty_task_changes_nothing() -> None:
    memory = GPM(net(), 0.9)
    x = inputs(4, 24, 0)
    x[3, 3] = float("nan")
    for batches in ([x], []):
        with pytest.raises(lt.LowtideValueError):
            memory.learn(batches)
    assert memory.tasks == 0
    assert memory.bases["0"].shape[0] == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: GPM(m, 0.0), "threshold"),
        (lambda m: GPM(m, 1.5), "threshold"),
        (lambda m: GPM(m, growth=-1.0), "growth"),
        (lambda m: GPM(m, compat="sgp"), "compat"),
        (lambda m: GPM(m, layers="nope"), "matches no"),
        (lambda m: GPM(nn.LayerNorm(3)), "matches no"),
        (lambda m: GPM(nn.Conv2d(4, 4, 3, groups=2)), "groups"),
        (lambda m: GPM("model"), "torch.nn.Module"),
        (lambda m: SGP(m, alpha=-1.0), "alpha"),
        (lambda m: AdamNSCL(m, ratio=0.5), "ratio"),
        (lambda m: NSGP(m, offset=float("inf")), "offset"),
        (lambda m: lt.continual.transfer([[0.5], [0.5]]), "scores"),
    ],
)
def test_bad_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(lt.LowtideError, match=words):
        make(net())
