# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is a product of two thin factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError


def check_rank(rank: Any, shape: tuple[int, int]) -> int:
    """``rank`` as an integer from 1 to the smaller side. Raises LowtideValueError."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max(1, min(shape)):
        raise LowtideValueError(
            f"rank must be an integer from 1 to {min(shape)} for shape {shape}, got {rank!r}"
        )
    return rank


class LowRankLinear(nn.Module):
    """``y = (L R) x + b`` with L (out, rank) and R (rank, in): ``rank (in + out)`` parameters instead of ``in · out``.

    The compressed layers of WeLore (arXiv 2407.11239, section 3.2). Both factors are ordinary parameters, which any optimizer
    trains; :func:`lowtide.quant.save_model` writes them.

    Attributes:
        left: (out_features, rank). right: (rank, in_features).
        bias: (out_features,) or ``None``.
    """

    left: nn.Parameter
    right: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, *, device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """Factors and bias start at zero; :meth:`from_linear` is the usual way to make one.

        Raises:
            LowtideValueError: a rank that does not fit.
        """
        super().__init__()
        self.rank = check_rank(rank, (out_features, in_features))
        self.in_features, self.out_features = in_features, out_features
        options = {"device": device, "dtype": dtype}
        self.left = nn.Parameter(torch.zeros(out_features, rank, **options))
        self.right = nn.Parameter(torch.zeros(rank, in_features, **options))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, **options)) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """The best approximation of that rank, ``L = U √S`` and ``R = √S Vᵀ``; the bias is taken over as it is.

        Args:
            linear: weight float32, bfloat16 or float16, finite; the factors have its dtype, and are trainable.
            rank: from 1 to the smaller side.

        Raises:
            LowtideTypeError, LowtideValueError: a bad argument or a weight that is not finite.
        """
        if not isinstance(linear, nn.Linear):
            raise LowtideTypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        W = linear.weight.detach()
        check_rank(rank, (linear.out_features, linear.in_features))
        if not W.is_floating_point() or not bool(W.isfinite().all()):
            raise LowtideValueError(f"linear has a weight of {W.dtype} that must be finite floats; repair it")
        u, s, vh = torch.linalg.svd(W.float(), full_matrices=False)
        root = s[:rank].sqrt()
        layer = cls(linear.in_features, linear.out_features, rank, bias=False, device=W.device, dtype=W.dtype)
        with torch.no_grad():
            layer.left.copy_(u[:, :rank] * root)
            layer.right.copy_(root[:, None] * vh[:rank])
        layer.bias = linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the factors."""
        y: Tensor = nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)
        return y

    def dense(self) -> Tensor:
        """The weight ``L R``, (out_features, in_features)."""
        return self.left @ self.right

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )
