# SPDX-License-Identifier: Apache-2.0
"""PEFT's OSF under any rule of lowtide."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.integrations.peft._sites import require_peft
from lowtide.optim.constraints import NullSpace, Projection


def osf_constraint(model: nn.Module, adapter: str = "default") -> NullSpace:
    """Keep the factors that PEFT's OSF (Nayak et al. 2025, arXiv 2504.07097) trains orthogonal to those it froze.

    PEFT projects their gradients. Under SGD the updates are orthogonal then, too; Adam's are not, and drift into the directions that
    earlier tasks need. This projects the updates.

    Args:
        model: ``peft.get_peft_model(model, peft.OSFConfig(...))``.
        adapter: its name.

    Returns:
        The ``constraint`` of an optimizer of :mod:`lowtide.optim` for ``U_low`` (m x r, from the left) and ``V_low`` (r x n).

    Raises:
        LowtideTypeError, LowtideValueError: not a PEFT model, or without an OSF adapter of that name.
    """
    peft = require_peft()
    if not isinstance(model, peft.PeftModel):
        raise LowtideTypeError(
            f"model must be a PeftModel, got {type(model).__name__}; wrap it with peft.get_peft_model"
        )
    bases: dict[Tensor, Projection] = {}
    for layer in model.modules():
        factors: Any = getattr(layer, "osf_svd_params", None)
        if factors is None or adapter not in factors:
            continue
        parts: Any = layer
        for name, side in (("U", "left"), ("V", "right")):
            # Where the factors span the whole space PEFT keeps the trained half alone: its span is the complement.
            high = getattr(parts, f"_osf_{name}_high")
            keep = adapter not in high
            basis = (getattr(parts, f"_osf_{name}_low_init") if keep else high)[adapter].detach()
            basis = basis.T if side == "left" else basis
            if basis.numel():
                bases[factors[adapter][f"{name}_low"]] = Projection(basis, side=side, keep=keep)
    if not bases:
        raise LowtideValueError(
            f"model has no OSF adapter {adapter!r}; make it with peft.get_peft_model(model, peft.OSFConfig(...))"
        )
    return NullSpace(bases)
