# SPDX-License-Identifier: Apache-2.0
"""Train a model that FSDP2 shards over processes, with 8-bit optimizer states, and go on from its checkpoint.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2_low_bit.py --steps 40 --checkpoint run/

Started again with more ``--steps``, it resumes where it stopped, also on another number of processes. Prints the bytes that each
process holds. Needs torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lowtide as lt

WIDTH, VOCABULARY, LENGTH = 256, 512, 32


class Block(nn.Module):
    """Residual multilayer perceptron over a running mean: a language model in little."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x + seen))))


class Model(nn.Module):
    """Tokens to the loss of predicting each next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.embedding(tokens[:, :-1]))
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), tokens[:, 1:].flatten())


def make_model() -> nn.Module:
    """The same weights on all processes, then sharded: each block on its own, so that only one of them is whole at a time."""
    torch.manual_seed(0)
    model = Model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batch(step: int) -> torch.Tensor:
    """Counting by threes; each process has other sequences."""
    g = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    start = torch.randint(VOCABULARY, (8, 1), generator=g)
    return (start + 3 * torch.arange(LENGTH + 1)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="train until there were so many")
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder to resume from and save into")
    args = parser.parse_args()
    dist.init_process_group("gloo")

    model = make_model()
    opt = lt.optim.AdamW8bit(model.parameters(), lr=2e-3)  # after fully_shard: it steps the shards
    first = 0
    if args.checkpoint is not None and (args.checkpoint / ".metadata").exists():
        weights, states = get_state_dict(model, opt)
        saved = {"model": weights, "optim": states, "step": 0}
        dcp.load(saved, checkpoint_id=args.checkpoint)
        set_state_dict(model, opt, model_state_dict=saved["model"], optim_state_dict=saved["optim"])
        first = saved["step"]
    for step in range(first, args.steps):
        loss = model(batch(step))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if dist.get_rank() == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1:4d}  loss {loss.item():.3f}", flush=True)
    held = {kind: f"{n / 1e6:.2f} MB" for kind, n in opt.state_bytes().items() if n}
    print(f"process {dist.get_rank()} holds {held}", flush=True)
    if args.checkpoint is not None:
        weights, states = get_state_dict(model, opt)
        writer = dcp.FileSystemWriter(args.checkpoint, overwrite=True)
        dcp.save({"model": weights, "optim": states, "step": args.steps}, storage_writer=writer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
