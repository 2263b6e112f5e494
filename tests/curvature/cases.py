# SPDX-License-Identifier: Apache-2.0
"""Small models in float64 whose Hessian fits into memory, and matrices whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Case:
    """A model, its batches and loss, under 5000 parameters.

    ``loss`` is what an operator takes: a criterion's name, a module, or ``loss(model, batch)``.
    """

    name: str
    model: nn.Module
    batches: list[Any]
    loss: Any
    #: mean loss of one batch, for the truth
    value: Callable[[nn.Module, Any], Tensor]

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that are differentiated, tied ones once, in order."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def flat_loss(self, flat: Tensor) -> Tensor:
        """The loss over all batches, weighted by samples, of flat parameters ``(n,)``."""
        parts = flat.split([p.numel() for _, p in self.named])
        values = {name: part.view(p.shape) for (name, p), part in zip(self.named, parts, strict=True)}
        sizes = [len(batch[0]) for batch in self.batches]

        class Called(nn.Module):
            def __init__(self, case: Case) -> None:
                super().__init__()
                self.case, self.inner = case, case.model

            def forward(self, batch: Any) -> Tensor:
                return self.case.value(self.inner, batch)

        called = Called(self)
        inner = {"inner." + name: value for name, value in values.items()}
        total = torch.zeros((), dtype=flat.dtype)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for batch, size in zip(self.batches, sizes, strict=True):
                total = total + torch.func.functional_call(called, inner, (batch,)) * (size / sum(sizes))
        return total

    @property
    def flat(self) -> Tensor:
        """The parameters, ``(n,)``."""
        return torch.cat([p.detach().reshape(-1) for _, p in self.named])

    def gradient(self) -> Tensor:
        """``(n,)``."""
        return torch.func.grad(self.flat_loss)(self.flat)

    def dense(self) -> Tensor:
        """The Hessian, ``(n, n)``: reverse mode twice, row by row.

        Not torch.func.hessian: batched, torch 2.13 differentiates layer normalization wrongly (not even symmetrically).
        """
        return torch.autograd.functional.hessian(self.flat_loss, self.flat)


def _classes(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def classification(shape: tuple[int, ...], classes: int, sizes: tuple[int, ...], seed: int = 1) -> list[Any]:
    """Batches of the sizes given, of standard normal inputs and random classes."""
    g = _generator(seed)
    return [
        (torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(classes, (n,), generator=g))
        for n in sizes
    ]


def mlp(sizes: tuple[int, ...] = (12, 5)) -> Case:
    """Three layers, tanh, cross-entropy; two uneven batches unless told otherwise."""
    model = _seeded(
        0,
        lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)),
    )
    return Case("mlp", model, classification((6,), 4, sizes), nn.CrossEntropyLoss(), _classes)


def regression() -> Case:
    """Two layers, GELU, mean squared error."""
    model = _seeded(2, lambda: nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 2)))
    g = _generator(3)
    batches = [(torch.randn(7, 5, generator=g).double(), torch.randn(7, 2, generator=g).double())]
    return Case(
        "regression", model, batches, nn.MSELoss(), lambda m, b: nn.functional.mse_loss(m(b[0]), b[1])
    )


def conv() -> Case:
    """A convolution with pooling, and a head."""
    model = _seeded(
        4,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3)
        ),
    )
    return Case("conv", model, classification((2, 8, 8), 3, (6, 3)), nn.CrossEntropyLoss(), _classes)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight  # tied

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in self.mix(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.norm(x + y.transpose(1, 2).flatten(2))).flatten(0, 1)


def attention() -> Case:
    """Tied embeddings and scaled_dot_product_attention, which has no second derivative outside of the math backend."""
    model = _seeded(5, _Attention)
    g = _generator(6)
    batches = []
    for n in (3, 2):
        tokens = torch.randint(11, (n, 6), generator=g)
        batches.append((tokens[:, :-1], tokens[:, 1:]))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1].reshape(-1))

    return Case("attention", model, batches, loss, loss)


def matrix(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric float64 matrix of these eigenvalues in a random orthonormal basis."""
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=_generator(seed), dtype=torch.float64))[0]
    h = (q * values.double()) @ q.T
    return (h + h.T) / 2


def power_law(n: int = 60, exponent: float = 1.5) -> Tensor:
    """Eigenvalues 1, 2^-a, 3^-a, ..."""
    return torch.arange(1, n + 1, dtype=torch.float64) ** -exponent


def outliers_and_bulk(n: int = 60, seed: int = 7) -> Tensor:
    """Ten large eigenvalues above a bulk of both signs."""
    bulk = 0.05 * torch.randn(n - 10, generator=_generator(seed), dtype=torch.float64)
    return torch.cat([torch.linspace(5, 20, 10, dtype=torch.float64), bulk])
