# SPDX-License-Identifier: Apache-2.0
"""Pearlmutter's R-operator for multilayer perceptrons: Hessian products in closed form, without autograd.

Layers ``Z = A W' + b``, ``A = phi(Z)``; a direction gives (V, c) for (W, b), and R is the derivative along it:

- forward: ``RZ = A V' + RA W' + c``, ``RA = phi'(Z) RZ``
- output: ``Rdelta = H_out RZ`` with the loss's Hessian in the outputs
- backward: ``R(dA) = Rdelta W + delta V``, ``Rdelta = R(dA) phi'(Z) + dA phi''(Z) RZ``
- product: ``(Rdelta' A + delta' RA, sum Rdelta)``

Six matrix products a layer, where a gradient has three; what depends on the parameters alone (A, delta, phi', dA phi'') is kept
while they stay the same. Several directions share those and make wider products. The Gauss-Newton product leaves out the terms
with delta and dA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.curvature._losses import split
from lowtide.curvature._problem import Problem
from lowtide.curvature._rop_layers import derivatives, is_multilayer_perceptron, leaves
from lowtide.errors import LowtideTypeError

_CACHE_BYTES = 1 << 28  # of activations, over all batches; beyond it they are computed again for each product


def supports(model: nn.Module, loss: Any) -> bool:
    """Whether :class:`RopProduct` can multiply with this model's and loss's Hessian."""
    return bool(getattr(loss, "separable", False)) and is_multilayer_perceptron(model)


@dataclass
class _Layer:
    """What a Linear's and the following activations' tangents need; rows are all leading dimensions as one."""

    weight: Tensor
    at: tuple[int | None, int | None]  # where weight and bias are in the layout; None if they are constants
    inputs: Tensor  # A of the layer before, (N, in)
    slopes: list[Tensor]  # phi' of each activation behind it, (N, out)
    bends: list[Tensor | None]  # dA phi''
    delta: Tensor  # (N, out)

    def bytes(self) -> int:
        kept = [self.inputs, self.delta, *self.slopes, *(b for b in self.bends if b is not None)]
        return sum(t.numel() * t.element_size() for t in kept)


@dataclass
class _Pass:
    """One batch at fixed parameters."""

    x: Tensor
    versions: tuple[int, ...]
    layers: list[_Layer]
    outputs: Tensor


class RopProduct:
    """Hessian or Gauss-Newton products of a multilayer perceptron.

    Args:
        problem: its model is an ``nn.Sequential`` (nested or a single Linear) of Linear, Tanh, ReLU, Sigmoid, GELU, SiLU, Softplus,
            Identity, and Flatten before the first Linear; its loss is a criterion on the outputs.
        gauss_newton: leave out the model's second derivatives.

    Activations of a pass are kept, up to 256 MiB, for as long as parameters and inputs are the same tensors at the same version.

    Raises:
        LowtideTypeError: another model or loss.
    """

    def __init__(self, problem: Problem, *, gauss_newton: bool = False) -> None:
        if not supports(problem.model, problem.loss):
            raise LowtideTypeError(
                "method='rop' takes an nn.Sequential of Linear, Tanh, ReLU, Sigmoid, GELU, SiLU, Softplus, Identity and a "
                f"Flatten at its head, without hooks, and a criterion; got {type(problem.model).__name__} and {problem.loss!r}; "
                "use method='double' or 'fd'"
            )
        self.problem, self.gauss_newton = problem, gauss_newton
        self._kept: dict[int, _Pass] = {}
        self._key: tuple[tuple[int, int], ...] = ()
        self._bytes = 0

    def product(self, v: Tensor, out: Tensor) -> None:
        """``out[:] = H v``, both flat (n,) of the layout's dtype."""
        self._multiply(v[None], out[None])

    def matmat(self, v: Tensor) -> Tensor:
        """``H V`` for columns (n, k); the k directions share the passes over model and data."""
        out = v.new_empty(v.shape[1], v.shape[0])
        self._multiply(v.T.contiguous(), out)
        return out.T

    def _multiply(self, v: Tensor, out: Tensor) -> None:
        layout = self.problem.layout
        k = len(v)
        tangents = [
            part.reshape(k, *shape)
            for part, shape in zip(torch.split(v, list(layout.sizes), dim=1), layout.shapes, strict=True)
        ]
        out.zero_()
        results = torch.split(out, list(layout.sizes), dim=1)
        with torch.no_grad():
            for i, (batch, weight) in enumerate(self.problem.batches()):
                done = self._pass(i, batch)
                self._backward(done, batch, weight, tangents, results, k)

    # ------------------------------------------------------------------ at fixed parameters

    def _pass(self, index: int, batch: Any) -> _Pass:
        key = tuple((p.data_ptr(), p._version) for p in self.problem.model.parameters())
        if key != self._key:
            self._kept.clear()
            self._key, self._bytes = key, 0
        x, target = split(batch)
        versions = (x._version, getattr(target, "_version", 0))
        kept = self._kept.get(index)
        if kept is not None and kept.x is x and kept.versions == versions:
            return kept
        done = self._forward(x, versions, batch)
        if kept is not None:
            self._bytes -= sum(layer.bytes() for layer in self._kept.pop(index).layers)
        size = sum(layer.bytes() for layer in done.layers)
        if self._bytes + size <= _CACHE_BYTES:
            self._kept[index], self._bytes = done, self._bytes + size
        return done

    def _place(self, parameter: Tensor | None) -> int | None:
        """Where a parameter is in the layout; tied ones are found by identity of their memory."""
        if parameter is None:
            return None
        for t, p in enumerate(self.problem.tensors):
            if p.data_ptr() == parameter.data_ptr() and p.shape == parameter.shape:
                return t
        return None

    def _forward(self, x: Tensor, versions: tuple[int, ...], batch: Any) -> _Pass:
        dtype = self.problem.layout.dtype
        a = x.detach().to(dtype) if x.is_floating_point() else x.detach()
        layers: list[_Layer] = []
        seconds: list[list[Tensor | None]] = []
        for module in leaves(self.problem.model):
            if isinstance(module, nn.Linear):
                weight = module.weight.detach().to(dtype)
                bias = None if module.bias is None else module.bias.detach().to(dtype)
                places = self._place(module.weight), self._place(module.bias)
                layers.append(_Layer(weight, places, a.reshape(-1, a.shape[-1]), [], [], a))
                seconds.append([])
                a = nn.functional.linear(a, weight, bias)
            elif not layers or isinstance(module, nn.Identity):
                a = module(a)
            else:
                z, a = a, module(a)
                first, second = derivatives(module, z, a)
                layers[-1].slopes.append(first.reshape(-1, first.shape[-1]))
                seconds[-1].append(None if second is None else second.reshape(-1, second.shape[-1]))
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.problem.loss.value(leaf, batch), leaf)
        g = g.reshape(-1, g.shape[-1])
        for layer, bends in zip(reversed(layers), reversed(seconds), strict=True):
            for slope, second in zip(reversed(layer.slopes), reversed(bends), strict=True):
                layer.bends.insert(0, None if second is None else g * second)
                g = g * slope
            layer.delta = g
            g = g @ layer.weight
        return _Pass(x, versions, layers, a)

    # ------------------------------------------------------------------ along directions

    def _backward(
        self, done: _Pass, batch: Any, weight: float, tangents: list[Tensor], results: Any, k: int
    ) -> None:
        """Adds ``weight`` times the batch's products to results. Rows of tangents are (N, k, width)."""
        ra: Tensor | None = None
        inputs: list[Tensor | None] = []
        outputs: list[list[Tensor]] = []  # RZ before each activation
        for layer in done.layers:
            inputs.append(ra)
            ra = self._tangent(layer, ra, tangents, k)
            before = []
            for slope in layer.slopes:
                before.append(ra)
                ra = ra * slope[:, None]
            outputs.append(before)
        assert ra is not None
        shape = done.outputs.shape
        rows = [
            self.problem.loss.output_hessian(done.outputs, ra[:, j].reshape(shape), batch) for j in range(k)
        ]
        r = torch.stack([row.reshape(-1, shape[-1]) for row in rows], 1) * weight
        for layer, into, before in zip(
            reversed(done.layers), reversed(inputs), reversed(outputs), strict=True
        ):
            steps = zip(reversed(layer.slopes), reversed(layer.bends), reversed(before), strict=True)
            for slope, bend, rz in steps:
                r = r * slope[:, None]
                if bend is not None and not self.gauss_newton:
                    r = r + (weight * bend)[:, None] * rz
            w, b = layer.at
            n, out = layer.delta.shape
            if w is not None:
                product = (r.reshape(n, k * out).T @ layer.inputs).view(k, -1)
                if into is not None and not self.gauss_newton:
                    more = layer.delta.T @ into.reshape(n, -1)
                    product = product.add(more.view(out, k, -1).transpose(0, 1).reshape(k, -1), alpha=weight)
                results[w].add_(product)
            if b is not None:
                results[b].add_(r.sum(0))
            if layer is not done.layers[0]:
                back = r @ layer.weight
                if w is not None and not self.gauss_newton:
                    wide = tangents[w].transpose(0, 1).reshape(out, -1)
                    back = back.add((layer.delta @ wide).view(n, k, -1), alpha=weight)
                r = back

    @staticmethod
    def _tangent(layer: _Layer, ra: Tensor | None, tangents: list[Tensor], k: int) -> Tensor:
        w, b = layer.at
        n, out = layer.delta.shape
        rz = layer.inputs.new_zeros(n, k, out) if ra is None else ra @ layer.weight.T
        if w is not None:
            rz = rz + (layer.inputs @ tangents[w].reshape(k * out, -1).T).view(n, k, out)
        return rz if b is None else rz + tangents[b]
