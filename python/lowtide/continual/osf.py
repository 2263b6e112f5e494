# SPDX-License-Identifier: Apache-2.0
"""Orthogonal subspace fine-tuning: the leading singular directions of a weight stay, the rest is trained."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowtide.continual._layers import Patterns, find_layers
from lowtide.continual._memory import Memory
from lowtide.continual.trust import _take
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.constraints import NullSpace, Projection


class OSF(Memory):
    """Orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097, section 4): before each task, weights are split by an
    SVD, ``W = U_h S_h V_h + U_l S_l V_l``, and updates keep out of the leading part on both sides::

        U = (I - U_h U_hᵀ) U (I - V_hᵀ V_h)

    This is what training the factors of the low part inside the complement can reach, without factors: W stays one dense
    (or packed) matrix, and any optimizer works, also in a low-rank subspace. No data is looked at. The paper projects
    the gradients of the factors, before Adam; see :func:`factorize_` for that form.

    Args:
        model: its linear and convolutional layers; the latter as (out, rest).
        preserved: share of each weight's singular directions that stay, in (0, 1]: the paper's code preserves a half.
        layers: regular expressions searched in the layers' names. Default: all.

    Raises:
        LowtideValueError: a bad argument.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 8))
    >>> memory = lt.continual.OSF(model, preserved=0.25)
    >>> memory.renew()  # before each task
    {'0': 2}
    >>> opt = lt.optim.AdamW(model.parameters(), constraint=memory.constraint())
    """

    def __init__(self, model: nn.Module, preserved: float = 0.5, *, layers: Patterns = None) -> None:
        super().__init__(model, layers)
        _check_preserved(preserved)
        self.preserved = preserved
        self.left: dict[str, Tensor] = {}
        self.right: dict[str, Tensor] = {}

    def renew(self) -> dict[str, int]:
        """Split the weights as they are now; to be called before each task.

        Returns:
            By layer, how many singular directions stay.
        """
        for name, layer in self.layers.items():
            w = weight_store.dense(layer.weight)
            u, _, v = _svd(w.reshape(w.shape[0], -1), self.preserved)
            self.left[name], self.right[name] = u.T.contiguous(), v.contiguous()
        self.tasks += 1
        return {name: b.shape[0] for name, b in self.left.items()}

    def constraint(self) -> NullSpace:
        """See :class:`Memory`.

        Raises:
            LowtideValueError: nothing is split yet.
        """
        if not self.tasks:
            raise LowtideValueError(
                "no weight is split yet, so nothing would stay: call renew() before each task"
            )
        return NullSpace(
            {
                layer.weight: [Projection(self.left[name], side="left"), Projection(self.right[name])]
                for name, layer in self.layers.items()
                if name in self.left
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's ``left`` (k x m, rows of U_hᵀ) and ``right`` (k x n, rows of V_h), fp32."""
        found = {f"{name}.left": b for name, b in self.left.items()}
        return {**found, **{f"{name}.right": b for name, b in self.right.items()}}

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        left, right = {}, {}
        for name, layer in self.layers.items() if tasks else ():
            shape = weight_store.shape(layer.weight)
            left[name] = Projection(_take(tensors, f"{name}.left", torch.float32, (None, shape[0]))).basis
            k = left[name].shape[0]
            right[name] = Projection(
                _take(tensors, f"{name}.right", torch.float32, (k, layer.features))
            ).basis
        self.left, self.right, self.tasks = left, right, tasks


class OSFLinear(nn.Module):
    """A linear layer as the sum of a frozen and a trained singular part: ``y = x (U_h S_h V_h + U_l S_l V_l)ᵀ + b``.

    Attributes:
        U_high (m x k), S_high (k), V_high (k x n): buffers. U_low (m x r), S_low (r), V_low (r x n), bias: parameters; k + r is
            the shorter side.
    """

    U_high: Tensor
    S_high: Tensor
    V_high: Tensor
    U_low: nn.Parameter
    S_low: nn.Parameter
    V_low: nn.Parameter

    def __init__(self, linear: nn.Linear, preserved: float = 0.5) -> None:
        super().__init__()
        _check_preserved(preserved)
        w = linear.weight.detach()
        u, s, v = torch.linalg.svd(w.float(), full_matrices=False)
        k = _count(preserved, s.numel())
        for part, rows in (("high", slice(0, k)), ("low", slice(k, None))):
            for name, t in (("U", u[:, rows]), ("S", s[rows]), ("V", v[rows])):
                t = t.contiguous().to(w.dtype)
                if part == "high":
                    self.register_buffer(f"{name}_high", t)
                else:
                    self.register_parameter(f"{name}_low", nn.Parameter(t))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """The product with both parts, x: (..., n)."""
        high = (x @ self.V_high.T * self.S_high) @ self.U_high.T
        low = (x @ self.V_low.T * self.S_low) @ self.U_low.T
        return high + low if self.bias is None else high + low + self.bias

    def dense(self) -> Tensor:
        """The weight, m x n."""
        high = self.U_high * self.S_high @ self.V_high
        return high + self.U_low * self.S_low @ self.V_low


def factorize_(
    model: nn.Module, preserved: float = 0.5, *, layers: Patterns = None, project: str = "update"
) -> NullSpace:
    """Replace linear layers by :class:`OSFLinear`, the form in which OSF was published.

    Args:
        model: changed in place; :func:`merge_` undoes it.
        preserved, layers: as in :class:`OSF`.
        project: ``"update"``: the returned constraint keeps the trained factors orthogonal to the frozen ones under any rule.
            ``"gradient"``: hooks project the gradients, as in the paper and in peft's ``OSF``; the constraint is empty.
            Under Adam the factors then drift into the frozen directions.

    Returns:
        The constraint for the optimizer.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, or a layer that is not ``nn.Linear``; nothing was changed.
    """
    _check_preserved(preserved)
    if project not in ("update", "gradient"):
        raise LowtideValueError(f"project must be 'update' or 'gradient', got {project!r}")
    found = find_layers(model, layers, linear_only=True)
    for name, layer in found.items():
        if len(layer.modules) != 1 or type(layer.modules[0]) is not nn.Linear:
            raise LowtideTypeError(
                f"layer {name!r} must be a torch.nn.Linear of its own to be factorized; leave it out with layers="
            )
    bases: dict[Tensor, Projection] = {}
    for name, layer in found.items():
        linear = layer.modules[0]
        assert isinstance(linear, nn.Linear)
        split = OSFLinear(linear, preserved)
        _replace(model, name, split)
        for p, basis, side in ((split.U_low, split.U_high.T, "left"), (split.V_low, split.V_high, "right")):
            if p.numel() == 0:
                continue
            if project == "update":
                bases[p] = Projection(basis, side=side)
            else:
                p.register_hook(_projecting(basis, side))  # type: ignore[no-untyped-call]
    return NullSpace(bases)


def merge_(model: nn.Module) -> None:
    """Turn every :class:`OSFLinear` of ``model`` into ``nn.Linear`` again, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, OSFLinear):
            w = module.dense().detach()
            linear = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
            linear.weight = nn.Parameter(w)
            linear.bias = module.bias
            _replace(model, name, linear)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    if not name:
        raise LowtideValueError(
            "model must contain its linear layers, got one itself; wrap it in torch.nn.Sequential"
        )
    setattr(model.get_submodule(parent), last, module)


def _projecting(basis: Tensor, side: str) -> Callable[[Tensor], Tensor]:
    b = basis.detach()

    def hook(grad: Tensor) -> Tensor:
        return grad - b.T @ (b @ grad) if side == "left" else grad - (grad @ b.T) @ b

    return hook


def _svd(w: Tensor, preserved: float) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
    k = _count(preserved, s.numel())
    return u[:, :k].float(), s[:k].float(), v[:k].float()


def _count(preserved: float, full: int) -> int:
    return max(1, math.floor(preserved * full))


def _check_preserved(preserved: float) -> None:
    if not (isinstance(preserved, (int, float)) and 0.0 < preserved <= 1.0):
        raise LowtideValueError(f"preserved must be a share in (0, 1], got {preserved!r}")
