# SPDX-License-Identifier: Apache-2.0
"""Which weights matter: saliencies from curvature, scores from gradients and inputs, and the masks they give."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError

_PATTERN = re.compile(r"(\d+):(\d+)")


def obd_saliency(weight: Tensor, diagonal: Tensor) -> Tensor:
    """``h_qq w_q^2 / 2``: what setting a weight to 0 costs by the diagonal of the Hessian (LeCun et al. 1990, optimal brain damage).

    Args:
        weight: any shape. diagonal: of the Hessian, the same shape.
    """
    _same_shape(weight, diagonal, "diagonal")
    return diagonal * weight.detach().square() / 2


def obs_saliency(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """``w_q^2 / (2 [H^-1]_qq)``: the cost if all other weights adapt (Hassibi & Stork 1993, optimal brain surgeon).

    Args:
        weight: any shape. inverse_diagonal: of the inverse Hessian, positive, the same shape.

    Raises:
        LowtideValueError: another shape, or a number that is not positive: there the quadratic has no minimum.
    """
    _same_shape(weight, inverse_diagonal, "inverse_diagonal")
    if not bool((inverse_diagonal > 0).all()):
        raise LowtideValueError("inverse_diagonal must be positive everywhere; add damping to the Hessian")
    return weight.detach().square() / (2 * inverse_diagonal)


def obs_update(weight: Tensor, column: Tensor, index: int) -> Tensor:
    """What all weights change by if weight ``index`` becomes 0: ``-w_q / [H^-1]_qq H^-1 e_q`` (Hassibi & Stork 1993).

    Args:
        weight: flat ``(n,)``. column: column ``index`` of the inverse Hessian, ``(n,)``. index: 0 to n - 1.
    """
    if weight.dim() != 1:
        raise LowtideValueError(
            f"weight must be flat, got shape {tuple(weight.shape)}; pass weight.reshape(-1)"
        )
    _same_shape(weight, column, "column")
    if not 0 <= index < len(weight):
        raise LowtideValueError(f"index must be from 0 to {len(weight) - 1}, got {index}")
    if not float(column[index]) > 0:
        raise LowtideValueError(f"column[{index}] must be positive; add damping to the Hessian")
    return -(weight.detach()[index] / column[index]) * column


def _same_shape(weight: Tensor, other: Tensor, name: str) -> None:
    if other.shape != weight.shape:
        raise LowtideValueError(
            f"{name} must have the weight's shape {tuple(weight.shape)}, got {tuple(other.shape)}"
        )


def prune_mask(scores: Tensor, *, sparsity: float | None = None, pattern: str | None = None) -> Tensor:
    """Which weights of a layer stay, chosen in each row by itself: True for those with the highest scores.

    Args:
        scores: ``(out, in)``.
        sparsity: share of each row that goes, 0 to 1, rounded down to whole weights; or
        pattern: ``"N:M"``, e.g. ``"2:4"``: of M neighbours in a row N go, and M must divide the row. Ties go to the earlier one.

    Returns:
        bool ``(out, in)``.

    >>> import torch
    >>> from lowtide.curvature import prune_mask
    >>> prune_mask(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), pattern="2:4").tolist()
    [[True, False, False, True]]
    """
    if scores.dim() != 2:
        raise LowtideValueError(f"scores must be a matrix (out, in), got shape {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        raise LowtideValueError("scores has NaN; its weights or statistics are not finite")
    if (sparsity is None) == (pattern is None):
        raise LowtideValueError("give sparsity or pattern, one of the two")
    if pattern is None:
        if sparsity is None or not 0 <= sparsity <= 1:
            raise LowtideValueError(f"sparsity must be from 0 to 1, got {sparsity!r}")
        return _keep(scores, int(scores.shape[1] * sparsity))
    match = _PATTERN.fullmatch(pattern)
    n, m = (int(match[1]), int(match[2])) if match else (1, 0)
    if n > m or m == 0:
        raise LowtideValueError(
            f"pattern must be 'N:M' with N of M weights to prune, N <= M, got {pattern!r}"
        )
    if scores.shape[1] % m:
        raise LowtideValueError(
            f"pattern {pattern}: {m} does not divide the {scores.shape[1]} columns of scores"
        )
    return _keep(scores.reshape(-1, m), n).reshape(scores.shape)


def _keep(rows: Tensor, gone: int) -> Tensor:
    mask = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    order = rows.sort(dim=1, descending=True, stable=True).indices  # of equals, the earlier one stays
    return mask.scatter_(1, order[:, rows.shape[1] - gone :], False)
