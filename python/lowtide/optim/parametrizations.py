# SPDX-License-Identifier: Apache-2.0
"""The parametrization axis: coordinates of a weight other than its elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowtide.optim import weights as weight_store
from lowtide.optim.norms import channel_energy
from lowtide.optim.rules import Rule
from lowtide.optim.stores import StateStore


@dataclass(frozen=True)
class Polar:
    """A weight in the middle of its step, row by row.

    Attributes:
        weight: W, fp32, m x n. norm: its row norms, m. radial: gradient of the magnitudes, m. grad: gradient of the directions,
            fp32, m x n.
    """

    weight: Tensor
    norm: Tensor
    radial: Tensor
    grad: Tensor


@dataclass(frozen=True)
class WeightNorm:
    """Rows as magnitude and direction, ``W = g v / |v|`` (Salimans and Kingma 2016, arXiv 1602.07868; of GradNormLoRP, Huang et
    al., AAAI 2025, arXiv 2412.19616, section 3.2). With G the gradient of W, row by row::

        grad g = <G, v> / |v|
        grad v = (g / |v|) (G - (grad g / |v|) v)

    g and v depend on the length of v only by its ratio, so v is rescaled to ``|v| = g`` after each step: it is the weight itself,
    no copy is held, and a row costs the moments of its one magnitude. The subspace and the low-rank moments are those of
    v; g is stepped by the same rule, at the group's learning rate. Weight decay shrinks g, which does not become negative.
    A row of zeros has no direction: it moves as without this parametrization.

    For matrices of low-rank groups; others train as they are.
    """

    #: How the moments of g are named in the state.
    prefix: ClassVar[str] = "magnitude."

    def create_state(self, state: dict[str, Any], rows: int, rule: Rule) -> None:
        """Moments of the magnitudes, fp32."""
        for name, signed in rule.moments:
            StateStore().create(state, self.prefix + name, torch.Size((rows,)), signed)

    def moments(self, state: dict[str, Any]) -> dict[str, Any]:
        """Those moments under the rule's names."""
        size = len(self.prefix)
        return {name[size:]: value for name, value in state.items() if name.startswith(self.prefix)}

    def split(self, p: Tensor, grad: Tensor) -> Polar:
        """Gradients of magnitudes and directions, from the gradient of the weight (m x n)."""
        w = weight_store.dense(p).reshape(grad.shape)
        g = grad.float()
        norm = channel_energy(w, "right").sqrt_().float()
        safe = torch.where(norm > 0, norm, 1.0)
        radial = _row_sums(g * w) / safe
        return Polar(w, norm, radial, torch.addcmul(g, w, (radial / safe)[:, None], value=-1.0))

    def join(self, polar: Polar, update: Tensor, alpha: float, magnitude: Tensor) -> Tensor:
        """What to add to the weight: its directions move by ``alpha * update`` (m x n), its magnitudes to ``magnitude`` (m)."""
        v = torch.add(polar.weight, update, alpha=alpha)
        norm = channel_energy(v, "right").sqrt_().float()
        ratio = torch.where(norm > 0, magnitude / norm, 1.0)
        ratio = torch.where(polar.norm > 0, ratio, 1.0)
        return v.mul_(ratio[:, None]).sub_(polar.weight)


def _row_sums(x: Tensor) -> Tensor:
    """fp32, in an order that does not depend on threads."""
    from lowtide import ops

    return ops.matmul(x, torch.ones(x.shape[1], 1)).reshape(-1)
