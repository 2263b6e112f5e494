# SPDX-License-Identifier: Apache-2.0
"""The weight of a quantized layer as an optimizer sees it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._guards import TracingContext

from lowtide import ops
from lowtide.errors import LowtideRuntimeError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.quant._linear import Linear


class QuantParameter(nn.Parameter):
    """Packed codes as a registered parameter: uint8, never requires grad, carries a :class:`QuantWeight`.

    It is a parameter so that ``model.parameters()`` hands it to optimizers, ``state_dict`` saves it under the
    usual name, and ``.to(dtype)`` leaves it alone.
    """

    quant: QuantWeight

    @property
    def grad(self) -> Tensor | None:
        """:attr:`QuantWeight.main_grad`, where ``clip_grad_norm_``, GradScaler and training loops look for gradients.

        Optimizers that know nothing of packed weights fail on it, for its dtype is not the codes'.
        """
        weight = getattr(self, "quant", None)
        # torch.compile makes a fake of each tensor with its gradient, which must have the tensor's dtype there.
        return None if weight is None or TracingContext.try_get() is not None else weight.main_grad

    @grad.setter
    def grad(self, grad: Tensor | None) -> None:
        self.quant.take(grad)

    @grad.deleter
    def grad(self) -> None:
        self.quant.main_grad = None

    def requires_grad_(self, requires_grad: bool = True) -> QuantParameter:
        """Freeze or thaw the weight: ``model.requires_grad_(False)`` works as for dense layers."""
        if requires_grad and self.quant.scheme == "nf4":
            raise _frozen()
        self.quant.trainable = requires_grad
        return self


class QuantWeight:
    """What ``module.weight.quant`` is: the decoded side of packed codes, and the weight gradient.

    Attributes:
        main_grad: float32 (out, in), accumulated over backward passes until somebody sets it to ``None``; also ``weight.grad``.
        grad_hook: called with the parameter at the end of each backward pass, when its gradient is complete;
            may step and free it. Exceptions pass through ``backward``.
        trainable: whether backward passes compute ``main_grad``.
    """

    def __init__(self) -> None:
        self.main_grad: Tensor | None = None
        self.grad_hook: Callable[[Tensor], None] | None = None
        self.trainable = True
        self._module: weakref.ref[Linear] | None = None
        self._anchor: Tensor | None = None

    def attach(self, module: Linear) -> None:
        """Make ``module`` the layer whose weight this is."""
        self._module = weakref.ref(module)

    @property
    def module(self) -> Linear:
        """The layer; it is not kept alive."""
        module = self._module() if self._module is not None else None
        if module is None:
            raise LowtideRuntimeError(
                "the lt.quant.Linear of this weight is gone; keep a reference to the model while its weights are used"
            )
        return module

    @property
    def codes(self) -> Tensor:
        """uint8, (out, bytes of a row)."""
        return self.module.weight.data

    @property
    def scale(self) -> Tensor:
        """float32, (out, groups)."""
        return self.module.weight_scale

    @property
    def zero(self) -> Tensor | None:
        """uint8, (out, groups), or ``None`` but for the asymmetric scheme."""
        return self.module.weight_zero

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.module.bits

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.module.group

    @property
    def scheme(self) -> str:
        """``"symmetric"``, ``"asymmetric"`` or ``"nf4"``."""
        return self.module.scheme

    @property
    def shape(self) -> torch.Size:
        """The logical shape, (out_features, in_features)."""
        return torch.Size((self.module.out_features, self.module.in_features))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(t.nbytes for t in (self.codes, self.scale, self.zero) if t is not None)

    def operand(self) -> ops.Packed:
        """This weight for :func:`lowtide.ops.matmul`."""
        m = self.module
        return ops.Packed(
            m.weight.data,
            m.weight_scale,
            m.weight_zero,
            m.bits,
            m.group,
            (m.out_features, m.in_features),
            m.scheme,
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as a dense (out, in) tensor."""
        if self.scheme == "nf4":
            return ops.dequantize_map(
                self.codes, self.scale, map="nf4", group=self.group, cols=self.shape[1], dtype=dtype
            )
        return ops.dequantize_group(
            self.codes,
            self.scale,
            self.zero,
            bits=self.bits,
            group=self.group,
            cols=self.shape[1],
            dtype=dtype,
        )

    def requant_add_(
        self,
        delta: Tensor,
        alpha: float = 1.0,
        decay: float = 1.0,
        *,
        seed: int,
        step: int,
        slot: int = 0,
        param: int,
        nonfinite: str = "raise",
    ) -> Tensor:
        """``w <- w * decay + alpha * delta`` in place with stochastic rounding.

        Args:
            delta: float32, (out, in).
            alpha, decay: finite; ``decay`` in [0, 1].
            seed, step, slot, param: address of the noise; replicas that use the same stay equal.
            nonfinite: ``"raise"`` (nothing is changed) or ``"skip"`` (groups that would not be finite stay).

        Returns:
            Groups skipped, int64 tensor without dimensions.
        """
        if self.scheme == "nf4":
            raise _frozen()
        return ops.requant_add_sr_(
            self.codes, self.scale, self.zero, delta, alpha=alpha, decay=decay, bits=self.bits, group=self.group,
            seed=seed, step=step, slot=slot, param=param, nonfinite=nonfinite,
        )  # fmt: skip

    def anchor(self) -> Tensor:
        """An empty leaf that requires grad: it makes autograd reach the layer though codes cannot require grad.

        Its accumulation node runs once in a backward pass, after the last use of the layer, like a dense
        weight's: that is when ``grad_hook`` is called.
        """
        device = self.codes.device
        if self._anchor is None or self._anchor.device != device:
            self._anchor = torch.empty(0, device=device, requires_grad=True)
            this = weakref.ref(self)

            def complete(anchor: Tensor) -> None:
                anchor.grad = None
                weight = this()
                if weight is not None and weight.grad_hook is not None:
                    with torch.no_grad():
                        weight.grad_hook(weight.module.weight)

            self._anchor.register_post_accumulate_grad_hook(complete)  # type: ignore[no-untyped-call]
        return self._anchor

    def accumulate(self, grad: Tensor) -> None:
        """Add a weight gradient, float32 (out, in); takes it over."""
        self.main_grad = grad if self.main_grad is None else self.main_grad.add_(grad)

    def take(self, grad: Tensor | None) -> None:
        """Make ``grad``, float32 (out, in), the weight gradient; None drops it."""
        if grad is not None and (grad.dtype != torch.float32 or grad.shape != self.shape):
            raise LowtideValueError(
                f"grad of a packed weight must be float32 of shape {tuple(self.shape)}, got {grad.dtype} {tuple(grad.shape)}"
            )
        self.main_grad = grad

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles of a model start without gradient, hook and layer; the layer attaches itself.
        return (_restore, (self.trainable,))


def _frozen() -> LowtideValueError:
    return LowtideValueError(
        "NF4 weights are frozen: their levels are too uneven to step in place; train adapters beside them, or quantize "
        "with weights='int8' or 'int4'"
    )


def _restore(trainable: bool) -> QuantWeight:
    weight = QuantWeight()
    weight.trainable = trainable
    return weight


def is_quant_weight(p: Any) -> TypeGuard[QuantParameter]:
    """True for the packed weight of an :class:`lowtide.quant.Linear`."""
    return isinstance(getattr(p, "quant", None), QuantWeight)
