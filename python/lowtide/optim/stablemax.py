# SPDX-License-Identifier: Apache-2.0
"""StableMax: a softmax that grows linearly, so that confident predictions still have gradients in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError


def log_stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of :func:`stablemax`, differentiable; computed from logarithms, so that nothing overflows or is absorbed.

    Args:
        x: logits, floating point, any shape. bfloat16 and float16 are computed in float32.
        dim: the classes.

    Returns:
        ``log s(x) - log(sum of s(x))``, of ``x``'s shape; float32 for half precision.

    Raises:
        LowtideTypeError: ``x`` is not a floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise LowtideTypeError(f"x must be a floating-point tensor of logits, got {got}")
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    # log s(x) is log(1 + |x|) with x's sign; clamped so that neither branch is evaluated outside of its domain.
    log_s = torch.where(x >= 0, torch.log1p(x.clamp_min(0.0)), -torch.log1p((-x).clamp_min(0.0)))
    return torch.log_softmax(log_s, dim)


def stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """StableMax (Prieto et al. 2025, arXiv 2501.04697, section 4): ``s(x) / sum of s(x)``, with ``s(x) = x + 1`` where x >= 0 and
    ``1 / (1 - x)`` below.

    Softmax of large logits rounds all but one probability to zero, and with them the gradient. s grows linearly: no logit
    that training reaches does that.

    Args, returns and raises as :func:`log_stablemax`.

    >>> import torch, lowtide as lt
    >>> lt.optim.stablemax(torch.tensor([1.0, 0.0, -1.0]))
    tensor([0.5714, 0.2857, 0.1429])
    """
    return log_stablemax(x, dim).exp()


class StableMaxCrossEntropy(nn.Module):
    """Cross-entropy with :func:`stablemax` in place of softmax.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: labels that count nothing.
        dtype: logits are computed in it; ``torch.float64`` as in the paper's code. Default: float32 or their own.

    Raises:
        LowtideValueError: an unknown reduction.

    >>> import torch, lowtide as lt
    >>> loss = lt.optim.StableMaxCrossEntropy()
    >>> float(loss(torch.zeros(3, 4), torch.tensor([0, 1, 2])))  # log 4
    1.3862943649291992
    """

    def __init__(
        self, reduction: str = "mean", ignore_index: int = -100, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise LowtideValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.dtype = dtype

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``logits`` (N x C, or N x C x ...) for integer ``labels`` (N, or N x ...)."""
        x = logits if self.dtype is None else logits.to(self.dtype)
        return nn.functional.nll_loss(
            log_stablemax(x, 1), labels, reduction=self.reduction, ignore_index=self.ignore_index
        )
