# SPDX-License-Identifier: Apache-2.0
"""Cases for two processes: sharded models saved and loaded by torch.distributed.checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from sharded import ELEMENTWISE, LOW_RANK, mesh_of, same_bits, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard


def model_of(width: int = 128, *, sharded: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 64))
    if sharded:
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh_of())
        fully_shard(model, mesh=mesh_of())
    return model


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    """The same data on all processes: a mean of equal gradients is that gradient."""
    for t in steps:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(t))
        opt.zero_grad()
        (model(x) - x.sin()).square().mean().backward()
        opt.step()


def states(model: nn.Module, opt: torch.optim.Optimizer, **options: Any) -> dict[str, Any]:
    chosen = StateDictOptions(**options)
    return {
        "model": get_model_state_dict(model, options=chosen),
        "optim": get_optimizer_state_dict(model, opt, options=chosen),
    }


def load(model: nn.Module, opt: torch.optim.Optimizer, state: dict[str, Any], **options: Any) -> None:
    chosen = StateDictOptions(**options)
    set_model_state_dict(model, state["model"], options=chosen)
    set_optimizer_state_dict(model, opt, state["optim"], options=chosen)


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name in ELEMENTWISE:
        return ELEMENTWISE[name](model.parameters(), lr=1e-2)
    group = {"params": list(model.parameters()), "rank": 5, "update_proj_gap": 3, "scale": 1.0}
    return LOW_RANK[name]([group], lr=1e-2)


def resume(name: str, width: int, folder: str) -> None:
    """Saved, loaded into a fresh model and optimizer on as many processes, continued: the bits of the uninterrupted run."""
    model = model_of(width)
    opt = make(name, model)
    train(model, opt, range(5))
    dcp.save(states(model, opt), checkpoint_id=folder)
    train(model, opt, range(5, 9))
    again = model_of(width, seed=1)
    fresh = make(name, again)
    state = states(again, fresh)
    dcp.load(state, checkpoint_id=folder)
    load(again, fresh, state)
    train(again, fresh, range(5, 9))
    same_bits(list(model.parameters()), list(again.parameters()))


def reshard(name: str, width: int, folder: str) -> None:
    """Two processes save; one that has everything loads the same bits, from the files and from a gathered dictionary."""
    model = model_of(width)
    opt = make(name, model)
    train(model, opt, range(5))
    dcp.save(states(model, opt), checkpoint_id=folder)
    gathered = states(model, opt, full_state_dict=True)  # on CPU only on rank 0
    train(model, opt, range(5, 9))
    finals = [whole(p.detach()) for p in model.parameters()]
    for source in ("files", "gathered"):
        alone = model_of(width, sharded=False, seed=1)
        fresh = make(name, alone)
        state = states(alone, fresh)
        if source == "files":
            dcp.load(state, checkpoint_id=folder, no_dist=True)
        else:
            state = copy.deepcopy(gathered)
        load(alone, fresh, state)
        train(alone, fresh, range(5, 9))
        for p, q in zip(alone.parameters(), finals, strict=True):
            assert torch.equal(p.detach(), q), f"{source}: {tuple(p.shape)} differs"


def gathered(name: str, width: int) -> None:
    """A gathered dictionary of blocks that processes share goes into one process, and back into two."""
    model = model_of(width)
    opt = make(name, model)
    train(model, opt, range(5))
    state = copy.deepcopy(states(model, opt, full_state_dict=True))
    train(model, opt, range(5, 9))
    for sharded in (False, True):
        again = model_of(width, sharded=sharded, seed=1)
        fresh = make(name, again)
        load(again, fresh, copy.deepcopy(state), full_state_dict=sharded)
        train(again, fresh, range(5, 9))
        for p, q in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(whole(p.detach()), whole(q.detach())), (
                f"sharded={sharded}: {tuple(p.shape)} differs"
            )


def unsharded_into_shards(name: str, width: int) -> None:
    """What one process saved goes on in two."""
    model = model_of(width, sharded=False)
    opt = make(name, model)
    train(model, opt, range(5))
    state = copy.deepcopy(states(model, opt))
    train(model, opt, range(5, 9))
    again = model_of(width, seed=1)
    fresh = make(name, again)
    load(again, fresh, state, full_state_dict=True)
    train(again, fresh, range(5, 9))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.detach(), whole(q.detach())), f"{tuple(p.shape)} differs"


def plain_state(name: str) -> None:
    """Everything that a sharded optimizer keeps is a tensor, a DTensor, an int, a float or a string; torch.save round trip."""
    model = model_of()
    opt = make(name, model)
    train(model, opt, range(2))
    for p in model.parameters():
        for key, value in opt.state[p].items():
            assert isinstance(value, (Tensor, int, float, str)), key
    saved = copy.deepcopy(opt.state_dict())
    train(model, opt, range(2, 4))
    finals = [whole(p.detach()).clone() for p in model.parameters()]
    again = model_of()
    fresh = make(name, again)
    train(again, fresh, range(2))
    fresh.load_state_dict(saved)
    train(again, fresh, range(2, 4))
    for p, q in zip(again.parameters(), finals, strict=True):
        assert torch.equal(whole(p.detach()), q)


def whole_bits(name: str, width: int) -> None:
    """fully_shard trains as one process does: the same data on both, elementwise methods."""
    model, alone = model_of(width), model_of(width, sharded=False)
    one, other = make(name, alone), make(name, model)
    train(alone, one, range(6))
    train(model, other, range(6))
    same_bits(list(alone.parameters()), list(model.parameters()))
