# SPDX-License-Identifier: Apache-2.0
"""TRGP and CUBER: regimes, scaled weights, and what may move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowtide as lt
from lowtide.continual import CUBER, TRGP
from lowtide.continual.trust import ALIGNED, APART, TRUSTED

BASIS = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(5)))[0].T


def task(rows: slice, seed: int, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inputs in some of 24 directions, targets linear in them."""
    g = torch.Generator().manual_seed(seed)
    b = BASIS[rows]
    x = torch.randn(64, b.shape[0], generator=g) @ b
    return x, sign * 0.5 * x @ torch.ones(24, 5)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 5, bias=False))


def train(memory: TRGP, batch: tuple[Tensor, Tensor], steps: int = 20, opt: Any = None) -> Any:
    params = [*memory.model.parameters(), *memory.parameters()]
    opt = opt or lt.optim.AdamW(params, lr=2e-2, constraint=memory.constraint())
    for _ in range(steps):
        opt.zero_grad()
        loss(memory.model, batch).backward()
        opt.step()
    return opt


@pytest.mark.parametrize("kind", [TRGP, CUBER])
def test_apart_tasks_do_not_touch_each_other(kind: type[TRGP]) -> None:
    model = net()
    memory = kind(model, loss, 1.0)
    first, second = task(slice(0, 6), 1), task(slice(6, 12), 2)
    assert memory.begin([first]) == {"0": []}
    train(memory, first)
    assert memory.learn([first]) == {"0": 6}
    before = model(first[0]).detach()
    assert memory.begin([second]) == {"0": [APART]}
    assert memory.parameters() == []
    train(memory, second)
    assert torch.allclose(model(first[0]), before, atol=1e-4)
    assert memory.learn([second]) == {"0": 12}
    assert set(memory.chosen["0"][1].tolist()) == set(range(6, 12))


def test_a_trusted_task_lends_its_knowledge_and_stays() -> None:
    """The second task has the first one's inputs and the opposite targets: only Q can learn it."""
    model = net()
    memory = TRGP(model, loss, 1.0)
    first, second = task(slice(0, 6), 1), task(slice(0, 6), 2, -1.0)
    memory.begin([first])
    train(memory, first, 150)
    memory.learn([first])
    outputs = model(first[0]).detach()
    assert memory.begin([second]) == {"0": [TRUSTED]}
    (q,) = memory.parameters()
    assert q.shape == (6, 6)
    start = float(loss(model, second).detach())
    train(memory, second, 300)
    assert float(loss(model, second).detach()) < 0.1 * start
    memory.learn([second])
    memory.use(0)
    assert torch.allclose(model(first[0]), outputs, atol=1e-4)
    memory.use(1)
    assert float(loss(model, second).detach()) < 0.1 * start
    assert not q.requires_grad
    # The scaled weight of the paper, W + W Bᵀ (Q - I) B, is what the hooks compute.
    b, w = memory.basis("0", 0), model[0].weight.detach()
    scaled = w + w @ b.T @ (q.detach() - torch.eye(6)) @ b
    assert torch.allclose(model(second[0]), second[0] @ scaled.T, atol=1e-5)
    memory.close()
    assert torch.allclose(model(second[0]), second[0] @ w.T, atol=1e-5)


def test_at_most_so_many_tasks_are_trusted() -> None:
    memory = TRGP(net(), loss, 1.0, trust=0.05, most=1)
    for t in range(2):
        batch = task(slice(6 * t, 6 * t + 6), t)
        memory.begin([batch])
        train(memory, batch, 2)
        memory.learn([batch])
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 12, generator=g) * torch.tensor([2.0] * 6 + [1.0] * 6) @ BASIS[:12]
    assert memory.begin([(x, 0.5 * x @ torch.ones(24, 5))]) == {"0": [TRUSTED, APART]}


def test_cuber_moves_what_is_aligned_and_demotes_what_is_not() -> None:
    model = net()
    memory = CUBER(model, loss, 1.0, strength=0.0)
    first = task(slice(0, 6), 1)
    memory.begin([first])
    train(memory, first, 5)  # stops early: there is more to learn, the same way
    memory.learn([first])
    same, opposite = task(slice(0, 6), 1), task(slice(0, 6), 1, -1.0)
    before = float(loss(model, first).detach())
    assert memory.begin([same]) == {"0": [ALIGNED]}
    start = model[0].weight.detach().clone()
    opt = train(memory, same, 5)
    inside = (model[0].weight.detach() - start) @ BASIS[:6].T
    assert float(inside.norm()) > 1e-2
    memory.use(None)
    assert float(loss(model, first).detach()) < before  # backward transfer
    memory.use(1)
    # A gradient the other way: from this step on nothing moves there.
    stopped = model[0].weight.detach() @ BASIS[:6].T
    train(memory, opposite, 3, opt)
    assert memory.regimes["0"] == [TRUSTED]
    assert torch.allclose(model[0].weight.detach() @ BASIS[:6].T, stopped, atol=1e-5)


def test_cuber_pulls_back_with_the_norm_of_what_moved() -> None:
    model = net()
    memory = CUBER(model, loss, 1.0, strength=0.7)
    first = task(slice(0, 6), 1)
    memory.begin([first])
    train(memory, first, 5)
    memory.learn([first])
    memory.begin([first])
    constraint = memory.constraint()
    w = model[0].weight
    g = memory.gradients["0"][0].clone()
    assert torch.equal(constraint.of_gradient(w, g), g)  # nothing moved yet
    with torch.no_grad():
        w += torch.randn(5, 24)
    moved = (w.detach() - memory.start["0"]).requires_grad_()
    (0.7 * (moved @ BASIS[:6].T @ BASIS[:6]).norm()).backward()
    assert torch.allclose(constraint.of_gradient(w, g), g + moved.grad, atol=1e-5)


def test_an_old_task_that_shares_directions_with_an_aligned_one_is_protected() -> None:
    """Directions are open only if no other old task chose them."""
    memory = CUBER(net(), loss, 1.0)
    first = task(slice(0, 6), 1)
    memory.begin([first])
    memory.learn([first])
    shared = torch.cat([memory.pools["0"][3:6], BASIS[6:9]])
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)) @ shared
    second = (x, x @ torch.ones(24, 5))
    memory.begin([second])
    memory.learn([second])
    assert memory.chosen["0"][1].tolist() == [3, 4, 5, 6, 7, 8]
    memory.begin([first])
    memory.regimes["0"] = [ALIGNED, TRUSTED]
    constraint = memory.constraint()
    update = torch.randn(5, 24)
    out, relief = constraint.of_update(memory.layers["0"].weight, update, update)
    assert relief == 0.0
    pool = memory.pools["0"]
    kept = (out @ pool.T).norm(dim=0) / (update @ pool.T).norm(dim=0)
    assert torch.allclose(kept, torch.tensor([1.0] * 3 + [0.0] * 6), atol=1e-4)


@pytest.mark.parametrize("kind", [TRGP, CUBER])
def test_resuming_in_the_middle_of_a_task(kind: type[TRGP], tmp_path: Path) -> None:
    """Model, memory and optimizer saved after 4 of 9 steps: the rest is the same, bit for bit."""

    def prepared() -> tuple[nn.Sequential, TRGP]:
        model = net()
        memory = kind(model, loss, 0.95)
        first = task(slice(0, 8), 1)
        memory.begin([first])
        train(memory, first, 5)
        memory.learn([first])
        memory.begin([second])
        return model, memory

    second = task(slice(0, 12), 2)
    model, memory = prepared()
    assert memory.parameters()
    opt = train(memory, second, 4)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    train(memory, second, 5, opt)

    other = net(7)
    again = kind(other, loss, 0.95)
    other.load_state_dict(weights)
    again.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    resumed = lt.optim.AdamW(
        [*other.parameters(), *again.parameters()], lr=2e-2, constraint=again.constraint()
    )
    resumed.load_state_dict(torch.load(tmp_path / "opt.pt", weights_only=True))
    train(again, second, 5, resumed)
    assert torch.equal(model[0].weight, other[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(memory.parameters(), again.parameters(), strict=True))
    assert memory.learn([second]) == again.learn([second])
    assert memory.nbytes == again.nbytes


@pytest.mark.parametrize("kind", [TRGP, CUBER])
def test_hostile_states_change_nothing(kind: type[TRGP]) -> None:
    memory = kind(net(), loss, 1.0)
    batch = task(slice(0, 6), 1)
    for _ in range(2):
        memory.begin([batch])
        train(memory, batch, 2)
        memory.learn([batch])
    good = memory.state_dict()
    assert "0.scale1-0" in good
    bad: list[dict[str, Tensor]] = [
        {**good, "tasks": torch.tensor(3)},
        {**good, "0.chosen0": torch.tensor([0, 6], dtype=torch.int32)},
        {**good, "0.chosen0": torch.tensor([0, 0], dtype=torch.int32)},
        {**good, "0.chosen0": torch.tensor([-1], dtype=torch.int32)},
        {**good, "0.chosen0": torch.tensor([0])},
        {**good, "0.pool": 2.0 * good["0.pool"]},
        {**good, "0.scale1-0": torch.eye(5)},
        {**good, "0.regimes": torch.tensor([1, 7], dtype=torch.int32)},
    ]
    if kind is CUBER:
        bad += [{**good, "0.gradient1": torch.zeros(5, 23)}]
        bad += [
            {**good, "0.regimes": torch.tensor([3, 1], dtype=torch.int32)}
        ]  # without the weights it started from
    for state in bad:
        with pytest.raises(lt.LowtideError):
            memory.load_state_dict(state)
        after = memory.state_dict()
        assert after.keys() == good.keys()
        assert all(torch.equal(after[k], good[k]) for k in good)


def test_bad_use_is_named() -> None:
    memory = CUBER(net(), loss)
    batch = task(slice(0, 6), 1)
    with pytest.raises(lt.LowtideValueError, match="task must be"):
        memory.use(0)
    memory.begin([batch])
    with pytest.raises(lt.LowtideRuntimeError, match="call learn"):
        memory.begin([batch])
    with pytest.raises(lt.LowtideValueError, match="batches"):
        memory.learn([])
    packed = nn.Sequential(nn.Linear(64, 64))
    lt.quant.quantize_model_(packed, weights="int8", group=64, skip=())
    for make, words in (
        (lambda: TRGP(packed, loss), "packed"),
        (lambda: TRGP(net(), None), "loss"),  # type: ignore[arg-type]
        (lambda: TRGP(net(), loss, trust=0.0), "trust"),
        (lambda: TRGP(net(), loss, most=-1), "most"),
        (lambda: CUBER(net(), loss, correlation=2.0), "correlation"),
        (lambda: CUBER(net(), loss, strength=-1.0), "strength"),
    ):
        with pytest.raises(lt.LowtideError, match=words):
            make()
