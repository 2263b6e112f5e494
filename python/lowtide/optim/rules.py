# SPDX-License-Identifier: Apache-2.0
"""The rule axis: what turns a gradient and its moments into a direction.

A rule is a frozen dataclass. Its fields named in ``hyper`` may differ from one parameter group to the next; ``moments``
lists its state tensors of the gradient's shape and whether they take both signs (which code map stores them); ``factors``
gives its other ones, which are smaller and stay fp32. Fused rules are run by a kernel called ``kernel``, whose numbers of one
step ``scalars`` prepares (:mod:`lowtide.ops.optim` has the formulas); the others look at a matrix as a whole
(:mod:`lowtide.optim.rules_factored`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError


class Momentum(Protocol):
    """Replaces ``u`` by the first moment: ``m = momentum m + weight u``, in whatever store it lies; ``load`` decodes another
    moment for a gradient of this shape."""

    def __call__(self, u: Tensor, *, momentum: float, weight: float) -> None: ...  # noqa: D102

    def load(self, name: str, shape: torch.Size) -> Tensor: ...  # noqa: D102


class Rule(Protocol):
    """What the engine asks of a rule.

    Attributes:
        kernel: names the rule; of the fused ones also the kernel. fused: whether one kernel steps lists of tensors.
        hyper: fields that groups may override.
        moments: (name, takes both signs) of each state of the gradient's shape.
        factor_names: all names that :meth:`factors` may give.
        first_moment: name of the running mean of the gradient, or None where there is none.
        momentum_decay: how much of the first moment stays in a step.
    """

    fused: ClassVar[bool]
    hyper: ClassVar[tuple[str, ...]]
    factor_names: ClassVar[tuple[str, ...]]

    @property
    def kernel(self) -> str: ...  # noqa: D102

    @property
    def moments(self) -> tuple[tuple[str, bool], ...]: ...  # noqa: D102

    @property
    def first_moment(self) -> str | None: ...  # noqa: D102

    @property
    def momentum_decay(self) -> float: ...  # noqa: D102

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Names and shapes of the fp32 states that are smaller than the gradient of this shape."""
        ...

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1)."""
        ...

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """What the direction is multiplied by: ``lr``, or what the rule makes of it."""
        ...

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """Of rules that are not fused: overwrite ``u`` (fp32) by the direction of ``g`` (of ``u`` where g is None) and advance
        the state. Returns the blocks of 256 elements that were left alone, an int64 tensor with no dimensions."""
        ...


class _Fused:
    """Rules that a fused kernel runs: all states are moments of the gradient's shape, the first one its running mean."""

    fused: ClassVar[bool] = True
    factor_names: ClassVar[tuple[str, ...]] = ()

    @property
    def moments(self) -> tuple[tuple[str, bool], ...]:
        """See :class:`Rule`."""
        raise NotImplementedError

    @property
    def first_moment(self) -> str | None:
        """See :class:`Rule`."""
        return self.moments[0][0]

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """See :class:`Rule`."""
        return {}

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`Rule`."""
        return lr

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`Rule`."""
        raise NotImplementedError(f"{type(self).__name__} is run by a fused kernel")


def check_betas(betas: tuple[float, float]) -> None:
    """Refuse what no two moments decay by."""
    if len(betas) != 2 or not all(0.0 <= b < 1.0 for b in betas):
        raise LowtideValueError(f"betas must be two numbers in [0, 1), got {betas!r}")


def check_eps(eps: float) -> None:
    """Refuse what cannot be added to a denominator."""
    if not (eps >= 0.0 and math.isfinite(eps)):
        raise LowtideValueError(f"eps must be a finite number >= 0, got {eps!r}")


@dataclass(frozen=True)
class AdamRule(_Fused):
    """Adam's moments and normalisation (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019).

    ``form`` says where epsilon stands relative to the bias correction::

        "torch":    m / bc1 / (sqrt(v / bc2) + eps)              (the papers, torch.optim.AdamW)
        "hf":       sqrt(bc2) / bc1 * m / (sqrt(v) + eps)        (old transformers AdamW, galore-torch)

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        form: ``"torch"`` or ``"hf"``.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    form: str = "torch"

    kernel: ClassVar[str] = "adam"
    hyper: ClassVar[tuple[str, ...]] = ("betas", "eps")
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("exp_avg", True), ("exp_avg_sq", False))

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_eps(self.eps)
        if self.form not in ("torch", "hf"):
            raise LowtideValueError(f"form must be 'torch' or 'hf', got {self.form!r}")

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.betas[0]

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1): ``lr`` times the direction ``a * m / (sqrt(v) * s + eps)``."""
        bc1 = 1.0 - self.betas[0] ** step
        bc2 = 1.0 - self.betas[1] ** step
        if self.form == "torch":
            a, s = lr / bc1, 1.0 / math.sqrt(bc2)
        else:
            a, s = lr * math.sqrt(bc2) / bc1, 1.0
        return {"a": a, "s": s, "eps": self.eps, "beta1": self.betas[0], "beta2": self.betas[1]}


@dataclass(frozen=True)
class AdaBeliefRule(_Fused):
    """AdaBelief (Zhuang et al., NeurIPS 2020, arXiv 2010.07468, algorithm 2)::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) (g - m)^2 + eps
        direction = m / bc1 / (sqrt(v / bc2) + eps)

    Attributes:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the second moment at each step and to its root, >= 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16

    kernel: ClassVar[str] = "adabelief"
    hyper: ClassVar[tuple[str, ...]] = ("betas", "eps")
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("exp_avg", True), ("exp_avg_var", False))

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_eps(self.eps)

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.betas[0]

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1)."""
        bc1 = 1.0 - self.betas[0] ** step
        bc2 = 1.0 - self.betas[1] ** step
        return {
            "a": lr / bc1,
            "s": 1.0 / math.sqrt(bc2),
            "eps": self.eps,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
        }


@dataclass(frozen=True)
class LionRule(_Fused):
    """Lion (Chen et al., NeurIPS 2023, arXiv 2302.06675, algorithm 2)::

        direction = sign(beta1 m + (1 - beta1) g)
        m = beta2 m + (1 - beta2) g

    Attributes:
        betas: of the direction and of the moment, each in [0, 1).
    """

    betas: tuple[float, float] = (0.9, 0.99)

    kernel: ClassVar[str] = "lion"
    hyper: ClassVar[tuple[str, ...]] = ("betas",)
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("exp_avg", True),)

    def __post_init__(self) -> None:
        check_betas(self.betas)

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.betas[1]

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers; every step has the same."""
        return {"a": lr, "beta1": self.betas[0], "beta2": self.betas[1]}


@dataclass(frozen=True)
class SGDRule(_Fused):
    """SGD with momentum (Polyak 1964; Nesterov's form: Sutskever et al., ICML 2013), as ``torch.optim.SGD``::

        m = momentum m + (1 - dampening) g        (m = g at the first step)
        direction = m, or g + momentum m with nesterov

    Attributes:
        momentum: in [0, 1). With 0 the direction is the gradient (the moment is kept all the same).
        dampening: in [0, 1]; 0 with nesterov.
        nesterov: look ahead along the new moment.
    """

    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False

    kernel: ClassVar[str] = "sgd"
    hyper: ClassVar[tuple[str, ...]] = ("momentum", "dampening", "nesterov")
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (("momentum_buffer", True),)

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise LowtideValueError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if not 0.0 <= self.dampening <= 1.0:
            raise LowtideValueError(f"dampening must be in [0, 1], got {self.dampening!r}")
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise LowtideValueError("nesterov needs a momentum > 0 and dampening 0")

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.momentum

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers for ``step`` (counted from 1)."""
        weight = 1.0 if step == 1 else 1.0 - self.dampening
        return {"a": lr, "momentum": self.momentum, "weight": weight, "nesterov": float(self.nesterov)}


@dataclass(frozen=True)
class GradientRule:
    """The direction is the gradient, or what a transform made of it; no state."""

    kernel: ClassVar[str] = "gradient"
    fused: ClassVar[bool] = False
    hyper: ClassVar[tuple[str, ...]] = ()
    moments: ClassVar[tuple[tuple[str, bool], ...]] = ()
    factor_names: ClassVar[tuple[str, ...]] = ()
    first_moment: ClassVar[str | None] = None
    momentum_decay: ClassVar[float] = 0.0

    def factors(self, shape: torch.Size) -> dict[str, torch.Size]:
        """See :class:`Rule`."""
        return {}

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {"a": lr}

    def step_size(self, lr: float, step: int, p: Tensor) -> float:
        """See :class:`Rule`."""
        return lr

    def direction_(
        self, u: Tensor, g: Tensor | None, state: dict[str, Any], step: int, momentum: Momentum
    ) -> Tensor:
        """See :class:`Rule`."""
        g = u if g is None else g
        if not bool(g.isfinite().all()):
            u.zero_()
            return torch.tensor(-(-u.numel() // 256))
        if g is not u:
            u.copy_(g)
        return torch.tensor(0)


@dataclass(frozen=True)
class SignRule(_Fused):
    """signSGD, and with momentum Signum (Bernstein et al., ICML 2018, arXiv 1802.04434, algorithms 1 and 2)::

        direction = sign(g)                                        momentum 0: no state at all
        m = momentum m + (1 - momentum) g,  direction = sign(m)

    Signs depend on the basis: in a subspace this is not signSGD of the gradient.

    Attributes:
        momentum: in [0, 1).
    """

    momentum: float = 0.0

    hyper: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise LowtideValueError(f"momentum must be in [0, 1), got {self.momentum!r}")

    @property
    def kernel(self) -> str:
        """Signum is Lion with one beta for direction and moment."""
        return "lion" if self.momentum else "sign"

    @property
    def moments(self) -> tuple[tuple[str, bool], ...]:
        """See :class:`Rule`."""
        return (("momentum_buffer", True),) if self.momentum else ()

    @property
    def first_moment(self) -> str | None:
        """See :class:`Rule`."""
        return "momentum_buffer" if self.momentum else None

    @property
    def momentum_decay(self) -> float:
        """How much of the first moment stays in a step."""
        return self.momentum

    def scalars(self, step: int, lr: float = 1.0) -> dict[str, Any]:
        """The kernel's numbers; every step has the same."""
        return {"a": lr, "beta1": self.momentum, "beta2": self.momentum} if self.momentum else {"a": lr}


@dataclass(frozen=True)
class DiffGradRule(AdamRule):
    """diffGrad (Dubey et al., IEEE TNNLS 2020, arXiv 1909.11015, equations 8 to 10): Adam, slowed down to a half where the
    gradient changes little from one step to the next; the gradient of the last step is a third state::

        direction = 1 / (1 + exp(-|g_last - g|)) m / bc1 / (sqrt(v / bc2) + eps)

    The gradient before the first step counts as 0. Attributes as :class:`AdamRule`.
    """

    kernel: ClassVar[str] = "diffgrad"
    moments: ClassVar[tuple[tuple[str, bool], ...]] = (
        ("exp_avg", True),
        ("exp_avg_sq", False),
        ("previous_grad", True),
    )
