# SPDX-License-Identifier: Apache-2.0
"""Rules whose second moment has fewer numbers than the matrix: Adafactor and Adam-mini."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.rules import Momentum, check_betas, check_eps

#: The eps of torch.optim.Adafactor where none is given: one ulp of 1 in fp32, in which all is computed.
_ULP = torch.finfo(torch.float32).eps


def _blocks(t: Tensor) -> Tensor:
    """All blocks of 256 elements of a tensor, as the count of skipped ones."""
    return torch.tensor(-(-t.numel() // 256))


@dataclass(frozen=True)
class AdafactorRule:
    """Adafactor (Shazeer & Stern, ICML 2018, arXiv 1804.04235, algorithms 4 and 5): of the second moment only its means by row and
    by column are kept. For an m x n matrix (N-D tensors as (first, rest)), beta2 = 1 - t^beta2_decay::

        R = beta2 R + (1 - beta2) mean by row of (g^2 + eps1),  C by column
        u = g / sqrt(R C / mean(R)),   u = u / max(1, rms(u) / d)
        m = beta1 m + (1 - beta1) u    (where beta1 is not 0)
        step size: lr; min(lr, 1 / sqrt(t)) with relative_step; times max(eps2, rms(weight)) with scale_parameter

    Vectors have a second moment for each element. A matrix whose gradient holds inf or NaN is skipped whole.

    Attributes:
        beta2_decay: exponent of the decay rate, < 0.
        eps: (eps1, eps2), each >= 0. eps1 None: 1e-30 in form ``"paper"``, 2**-23 in form ``"torch"``.
        d: the largest root mean square of the direction, > 0.
        beta1: decay rate of the first moment, in [0, 1). It is a mean of directions, not of gradients, and does not hold the
            learning rate (transformers' Adafactor keeps it multiplied in: the same while lr is constant).
        relative_step, scale_parameter: see above.
        form: ``"paper"`` (also transformers, galore-torch): eps1 is added to squares. ``"torch"``: the mean of R is at least
            eps1, the second moment at least eps1^2 (torch.optim.Adafactor).
    """

    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0
    beta1: float = 0.0
    relative_step: bool = False
    scale_parameter: bool = False
    form: str = "paper"

    kernel: ClassVar[str] = "adafactor"
    fused: ClassVar[bool] = False
    hyper: ClassVar[tuple[str, ...]] = ("beta2_decay", "eps", "d")
    factor_names: ClassVar[tuple[str, ...]] = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")
    first_moment: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not -math.inf < self.beta2_decay < 0.0:
            raise LowtideValueError(f"beta2_decay must be a finite number < 0, got {self.beta2_decay!r}")
        if len(self.eps) != 2:
            raise LowtideValueError(f"eps must be two numbers >= 0, got {self.eps!r}")
        for eps in self.eps:
            if eps is not None:
                check_eps(eps)
        if not 0.0 < self.d < math.inf:
            raise LowtideValueError(f"d must be a finite number > 0, got {self.d!r}")
        check_betas((self.beta1, 0.0))
        if self.form not in ("paper", "torch"):
            raise LowtideValueError(f"form must be 'paper' or 'torch', got {self.form!r}")

    @property
    def moments(self) -> tuple[tuple[str, bool], ...]:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return (("exp_avg", True),) if self.beta1 else ()

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.beta1

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """See :class:`~lowtide.optim.rules.Rule`."""
        if len(shape) < 2:
            return {"exp_avg_sq": shape}
        cols = shape[1:].numel()
        return {"exp_avg_sq_row": torch.Size((shape[0],)), "exp_avg_sq_col": torch.Size((cols,))}

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1), and ``a``, by which the direction is multiplied."""
        eps = self.eps[0]
        if self.form == "torch":
            eps = _ULP if eps is None else eps
            least: dict[str, Any] = {"eps": 0.0, "least": eps * eps, "mean_least": eps}
        else:
            least = {"eps": 1e-30 if eps is None else eps}
        return {"a": lr, "beta2": 1.0 - float(step) ** self.beta2_decay, "threshold": self.d, **least}

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`~lowtide.optim.rules.Rule`."""
        if self.relative_step:
            lr = min(lr, 1.0 / math.sqrt(step))
        if self.scale_parameter:
            lr *= max(self.eps[1], weight_store.root_mean_square(p))
        return lr

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`~lowtide.optim.rules.Rule`."""
        from lowtide import ops

        if "exp_avg_sq" in state:
            row, col = state["exp_avg_sq"].view(-1), torch.empty(0)
        else:
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        if u.numel() == 0:
            return _blocks(u)
        scalars = self.scalars(step)
        del scalars["a"]
        if int(ops.adafactor_(u, g, row, col, **scalars)):
            return _blocks(u)
        if self.beta1:
            momentum(u, momentum=self.beta1, weight=1.0 - self.beta1)
        return torch.tensor(0)


@dataclass(frozen=True)
class AdamMiniRule:
    """Adam-mini (Zhang et al., ICLR 2025, arXiv 2406.16793, algorithm 2): Adam with one second moment a block of the matrix, the
    mean of its squares::

        m = beta1 m + (1 - beta1) g
        v_b = beta2 v_b + (1 - beta2) mean(g_b^2)
        direction = m / bc1 / (sqrt(v_b / bc2) + eps)

    Blocks are runs of rows: one row each, or ``blocks`` equal ones (query and key weights: one a head,
    :func:`lowtide.optim.head_groups`). Vectors are stepped by Adam. A matrix whose gradient holds inf or NaN is skipped whole.

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        blocks: number of blocks that a matrix (in a subspace: its projected gradient) has, or 0 for one a row.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    blocks: int = 0

    kernel: ClassVar[str] = "adam_mini"
    fused: ClassVar[bool] = False
    hyper: ClassVar[tuple[str, ...]] = ("betas", "eps", "blocks")
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("exp_avg", True),)
    factor_names: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)
    first_moment: ClassVar[str | None] = "exp_avg"

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_eps(self.eps)
        if not isinstance(self.blocks, int) or isinstance(self.blocks, bool) or self.blocks < 0:
            raise LowtideValueError(f"blocks must be an integer >= 0, got {self.blocks!r}")

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.betas[0]

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """See :class:`~lowtide.optim.rules.Rule`.

        Raises:
            LowtideValueError: ``blocks`` does not divide the rows.
        """
        if len(shape) == 0:
            return {"exp_avg_sq": torch.Size((1,))}
        if len(shape) == 1 or self.blocks == 0:
            return {"exp_avg_sq": torch.Size((shape[0],))}
        if shape[0] % self.blocks:
            raise LowtideValueError(
                f"blocks must divide the rows of each matrix, got {self.blocks} for shape {tuple(shape)}"
            )
        return {"exp_avg_sq": torch.Size((self.blocks,))}

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1)."""
        bc1, bc2 = (1.0 - beta**step for beta in self.betas)
        return {"a": lr / bc1, "s": 1.0 / math.sqrt(bc2), "eps": self.eps, "beta2": self.betas[1]}

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`~lowtide.optim.rules.Rule`."""
        return lr

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`~lowtide.optim.rules.Rule`."""
        from lowtide import ops

        v = state["exp_avg_sq"]
        if u.numel() == 0:
            return _blocks(u)
        factor = torch.empty_like(v)
        if int(ops.block_adam_(factor, u if g is None else g, v, **self.scalars(step))):
            u.zero_()
            return _blocks(u)
        if g is not None:
            u.copy_(g)
        momentum(u, momentum=self.betas[0], weight=1.0 - self.betas[0])
        ops.scale_rows_(u, factor)
        return torch.tensor(0)
