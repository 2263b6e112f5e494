# SPDX-License-Identifier: Apache-2.0
"""What tests of operators over models share: small models, the truth, and that nothing was changed."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def seeded(seed, make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(dtype=torch.float64):
    return seeded(0, lambda: nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))).to(dtype)


def classes(*sizes, features=4, n_classes=3, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, features, generator=g).to(dtype), torch.randint(n_classes, (n,), generator=g))
        for n in sizes
    ]


class BatchNormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))


class Transformer(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=dropout, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Tied(nn.Module):
    """A tiny language model with tied embeddings."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.embed(ids)).cumsum(1)))


def truth(model, params, loss_of_model):
    """Dense Hessian of ``loss_of_model(model)`` in named parameters, row by row by reverse mode twice.

    Not by torch.func.hessian: vectorized, torch 2.13 differentiates layer and batch normalization wrongly (the Hessian it gives is
    not even symmetric; central differences agree with this one).
    """
    shapes = [p.shape for _, p in params]
    flat = torch.cat([p.detach().reshape(-1) for _, p in params])

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self):
            return loss_of_model(self.inner)

    call = Call()
    buffers = dict(model.named_buffers())

    def loss(theta):
        parts = theta.split([s.numel() for s in shapes])
        values = {f"inner.{n}": part.view(s) for (n, _), part, s in zip(params, parts, shapes, strict=True)}
        copies = {f"inner.{n}": b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(call, {**values, **copies})

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.functional.hessian(loss, flat)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@contextmanager
def unchanged(model):
    """Parameters, buffers, gradients, flags, modes, random states and torch's switches are the same bits afterwards."""

    def state():
        return {
            "tensors": [
                (n, t.detach().clone()) for n, t in [*model.named_parameters(), *model.named_buffers()]
            ],
            "objects": [id(p) for p in [*model.parameters(), *model.buffers()]],
            "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
            "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "flags": [p.requires_grad for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "random": (
                torch.get_rng_state(),
                random.getstate(),
                [np.asarray(x) for x in np.random.get_state()[1:]],
            ),
            "fast": torch.backends.mha.get_fastpath_enabled(),
            "sdpa": (
                torch.backends.cuda.flash_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled(),
            ),
            "grad_mode": torch.is_grad_enabled(),
        }

    before = state()
    try:
        yield
    finally:
        after = state()
        for key in ("objects", "versions", "flags", "modes", "fast", "sdpa", "grad_mode"):
            assert before[key] == after[key], key
        for (name, a), (_, b) in zip(before["tensors"], after["tensors"], strict=True):
            assert torch.equal(a, b), name
        for a, b in zip(before["grads"], after["grads"], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        assert torch.equal(before["random"][0], after["random"][0])
        assert before["random"][1] == after["random"][1]
        assert all(np.array_equal(a, b) for a, b in zip(before["random"][2], after["random"][2], strict=True))
