# SPDX-License-Identifier: Apache-2.0
"""Writes the golden states of bitsandbytes 0.50.2 and torchao 0.18.0 beside this file (each needs its package):

    python tests/optim/golden/make.py adamw8bit|lion8bit|sgd8bit|torchao8|torchao4

Two steps over one coded and one small parameter, the state, and the weights after a third step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
LR, STEPS = 1e-2, 2
#: 4290 elements end in a short block, which bitsandbytes codes and torchao leaves in float32.
SHAPES = {"bitsandbytes": [(33, 130), (10,)], "torchao": [(64, 64), (33, 130), (10,)]}


def parameters(package: str) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(data(s, 0, i)) for i, s in enumerate(SHAPES[package])]


def data(shape: tuple[int, ...], step: int, index: int) -> torch.Tensor:
    """The same numbers with every version of torch."""
    rng = np.random.default_rng([step, index])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1))


def step(opt: Any, params: list[torch.nn.Parameter], number: int) -> None:
    for i, p in enumerate(params):
        p.grad = data(tuple(p.shape), number, i)
    opt.step()


def main(name: str) -> None:
    package = "torchao" if name.startswith("torchao") else "bitsandbytes"
    params = parameters(package)
    if package == "torchao":
        torch.compile = lambda f=None, **_: f or (lambda g: g)  # type: ignore[assignment]
        import torchao.optim

        opt = (torchao.optim.AdamW8bit if name.endswith("8") else torchao.optim.AdamW4bit)(params, lr=LR)
    else:
        import bitsandbytes.optim as bnb

        opt = {
            "adamw8bit": lambda: bnb.AdamW8bit(params, lr=LR),
            "lion8bit": lambda: bnb.Lion8bit(params, lr=LR),
            "sgd8bit": lambda: bnb.SGD8bit(params, lr=LR, momentum=0.9),
        }[name]()
    for number in range(1, STEPS + 1):
        step(opt, params, number)
    out: dict[str, np.ndarray] = {}
    for key, entry in opt.state_dict()["state"].items():
        entry = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
        for part, value in entry.items():
            if hasattr(value, "codes"):
                for field in ("codes", "scale", "qmap"):
                    out[f"{key}.{part}.{field}"] = getattr(value, field).numpy().copy()
            elif isinstance(value, torch.Tensor):
                out[f"{key}.{part}"] = value.numpy().copy()
    for i, p in enumerate(params):
        out[f"before.{i}"] = p.detach().numpy().copy()
    step(opt, params, STEPS + 1)
    for i, p in enumerate(params):
        out[f"after.{i}"] = p.detach().numpy().copy()
    np.savez_compressed(HERE / f"{name}.npz", **out)


if __name__ == "__main__":
    main(sys.argv[1])
