# SPDX-License-Identifier: Apache-2.0
"""Runs with a log and with others: every method replays, tensors stay fixed, who comes late catches up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide import spsa
from lowtide.spsa import SPSA, Commit
from lowtide.spsa.comm import Hello, Joined

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.linspace(-2, 2, 64 * 8).reshape(64, 8).sin()
Y = (X[:, :1] * X[:, 1:2]).tanh()


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    dtype = next(model.parameters()).dtype
    return lambda: (model(X.to(dtype)).float() - Y).square().mean()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (spsa.MeZO, {"dtype": torch.float16, "weight_decay": 0.01}),
        (spsa.LOZO, {"dtype": torch.bfloat16, "interval": 5}),
        (spsa.FedKSeed, {"seeds": 7, "directions": 2}),
        (spsa.SparseMeZO, {"codec": "log8"}),
        (spsa.HiZOO, {"alpha": 1e-3, "weight_decay": 0.01}),
        (spsa.ConMeZO, {"warmup": 20}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_every_method_replays(cls: type[SPSA], options: dict[str, Any], tmp_path: Path) -> None:
    dtype = options.pop("dtype", torch.float32)
    model, again = network(dtype), network(dtype)
    opt = cls(model.named_parameters(), 5e-3, module=model, log=tmp_path / "run.ltlog", seed=2, **options)
    for _ in range(30):
        opt.step(loss_of(model))
    opt.close()
    spsa.replay(again, tmp_path / "run.ltlog")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model[0].weight, network(dtype)[0].weight)


def test_tensors_of_a_logged_run_are_fixed(tmp_path: Path) -> None:
    model = network()
    opt = SPSA(model.named_parameters(), module=model, log=tmp_path / "run.ltlog")
    with pytest.raises(lt.LowtideRuntimeError, match="fixed"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    free = SPSA(model.named_parameters(), module=model)
    free.add_param_group({"params": [("extra", nn.Parameter(torch.zeros(2)))], "lr": 0.5})
    assert free.manifest.entries[-1].name == "extra"
    assert free.hyper().lr == (1e-6, 0.5)


def test_learning_rates_by_step() -> None:
    p = nn.Parameter(torch.zeros(3))
    opt = SPSA([p], lr=2.0, lr_factor=lambda t: 1.0 / (1 + t), probe="snapshot")
    rates = []
    for _ in range(3):
        rates.append(opt.hyper().lr[0])
        opt.step(lambda: p.sum())
    assert rates == [2.0, 1.0, 2.0 / 3.0]


class Shared:
    """A communicator in memory: commits by step, two slots, of which this worker has some."""

    def __init__(self, history: list[Commit], slots: list[int]) -> None:
        self.history, self.mine, self.digests, self.closed = history, slots, {}, False
        self.others: dict[int, int] = {}
        self.hello: Hello | None = None

    def join(self, hello: Hello) -> Joined:
        self.hello = hello
        return Joined(2, hello.step, tuple(self.history[hello.step :]))

    def slots(self, step: int) -> list[int]:
        return self.mine

    def exchange(self, step: int, codes: dict[int, int]) -> Commit:
        commit = Commit(step, 2, tuple(sorted({**codes, **self.others}.items())))
        self.history.append(commit)
        return commit

    def digest(self, step: int, digest: bytes) -> None:
        self.digests[step] = digest

    def close(self) -> None:
        self.closed = True


def test_who_joins_late_catches_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lowtide.spsa._run_log.DIGEST_EVERY", 10)
    history: list[Commit] = []
    settings: dict[str, Any] = {"lr": 5e-3, "seed": 3, "lr_factor": lambda t: 0.95**t}
    one, two = network(), network()
    first = Shared(history, [0, 1])
    a = SPSA(one.named_parameters(), module=one, comm=first, **settings)
    for _ in range(20):
        a.step(loss_of(one))
    second = Shared(history, [])
    b = SPSA(two.named_parameters(), module=two, comm=second, log=tmp_path / "b.ltlog", **settings)
    b.start()
    assert b.t == 20
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert first.digests == second.digests
    assert set(first.digests) == {1, 2, 4, 8, 10, 16, 20}  # powers of two, and every DIGEST_EVERY steps
    assert first.hello == second.hello
    assert first.hello is not None
    assert first.hello.codec == "log8"
    b.close()
    assert second.closed
    third = SPSA(two.named_parameters(), module=two, comm=Shared(history, []), **settings)
    third.load_state_dict(b.state_dict())
    with pytest.raises(lt.LowtideRuntimeError, match="give log="):
        third.start()


def test_half_of_the_slots_each_is_the_whole() -> None:
    """Two workers with one direction each make the step of one with both, bit for bit."""
    whole, half = network(), network()
    one = SPSA(whole.named_parameters(), lr=5e-3, directions=2, codec="log8", module=whole, seed=3)
    shared = Shared([], [0])
    other = SPSA(half.named_parameters(), lr=5e-3, module=half, comm=shared, seed=3)
    for _ in range(10):
        other.start()
        theirs = other._encode(other._measure(loss_of(half), [1]))
        shared.others = theirs
        other.step(loss_of(half))
        one.step(loss_of(whole))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), half.parameters(), strict=True))
