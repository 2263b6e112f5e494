# SPDX-License-Identifier: Apache-2.0
"""The layers that the R-operator knows, with first and second derivatives of their activations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

#: phi'(z) and phi''(z); None where it is zero everywhere.
Derivatives = tuple[Tensor, Tensor | None]


def _tanh(module: nn.Tanh, z: Tensor, a: Tensor) -> Derivatives:
    first = 1 - a * a
    return first, -2 * a * first


def _relu(module: nn.ReLU, z: Tensor, a: Tensor) -> Derivatives:
    return (z > 0).to(z.dtype), None


def _sigmoid(module: nn.Sigmoid, z: Tensor, a: Tensor) -> Derivatives:
    first = a * (1 - a)
    return first, first * (1 - 2 * a)


def _silu(module: nn.SiLU, z: Tensor, a: Tensor) -> Derivatives:
    s = torch.sigmoid(z)
    slope = s * (1 - s)
    return s + z * slope, slope * (2 + z * (1 - 2 * s))


def _softplus(module: nn.Softplus, z: Tensor, a: Tensor) -> Derivatives:
    scaled = z * module.beta
    s = torch.sigmoid(scaled)
    linear = scaled > module.threshold  # torch's form is the identity there
    return s.masked_fill(linear, 1.0), (module.beta * s * (1 - s)).masked_fill(linear, 0.0)


def _gelu(module: nn.GELU, z: Tensor, a: Tensor) -> Derivatives:
    if module.approximate == "none":
        density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * density, density * (2 - z * z)
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (z + c * z**3))
    slope, bend = k * (1 + 3 * c * z * z), 6 * k * c * z
    sech2 = 1 - t * t
    first = 0.5 * (1 + t) + 0.5 * z * sech2 * slope
    return first, sech2 * slope + 0.5 * z * sech2 * (bend - 2 * t * slope * slope)


_DERIVATIVES = {
    nn.Tanh: _tanh,
    nn.ReLU: _relu,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
}


def derivatives(module: nn.Module, z: Tensor, a: Tensor) -> Derivatives:
    """phi' and phi'' of an activation at z, where its value is a."""
    found: Derivatives = _DERIVATIVES[type(module)](module, z, a)  # type: ignore[operator]
    return found


def leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a Sequential in the order they run."""
    if type(model) is nn.Sequential:
        for child in model:
            yield from leaves(child)
    else:
        yield model


def _hooked(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_multilayer_perceptron(model: nn.Module) -> bool:
    """Whether every module is a plain Linear, a known activation, Identity, or a Flatten before the first Linear."""
    if any(_hooked(m) for m in model.modules()):
        return False
    linear = False
    for module in leaves(model):
        if type(module) is nn.Linear:
            linear = True
        elif type(module) is nn.Flatten:
            if linear:
                return False
        elif type(module) is not nn.Identity and type(module) not in _DERIVATIVES:
            return False
    return linear
