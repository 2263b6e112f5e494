# SPDX-License-Identifier: Apache-2.0
"""A linear layer of low-bit weights and 16-bit outliers, for inference."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.quant._dense_sparse import DenseSparse, split
from lowtide.quant._error import note
from lowtide.quant._linear import Linear
from lowtide.quant._tensor import Quantized


@functools.cache
def _compressed_products() -> bool:
    """Whether this torch multiplies compressed matrices, both ways; takes the once-only warning that they are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            start, column = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
            s = torch.sparse_csr_tensor(start, column, torch.ones(1), (1, 2))
            return (s @ torch.ones(2, 1)).shape == (1, 1) and (torch.ones(1, 1) @ s).shape == (1, 2)
        except (RuntimeError, NotImplementedError):
            return False


class _Product(torch.autograd.Function):
    """y = x Sᵀ. Backward: dx = g S."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor) -> Tensor:
        ctx.matrix = s
        return (s @ x.T).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.matrix, None


class OutlierLinear(nn.Module):
    """``y = x (D + S)ᵀ + b``: D in INT4 or INT8 groups, decoded tile by tile; S sparse, in 16 bit.

    The weight is frozen; gradients flow to ``x`` and to the bias.

    Attributes:
        dense: :class:`lowtide.quant.Linear` that holds D, without bias.
        row_start, column, value: buffers, see :class:`lowtide.quant.gwq.DenseSparse`; they keep their types under
            ``.to(dtype)``.
        bias: a dense parameter, or ``None``.
    """

    row_start: Tensor
    column: Tensor
    value: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: DenseSparse, bias: nn.Parameter | None = None) -> None:
        """Take over the tensors of ``weight``, a matrix (out, in)."""
        super().__init__()
        if not isinstance(weight, DenseSparse):
            raise LowtideTypeError(f"weight must be a DenseSparse, got {type(weight).__name__}")
        if len(weight.shape) != 2:
            raise LowtideValueError(f"weight must be a matrix (out, in), got shape {weight.shape}")
        q = weight.dense
        out_features, in_features = weight.shape
        self.dense = Linear(
            in_features, out_features, bias=False, bits=q.bits, group=q.group, scheme=q.scheme
        )
        self.dense.weight.data = q.codes
        # A bfloat16 scale is a float32 number: nothing is rounded.
        self.dense.weight_scale, self.dense.weight_zero = q.scale.float(), q.zero
        self.dense.weight.requires_grad_(False)
        for name in ("row_start", "column", "value"):
            self.register_buffer(name, getattr(weight, name))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        mask: Tensor,
        *,
        bits: int = 4,
        group: int = 128,
        scheme: str = "symmetric",
        value_dtype: torch.dtype | None = None,
    ) -> OutlierLinear:
        """Quantize a dense layer with the weights of ``mask`` (out, in) kept aside; its bias is taken over."""
        if not isinstance(linear, nn.Linear):
            raise LowtideTypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        w = split(
            linear.weight.detach(), mask, bits=bits, group=group, scheme=scheme, value_dtype=value_dtype
        )
        layer = cls(w, linear.bias)
        note(layer, linear.weight)
        return layer.train(linear.training)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.dense.group

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.dense.in_features

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.dense.out_features

    @property
    def weight(self) -> DenseSparse:
        """The weight as a :class:`DenseSparse` that shares this layer's tensors."""
        d = self.dense
        q = Quantized(
            d.weight.data,
            d.weight_scale,
            d.weight_zero,
            (d.out_features, d.in_features),
            d.bits,
            d.group,
            d.scheme,
        )
        return DenseSparse(q, self.row_start, self.column, self.value)

    def dequantize(self) -> Tensor:
        """The weight as a dense float32 (out, in) tensor."""
        return self.weight.dequantize("float32")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) in float32, bfloat16 or float16 -> (..., out_features) in the same dtype."""
        y: Tensor = self.dense(x)
        if self.value.numel():
            y = y + self._sparse(x)
        if self.bias is not None:
            y = (y + self.bias).to(x.dtype)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # sparse layouts are not traced
    def _sparse(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features).float()
        y: Tensor = _Product.apply(flat, self._matrix())  # type: ignore[no-untyped-call]
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _matrix(self) -> Tensor:
        """S in float32, compressed; where torch cannot multiply that (it takes MKL), as coordinates: 60 times slower."""
        shape, value = (self.out_features, self.in_features), self.value.float()
        if _compressed_products():
            return torch.sparse_csr_tensor(
                self.row_start, self.column.int(), value, shape, check_invariants=False
            )
        index = torch.stack((self.weight.rows(), self.column.long()))
        return torch.sparse_coo_tensor(index, value, shape, is_coalesced=True, check_invariants=False)

    def extra_repr(self) -> str:
        """Outliers."""
        return f"outliers={self.value.numel()}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> OutlierLinear:
        value = self.value
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.value.dtype != value.dtype:  # .half() of bfloat16 would overflow, .float() double the bytes
            self.value = value.to(self.value.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any,
        unexpected: Any, errors: list[str],
    ) -> None:  # fmt: skip
        # The number of outliers is the file's; all else must fit.
        given = {k: state_dict.get(prefix + k) for k in ("row_start", "column", "value")}
        parts = {k: t for k, t in given.items() if isinstance(t, Tensor)}
        if len(parts) == len(given):
            q = self.weight.dense
            names = ("dense.weight", "dense.weight_scale", "dense.weight_zero")
            codes, scale, zero = (state_dict.get(prefix + n) for n in names)
            try:
                loaded = Quantized(codes, scale, zero, q.shape, q.bits, q.group, q.scheme)
                DenseSparse.from_dict({"dense": loaded.to_dict(), **parts})
            except (LowtideTypeError, LowtideValueError) as error:
                errors.append(f"{prefix.rstrip('.')}: {error}")
                return
            for k, t in parts.items():
                setattr(self, k, torch.empty_like(t, device=self.value.device))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def replace_layers_(
    places: Sequence[Sequence[tuple[nn.Module, str, str]]], masks: Sequence[Tensor], **settings: Any
) -> None:
    """Make every layer before putting the first one in place: a refused one leaves the model unchanged."""
    layers = [
        OutlierLinear.from_linear(getattr(at[0][0], at[0][1]), mask, **settings)
        for at, mask in zip(places, masks, strict=True)
    ]
    for at, new in zip(places, layers, strict=True):
        for parent, attribute, _ in at:
            setattr(parent, attribute, new)
