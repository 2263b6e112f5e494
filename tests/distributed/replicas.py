# SPDX-License-Identifier: Apache-2.0
"""Cases for two processes: every kind of optimizer under DistributedDataParallel."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowtide as lt


def low(make: Callable[..., Any], **options: Any) -> Callable[[nn.Module], Any]:
    def of(model: nn.Module) -> Any:
        groups = lt.optim.param_groups(model, rank=8, update_proj_gap=3, scale=1.0)
        return make(groups, lr=1e-2, **options)

    return of


def full(make: Callable[..., Any], **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: make(model.parameters(), lr=1e-2, **options)


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW": full(lt.optim.AdamW),
    "AdamW8bit": full(lt.optim.AdamW8bit),
    "AdamW4bit": full(lt.optim.AdamW4bit),
    "Adafactor": full(lt.optim.Adafactor),
    "AdamMini": full(lt.optim.AdamMini),
    "GaLoreAdamW": low(lt.optim.GaLoreAdamW),
    "QGaLoreAdamW": low(lt.optim.QGaLoreAdamW),
    "FiraAdamW": low(lt.optim.FiraAdamW),
    "APOLLO": low(lt.optim.APOLLO),
    "APOLLOMini": low(lt.optim.APOLLOMini),
    "DCTAdamW": low(lt.optim.DCTAdamW),
    "LDAdam": low(lt.optim.LDAdam),
    "FRUGAL": low(lt.optim.FRUGAL),
    "Flora": low(lt.optim.Flora),
    "GRASSAdamW": low(lt.optim.GRASSAdamW),
}


def model_of(dtype: torch.dtype, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)).to(dtype)


def batch(t: int, dtype: torch.dtype) -> Tensor:
    """Other data on each process."""
    g = torch.Generator().manual_seed(10 * t + dist.get_rank())
    return torch.randn(8, 64, generator=g).to(dtype)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range, dtype: torch.dtype) -> None:
    for t in steps:
        x = batch(t, dtype)
        opt.zero_grad()
        (model(x) - x.sin()).square().mean().backward()
        opt.step()


def replicas_agree(*things: Any) -> None:
    """Bit for bit: tensors and numbers of all processes."""
    here = copy.deepcopy(things)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, here)
    for there in everywhere:
        assert lt.testing._runs.same(everywhere[0], there), "replicas differ"


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def resumed(name: str, dtype_name: str) -> None:
    """Replicas stay equal, in weights and states; what rank 0 saves goes on as if nothing had happened."""
    dtype = getattr(torch, dtype_name)
    model = DistributedDataParallel(model_of(dtype))
    opt = KINDS[name](model.module)
    start = weights(model)
    train(model, opt, range(5), dtype)
    replicas_agree(weights(model), opt.state_dict()["state"])
    file = io.BytesIO()
    torch.save({"model": model.module.state_dict(), "optim": opt.state_dict()}, file)
    saved = [file.getvalue() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    train(model, opt, range(5, 9), dtype)
    replicas_agree(weights(model), opt.state_dict()["state"])
    assert all(not torch.equal(a, b) for a, b in zip(start, weights(model), strict=True))

    again = DistributedDataParallel(model_of(dtype, seed=1))
    fresh = KINDS[name](again.module)
    assert saved[0] is not None
    state = torch.load(io.BytesIO(saved[0]), weights_only=True)
    again.module.load_state_dict(state["model"])
    fresh.load_state_dict(state["optim"])
    train(again, fresh, range(5, 9), dtype)
    assert lt.testing._runs.same(weights(model), weights(again)), "the resumed run differs"


def packed_weights() -> None:
    """Q-GaLore on INT8 weights, rounded stochastically: DDP does not reduce what packed weights get, in_backward does."""

    def build() -> nn.Module:
        model = model_of(torch.float32)
        return lt.quant.quantize_model_(model, weights="int8", group=64, skip=())

    model = build()
    opt = lt.optim.in_backward(low(lt.optim.QGaLoreAdamW), model, process_group=dist.group.WORLD)
    start = [m.weight.quant.codes.clone() for m in model if isinstance(m, lt.quant.Linear)]
    for t in range(6):
        x = batch(t, torch.float32)
        (model(x) - x.sin()).square().mean().backward()
        opt.step()
    codes = [m.weight.quant.codes.clone() for m in model if isinstance(m, lt.quant.Linear)]
    assert all(not torch.equal(a, b) for a, b in zip(start, codes, strict=True))
    replicas_agree(model.state_dict(), opt.optimizer.state_dict()["state"])


def spsa() -> None:
    """Zeroth order: the directions are a function of the seed, so that processes agree if their losses do."""
    model = model_of(torch.float32)
    opt = lt.spsa.SPSA(model.named_parameters(), lr=1e-3, eps=1e-3, seed=3, module=model)

    def closure() -> Tensor:
        x = batch(0, torch.float32)
        loss = (model(x) - x.sin()).square().mean()
        dist.all_reduce(loss)
        return loss / dist.get_world_size()

    before = weights(model)
    for _ in range(4):
        opt.step(closure)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    replicas_agree(weights(model))


def zero_redundancy(name: str) -> None:
    """ZeroRedundancyOptimizer gives each process the states of some parameters; elementwise methods have the bits of DDP."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    a, b = (DistributedDataParallel(model_of(torch.float32)) for _ in range(2))
    cls = getattr(lt.optim, name)
    one = cls(a.parameters(), lr=1e-2)
    other = ZeroRedundancyOptimizer(b.parameters(), optimizer_class=cls, lr=1e-2)
    for model, opt in ((a, one), (b, other)):
        train(model, opt, range(4), torch.float32)
    replicas_agree(weights(b))
    assert lt.testing._runs.same(weights(a), weights(b))


def checkpointed(name: str, folder: str) -> None:
    """What torch.distributed.checkpoint wrote to files is loaded in place into a fresh optimizer, and goes on."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = DistributedDataParallel(model_of(torch.float32))
    opt = KINDS[name](model.module)
    train(model, opt, range(8), torch.float32)
    states = get_optimizer_state_dict(model, opt)
    dcp.save({"optim": states}, checkpoint_id=folder)
    kept = copy.deepcopy(opt.state_dict()["state"])
    again = DistributedDataParallel(model_of(torch.float32))
    again.load_state_dict(model.state_dict())
    fresh = KINDS[name](again.module)
    loaded = {"optim": get_optimizer_state_dict(again, fresh)}
    dcp.load(loaded, checkpoint_id=folder)
    set_optimizer_state_dict(again, fresh, loaded["optim"])
    assert lt.testing._runs.same(fresh.state_dict()["state"], kept), "the loaded state differs"
    train(model, opt, range(8, 14), torch.float32)
    train(again, fresh, range(8, 14), torch.float32)
    assert lt.testing._runs.same(weights(model), weights(again)), "the resumed run differs"
