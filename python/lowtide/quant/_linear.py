# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is INT8, INT4 or NF4; integers also train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from lowtide import ops
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._error import note
from lowtide.quant._format import check_linear, group_count, row_bytes
from lowtide.quant._tensor import quantize
from lowtide.quant._weight import QuantParameter, QuantWeight

_INPUTS = (torch.float32, torch.bfloat16, torch.float16)


def _accumulates(leaf: Tensor) -> bool:
    """Whether the running backward pass fills ``leaf.grad``: ``torch.autograd.grad`` of other tensors does not."""
    node = get_gradient_edge(leaf).node
    return bool(torch._C._will_engine_execute_node(node))


def _row(module: Any, x: Tensor) -> Tensor:
    """One row of x, of any shape, times Wᵀ: (out_features,) in float32, by a kernel whose sums have their own order.

    Module and weight were checked when they were made, sizes are again by the op. The dictionaries are what attributes
    of a module are read from: at this size every microsecond shows.
    """
    buffers = module._buffers
    y: Tensor = torch.ops.lowtide.gemv.default(
        module._parameters["weight"].detach(), buffers["weight_scale"], buffers["weight_zero"],
        module.bits, module.scheme == "nf4", module.group, module.in_features,
        x.detach().reshape(-1).float().contiguous(),
    )  # fmt: skip
    return y


def _forward(x: Tensor, weight: QuantWeight) -> Tensor:
    """x Wᵀ for a matrix x."""
    if x.shape[0] == 1:
        return _row(weight.module, x).unsqueeze(0)
    return ops.matmul(x, weight.operand(), tb=True)


class _Product(torch.autograd.Function):
    """y = x Wᵀ. Backward: dx = g W, and dW = gᵀ x into the weight's ``main_grad``, in this order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, weight: QuantWeight) -> Tensor:
        ctx.weight, ctx.anchor = weight, anchor
        ctx.save_for_backward(x if anchor is not None else None)
        return _forward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        dx = ops.matmul(grad, ctx.weight.operand()) if ctx.needs_input_grad[0] else None
        if x is None or not _accumulates(ctx.anchor):
            return dx, None, None
        ctx.weight.accumulate(ops.matmul(grad, x, ta=True))
        return dx, grad.new_empty(0), None


class _FrozenProduct(torch.autograd.Function):
    """y = x Wᵀ of a weight without a gradient, of tensors and constants alone: torch.compile can follow it. Compiled
    functions cannot be differentiated twice, so there is no mark that forbids it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, kind: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, zero)
        ctx.kind = kind
        bits, group, shape, scheme = kind
        if x.shape[0] == 1:
            y: Tensor = torch.ops.lowtide.gemv.default(
                codes, scale, zero, bits, scheme == "nf4", group, shape[1], x.reshape(-1).float().contiguous()
            )
            return y.unsqueeze(0)
        return ops.matmul(x, ops.Packed(codes, scale, zero, bits, group, shape, scheme), tb=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        codes, scale, zero = ctx.saved_tensors
        bits, group, shape, scheme = ctx.kind
        weight = ops.Packed(codes, scale, zero, bits, group, shape, scheme)
        return ops.matmul(grad, weight), None, None, None, None


class Linear(nn.Module):
    """``y = x Wᵀ + b`` with W in groups of INT8, INT4 or NF4 codes along its rows.

    The matrix products decode W tile by tile: a dense copy never exists. A single row of x takes a kernel of its own,
    two to four times as fast and summed in another order: its last bits differ from those of the same row in a batch.

    Integer weights train without a dense copy too: the backward pass leaves the weight gradient in ``layer.weight.quant.main_grad`` (float32), and an optimizer of
    :mod:`lowtide.optim` steps the codes in place with stochastic rounding (INT8 training as in Q-GaLore,
    arXiv 2407.08296, §3.3). NF4 weights are frozen (as in QLoRA, arXiv 2305.14314); gradients pass through to x.

    Attributes:
        weight: uint8 codes (out, bytes of a row), a parameter that never requires grad; ``weight.quant`` is its
            :class:`QuantWeight`. ``weight.quant.trainable`` (or ``requires_grad_``) freezes it.
        weight_scale: float32 (out, groups), a buffer that stays float32 under ``.to(dtype)``.
        weight_zero: uint8 (out, groups), a buffer; ``None`` but for the asymmetric scheme.
        bias: a dense parameter, or ``None``.

    All of them are in ``state_dict``. ``load_state_dict`` refuses dense weights: load first, quantize then.
    """

    weight: QuantParameter
    weight_scale: Tensor
    weight_zero: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 8,
        group: int = 256,
        scheme: str = "asymmetric",
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Weight and bias start at zero; :meth:`from_linear` is the usual way to make one.

        Args:
            in_features, out_features: sizes, as in ``nn.Linear``.
            bias: whether there is one; ``dtype`` is its type.
            bits: 8 or 4. group: columns that share a scale, a multiple of 32. scheme: ``"symmetric"``,
                ``"asymmetric"`` or ``"nf4"``, see :func:`quantize`.
        """
        super().__init__()
        check_linear(bits, group, scheme)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group, self.scheme = bits, group, scheme
        groups = (out_features, group_count(in_features, group))
        # The code for 0 is the middle one, NF4's is 7; the scale is 0 either way.
        fill = {"asymmetric": 0, "nf4": 0x77}.get(scheme, 128 if bits == 8 else 0x88)
        codes = torch.full(
            (out_features, row_bytes(in_features, bits)), fill, dtype=torch.uint8, device=device
        )
        self.register_parameter("weight", QuantParameter(codes, requires_grad=False))
        self.register_buffer("weight_scale", torch.zeros(groups, dtype=torch.float32, device=device))
        zero = torch.zeros(groups, dtype=torch.uint8, device=device) if scheme == "asymmetric" else None
        self.register_buffer("weight_zero", zero)
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        )
        self._weight = QuantWeight()
        self._weight.trainable = scheme != "nf4"
        self._attach()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        bits: int = 8,
        group: int = 256,
        scheme: str = "asymmetric",
        rounding: str = "nearest",
        headroom: bool = True,
        seed: int = 0,
        param: int = 0,
    ) -> Linear:
        """Quantize a dense layer; its bias parameter is taken over as it is.

        Args:
            linear: weight float32, bfloat16 or float16, finite. A weight that does not require grad stays frozen.
            bits, group, scheme, rounding, headroom, seed, param: see :func:`quantize`. Headroom is for training (NF4
                has none); without it INT8 codes are 7 % finer, INT4 codes 14 %.

        Raises:
            LowtideTypeError, LowtideValueError: a bad argument or a non-finite weight.
        """
        if not isinstance(linear, nn.Linear):
            raise LowtideTypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        q = quantize(
            linear.weight.detach(), bits, group, scheme=scheme, rounding=rounding,
            headroom=headroom and scheme != "nf4", seed=seed, param=param,
        )  # fmt: skip
        layer = cls(
            linear.in_features, linear.out_features, bias=False, bits=bits, group=group, scheme=scheme
        )
        layer.weight.data = q.codes
        layer.weight_scale, layer.weight_zero = q.scale, q.zero
        layer.bias = linear.bias
        if scheme != "nf4":
            layer.weight.requires_grad_(linear.weight.requires_grad)
        note(layer, linear.weight)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) in float32, bfloat16 or float16 -> (..., out_features) in the same dtype."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise LowtideValueError(
                f"x must have {self.in_features} features in its last dimension, got {tuple(x.shape)}"
            )
        if x.dtype not in _INPUTS:
            raise LowtideTypeError(
                f"x must be float32, bfloat16 or float16, got {x.dtype}; convert it with .float()"
            )
        graph = torch.is_grad_enabled() and (x.requires_grad or self._weight.trainable)
        if not graph and x.numel() == self.in_features > 0:
            y = _row(self, x)
        else:
            flat = x.reshape(-1, self.in_features)
            if flat.dtype == torch.float16:
                flat = flat.float()
            if not graph:
                y = _forward(flat, self._weight)
            elif self._weight.trainable or not torch.compiler.is_compiling():
                y = self._product(flat)
            else:
                kind = (self.bits, self.group, (self.out_features, self.in_features), self.scheme)
                codes = self.weight.detach()
                y = _FrozenProduct.apply(flat, codes, self.weight_scale, self.weight_zero, kind)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y = y + self.bias
        result: Tensor = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return result

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # accumulates outside of the graph
    def _product(self, x: Tensor) -> Tensor:
        weight = self._weight
        anchor = weight.anchor() if weight.trainable else None
        result: Tensor = _Product.apply(x, anchor, weight)  # type: ignore[no-untyped-call]
        return result

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as a dense (out, in) tensor."""
        return self._weight.dequantize(dtype)

    def extra_repr(self) -> str:
        """Sizes and the format."""
        name = "nf4" if self.scheme == "nf4" else f"int{self.bits} {self.scheme}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{name}, group={self.group}"
        )

    # ---- what would lose the weight's handle, or the scale's precision

    def _attach(self) -> None:
        # Copies, load_state_dict(assign=True) and some conversions leave a plain parameter there.
        if type(self._parameters["weight"]) is not QuantParameter:
            self._parameters["weight"] = QuantParameter(self.weight.data, requires_grad=False)
        self.weight.quant = self._weight
        self._weight.attach(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._attach()

    def _apply(self, fn: Any, recurse: bool = True) -> Linear:
        scale = self.weight_scale
        # torch would convert the gradient to the model's new dtype.
        grad, self._weight.main_grad = self._weight.main_grad, None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != torch.float32:  # a rounded scale is a gain error on the whole group
            self.weight_scale = scale.to(self.weight_scale.device)
        self._weight.main_grad = None if grad is None else grad.to(self.weight.device)
        self._attach()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        want = {"weight": torch.uint8, "weight_scale": torch.float32, "weight_zero": torch.uint8}
        faults = [
            f"{prefix}{name} is {t.dtype}, this layer stores {dtype} ({self.extra_repr()}): load dense weights "
            "before lt.quant.quantize_model_, and packed ones into a model quantized the same way"
            for name, dtype in want.items()
            if isinstance(t := state_dict.get(prefix + name), Tensor) and t.dtype != dtype
        ]
        scale = state_dict.get(prefix + "weight_scale")
        if not faults and isinstance(scale, Tensor) and not bool((scale.isfinite() & (scale >= 0)).all()):
            faults.append(
                f"{prefix}weight_scale has values that are not finite and >= 0: the file is damaged"
            )
        if faults:
            error_msgs.extend(faults)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._attach()
