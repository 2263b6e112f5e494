# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization: the gradient of a step is taken where the loss is worst nearby."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowtide._compile import uncompiled
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.engine import Composed
from lowtide.optim.norms import total
from lowtide.optim.running_stats import RunningStats

#: Added to the norm that perturbations are divided by.
_TINY = 1e-12


def _energy(x: Tensor) -> float:
    """Sum of squares, in double, in an order of its own."""
    from lowtide import ops
    from lowtide.ops._cuda import native

    if x.numel() == 0:
        return 0.0
    if not native(x.device) or x.dtype not in (torch.float32, torch.bfloat16):
        return float(x.double().square().sum())
    x = x.contiguous()
    return total(ops.row_dots(x, x, x.shape[0] if x.dim() > 1 else 1))


class SAM(Optimizer):
    """SAM (Foret et al., ICLR 2021, arXiv 2010.01412, algorithm 1) around any optimizer; ASAM with ``adaptive`` (Kwon et al., ICML
    2021, arXiv 2102.11600, algorithm 1)::

        e = rho g / |g|                                   SAM
        e = rho T^2 g / |T g|,  T = diag(|w| + eta)       ASAM
        the base optimizer steps from w by the gradient at w + e

    |.| is the norm over all parameters. The weights are saved, moved, and put back bit for bit before the base optimizer
    sees them: one copy of the weights lives between the two backward passes. Running statistics of normalisation layers are
    those of the first pass.

    Either with a closure that evaluates loss and gradients twice::

        opt.step(closure)

    or in two steps, each after a backward pass of its own::

        loss.backward(); opt.first_step(); opt.zero_grad()
        loss_of(model).backward(); opt.second_step(); opt.zero_grad()

    Groups, state and their dictionaries are those of the base optimizer. A gradient with inf or NaN perturbs nothing. Weights in
    bfloat16 are perturbed up to rounding.

    Args:
        params: parameters or groups, as ``base`` takes them.
        base: called with ``params``; returns the optimizer that steps, such as ``lambda p: lt.optim.AdamW(p, lr=1e-3)``.
        rho: size of the neighbourhood, >= 0 (SAM 0.05; ASAM wants some ten times that).
        adaptive: measure the neighbourhood relative to each weight.
        eta: added to weights' sizes there, >= 0.
        model: names the normalisation layers where they run compiled; hooks find them otherwise.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, packed weights, or a base that differentiates gradients again.
    """

    def __init__(
        self, params: Iterable[Any], base: Callable[[Any], Optimizer], *, rho: float = 0.05, adaptive: bool = False,
        eta: float = 0.01, model: nn.Module | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("rho", rho), ("eta", eta)):
            if not 0.0 <= value < math.inf:
                raise LowtideValueError(f"{name} must be a finite number >= 0, got {value!r}")
        if not callable(base):
            raise LowtideTypeError(
                f"base must be called with params and return an optimizer, got {type(base).__name__}; "
                "pass lambda p: lt.optim.AdamW(p, lr=1e-3)"
            )
        optimizer = base(params)
        if not isinstance(optimizer, Optimizer):
            raise LowtideTypeError(f"base must return an optimizer, got {type(optimizer).__name__}")
        curvature = optimizer._axes.curvature if isinstance(optimizer, Composed) else None
        if curvature is not None and curvature.required:
            raise LowtideTypeError(
                f"base must step by gradients, {type(optimizer).__name__} differentiates them where the weights are no more; "
                "use another base"
            )
        for p in chain.from_iterable(g["params"] for g in optimizer.param_groups):
            if weight_store.is_quantized(p):
                raise LowtideTypeError(
                    "params must be dense, codes of packed weights cannot be perturbed by so little"
                )
        self.base = optimizer
        self.rho, self.eta, self.adaptive = float(rho), float(eta), bool(adaptive)
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._perturbed = False
        self._stats = RunningStats(model)
        super().__init__(optimizer.param_groups, optimizer.defaults)

    # ------------------------------------------------------------------ stepping

    @uncompiled
    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights to where the gradients point, up to the edge of the neighbourhood.

        Args:
            zero_grad: drop the gradients afterwards.

        Raises:
            LowtideRuntimeError: they are there already.
        """
        if self._perturbed:
            raise LowtideRuntimeError(
                "first_step was called twice; call second_step after the second backward pass"
            )
        found = [(g, p, p.grad) for g in self.base.param_groups for p in g["params"] if p.grad is not None]
        for _, _, grad in found:
            if grad.is_sparse:
                raise LowtideTypeError("gradients must be dense; build the embedding with sparse=False")
        energy = sum(_energy(self._scaled(p, g)) for _, p, g in found)
        self._stats.watch()
        self._perturbed = True
        if math.isfinite(energy) and self.rho > 0.0:
            self._saved = [(p, p.detach().clone()) for _, p, _ in found]
            for group, p, grad in found:
                scale = (
                    self.rho / (math.sqrt(energy) + _TINY) * (-1.0 if group.get("maximize", False) else 1.0)
                )
                p.add_(self._scaled(p, self._scaled(p, grad)).to(p.dtype), alpha=scale)
        if zero_grad:
            self.zero_grad()

    @uncompiled
    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Put the weights back and let the base optimizer step them by the gradients that are there now.

        Args:
            zero_grad: drop the gradients afterwards.

        Raises:
            LowtideRuntimeError: there was no :meth:`first_step`.
        """
        if not self._perturbed:
            raise LowtideRuntimeError(
                "SAM steps by a second gradient: pass step(closure), or call first_step, zero_grad, backward and second_step"
            )
        self.restore()
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights and running statistics back without a step, as if :meth:`first_step` had not been."""
        for p, value in self._saved:
            p.copy_(value)
        self._saved = []
        self._stats.restore()
        self._perturbed = False

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both steps.

        Args:
            closure: drops the gradients, computes the loss and its gradients; called at the weights and beside them. Left
                out after :meth:`first_step`: then this is :meth:`second_step`.

        Returns:
            The loss at the weights, or None.

        Raises:
            LowtideRuntimeError: neither a closure nor a :meth:`first_step`.
        """
        if closure is None:
            self.second_step()
            return None
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return loss

    def _scaled(self, p: Tensor, grad: Tensor) -> Tensor:
        """T g; the gradient itself for SAM."""
        return grad * (p.detach().abs() + self.eta) if self.adaptive else grad

    # ------------------------------------------------------------------ the methods of an optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Nothing: there are only the base optimizer's."""

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        """Nothing: there is only the base optimizer's."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if not any(param_group is group for group in self.base.param_groups):
            self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's; ``rho`` is an argument, not state.

        Raises:
            LowtideRuntimeError: the weights are perturbed, and would be saved so.
        """
        if self._perturbed:
            raise LowtideRuntimeError(
                "the weights are perturbed between first_step and second_step; save before or after, or call restore()"
            )
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` of this or of the base optimizer gave."""
        self.base.load_state_dict(state_dict)

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the base optimizer by kind; ``perturbed``: the copy of the weights that a step keeps for a while."""
        if not isinstance(self.base, Composed):
            raise LowtideTypeError(
                f"{type(self.base).__name__} does not count its bytes; optimizers of lowtide.optim do"
            )
        return {**self.base.state_bytes(), "perturbed": sum(value.nbytes for _, value in self._saved)}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        own = ("base", "rho", "eta", "adaptive", "defaults", "_saved", "_perturbed", "_stats")
        return {name: self.__dict__[name] for name in own}
