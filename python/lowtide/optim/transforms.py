# SPDX-License-Identifier: Apache-2.0
"""The transform axis: what stands in for the gradients of a step, made of all of them together before rules see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim import weights as weight_store

if TYPE_CHECKING:
    from lowtide.curvature._gradient_window import WindowStore
    from lowtide.optim.engine import Composed

#: For each group: parameters with their ids and gradients.
Work: TypeAlias = "list[tuple[dict[str, Any], list[tuple[Tensor, int, Tensor]]]]"


class GradientTransform(Protocol):
    """What the engine asks of a transform."""

    def create(self, state: dict[str, Any], shape: torch.Size) -> None:
        """Add what is kept for a parameter of this shape to its state."""
        ...

    @property
    def shared_nbytes(self) -> int:
        """Bytes that all parameters share; they lie in the state of one of them."""
        ...

    def check(self, entry: dict[str, Any]) -> None:
        """Refuse the saved state of a parameter whose shared part does not fit."""
        ...

    def apply(self, opt: Composed, work: Work) -> Work:
        """The same parameters with what they are stepped by; without those that are skipped."""
        ...


@dataclass(frozen=True)
class InverseFisher:
    """Gradients times the inverse of the empirical Fisher matrix of the last ones (M-FAC, Frantar, Kurtic & Alistarh, NeurIPS 2021,
    arXiv 2107.03356, section 3.2): see :class:`lowtide.curvature.MFAC`. The gradient enters the window before it is multiplied.

    A step with inf or NaN in any of the gradients that share a matrix is skipped for all of them. A parameter without a
    gradient counts as one of zeros.

    Attributes:
        ngrads: gradients in the window. damp: the paper's lambda, > 0.
        window: ``"fp32"``, ``"bf16"`` or ``"int8"``: ``ngrads`` times 4, 2 or 1.016 bytes a parameter.
        scope: ``"model"``: one matrix for all parameters; ``"tensor"``: one for each, without what they have in common.
    """

    ngrads: int = 1024
    damp: float = 1e-5
    window: str = "fp32"
    scope: str = "model"

    def __post_init__(self) -> None:
        from lowtide.curvature._mfac import _check_damp

        _check_damp(self.damp)
        if self.window == "fp64":
            raise LowtideValueError(
                "window must be 'fp32', 'bf16' or 'int8', got 'fp64': gradients are float32"
            )
        if self.scope not in ("model", "tensor"):
            raise LowtideValueError(f"scope must be 'model' or 'tensor', got {self.scope!r}")
        assert self.store.size

    @property
    def store(self) -> WindowStore:
        """How windows are kept."""
        from lowtide.curvature._gradient_window import WindowStore

        return WindowStore(self.ngrads, self.window)

    @property
    def shared_nbytes(self) -> int:
        """See :class:`GradientTransform`: the Gram matrix."""
        return 8 * self.ngrads**2 if self.scope == "model" else 0

    def create(self, state: dict[str, Any], shape: torch.Size) -> None:
        """See :class:`GradientTransform`."""
        self.store.create(state, shape.numel())
        if self.scope == "tensor":
            self._create_gram(state)

    def _create_gram(self, state: dict[str, Any]) -> None:
        state["gram"] = torch.zeros((self.ngrads, self.ngrads), dtype=torch.float64)
        state["pushed"] = 0

    def check(self, entry: dict[str, Any]) -> None:
        """See :class:`GradientTransform`."""
        gram, pushed = entry.get("gram"), entry.get("pushed", 0)
        fits = isinstance(gram, Tensor) and gram.shape == (self.ngrads,) * 2 and gram.dtype == torch.float64
        if "gram" in entry and not (fits and isinstance(pushed, int) and pushed >= 0):
            raise LowtideValueError(
                f"saved state 'gram' does not fit a window of {self.ngrads} gradients; build the optimizer with the ngrads that "
                "was saved"
            )

    def apply(self, opt: Composed, work: Work) -> Work:
        """See :class:`GradientTransform`."""
        for group, found in work:
            for p, _, _ in found:
                if not opt.state[p]:
                    opt._axes.create_state(group, p, opt.state[p])
        items = [item for _, found in work for item in found]
        if not items:
            return work
        blocks = [items] if self.scope == "model" else [[item] for item in items]
        changed: dict[int, Tensor] = {}
        for block in blocks:
            bad = [g for _, _, g in block if not weight_store.finite(g)]
            if bad:
                opt._axes.skipped += [weight_store.nonfinite_blocks(g) for g in bad]
            else:
                us = self._precondition(opt, block)
                changed.update((id(p), u) for (p, _, _), u in zip(block, us, strict=True))
        return [
            (group, [(p, i, changed[id(p)]) for p, i, _ in found if id(p) in changed])
            for group, found in work
        ]

    def _precondition(self, opt: Composed, block: list[tuple[Tensor, int, Tensor]]) -> Iterator[Tensor]:
        from lowtide.curvature._gradient_window import factor, solve

        store = self.store
        states = [opt.state[p] for p, _, _ in block]
        keeper = states[0]
        if self.scope == "model":
            keeper = next((s for s in opt.state.values() if "gram" in s), keeper)
            if "gram" not in keeper:
                self._create_gram(keeper)
            here = {id(s) for s in states}
            for state in opt.state.values():
                if state and id(state) not in here:
                    store.write(state, keeper["pushed"] % self.ngrads, None, seed=0, step=0, param=0)
        gram, row = keeper["gram"], keeper["pushed"] % self.ngrads
        kept = torch.zeros(self.ngrads, dtype=torch.float64)
        for (_, i, g), state in zip(block, states, strict=True):
            flat = g.detach().float().reshape(-1)
            store.write(state, row, flat, seed=opt._axes.seed, step=keeper["pushed"], param=i)
            kept += store.dots(state, store.row(state, row))
        gram[row] = kept
        gram[:, row] = kept
        keeper["pushed"] += 1
        # F^-1 G' = m G' (m damp I + G G')^-1: of a row of the window nothing cancels, and nothing is left of 1 / damp.
        m = min(keeper["pushed"], self.ngrads)
        unit = torch.zeros(self.ngrads, dtype=torch.float64)
        unit[row] = m
        c = solve(factor(gram, self.damp * m), unit)
        for (_, _, g), state in zip(block, states, strict=True):
            yield store.combine(state, c).reshape(g.shape)
