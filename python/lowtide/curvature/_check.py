# SPDX-License-Identifier: Apache-2.0
"""Whether an operator over a model is what estimators assume: the same each time, symmetric, and accurate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from lowtide.curvature._linear_operator import LinearOperator


@dataclass(frozen=True)
class OperatorCheck:
    """What :meth:`HessianOperator.check` found.

    Attributes:
        deterministic: whether the same product twice gave the same bits.
        symmetry: ``|u'Hv - v'Hu|``, relative to ``|u| |Hv|``; rounding, and the step of finite differences, make it small but not 0.
        fd_error: relative error of a finite-difference product of a probe against an exact one; where the model has
            no exact product, how much products of neighbouring steps differ; None where neither applies.
        exact: the method that ``fd_error`` is measured against, None for the estimate.
        method: how the operator multiplies.
    """

    deterministic: bool
    symmetry: float
    fd_error: float | None
    exact: str | None
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def check_symmetry(op: LinearOperator, seed: int) -> tuple[bool, float]:
    """(deterministic, relative asymmetry) by three products of probes."""
    u, v = op.layout.probe(seed, 0), op.layout.probe(seed, 1)
    hu, hv = op.hvp(u), op.hvp(v)
    deterministic = torch.equal(hv, op.hvp(v))
    gap = abs(float(u.double() @ hv.double()) - float(v.double() @ hu.double()))
    size = float(u.double().norm()) * max(float(hv.double().norm()), float(hu.double().norm()))
    return deterministic, gap / size if size else 0.0
