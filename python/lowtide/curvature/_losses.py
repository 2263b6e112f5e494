# SPDX-License-Identifier: Apache-2.0
"""Losses as a model's outputs and a criterion on them, with what Gauss-Newton and Fisher products need of the criterion.

Criteria are means. Where one is a sum over rows, ``L = sum_n w_n l_n``, a row is a sample (a token of a language model, a
pixel of a segmentation), and its Hessian with respect to the outputs is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowtide.errors import LowtideTypeError, LowtideValueError


def split(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch: ``(x, y)``, or a mapping whose target is ``labels``."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        return batch[0], batch[1]
    raise LowtideTypeError(
        f"data: with a criterion a batch must be (x, y) or a dict with 'labels', got {type(batch).__name__}; "
        "pass loss_fn as a function of (model, batch) for any other form"
    )


def with_target(batch: Any, target: Tensor) -> Any:
    """The batch with another target."""
    return {**batch, "labels": target} if isinstance(batch, Mapping) else (batch[0], target)


def run_model(model: nn.Module, inputs: Any) -> Tensor:
    """The model's outputs, of Hugging Face models the logits; several inputs as a tuple, named ones as a mapping."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise LowtideTypeError(
            f"model must return a tensor, or an object with .logits, for a criterion, got {type(outputs).__name__}; "
            "pass loss_fn as a function of (model, batch) otherwise"
        )
    return outputs


def _not_separable() -> LowtideTypeError:
    return LowtideTypeError(
        "loss_fn must be a criterion (a module such as torch.nn.CrossEntropyLoss, or one of 'cross_entropy', 'mse', "
        "'bce_with_logits', 'causal_lm') for Gauss-Newton and Fisher, which need the model's outputs apart from the loss"
    )


class Loss:
    """A mean loss that is a function of model and batch and nothing else: ``loss_fn(model, batch)``.

    Args:
        fn: gives a 0-dim tensor, the mean over the batch's samples.
    """

    #: Whether the loss is a criterion on the model's outputs.
    separable = False
    #: Whether the criterion is convex in the outputs, so that Gauss-Newton products are positive.
    convex = False

    def __init__(self, fn: Callable[[nn.Module, Any], Tensor] | None = None) -> None:
        self._fn = fn

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, 0-dim."""
        if self._fn is not None:
            return self._fn(model, batch)
        return self.value(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """What the criterion is applied to."""
        if not self.separable:
            raise _not_separable()
        return run_model(model, split(batch)[0])

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """The criterion, 0-dim."""
        raise _not_separable()

    def count(self, batch: Any) -> float:
        """How much the batch weighs in a mean over all samples."""
        leaf = next((t for t in tree_leaves(_plain(batch)) if isinstance(t, Tensor)), None)
        if leaf is None:
            raise LowtideTypeError(
                f"data: a batch must hold a tensor whose first dimension counts samples, got {type(batch).__name__}; "
                "pass weight='batches' or a function of the batch"
            )
        return float(leaf.shape[0]) if leaf.dim() else 1.0

    def output_hessian(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        """The criterion's Hessian with respect to ``outputs``, times ``u`` of the same shape."""
        with torch.enable_grad():
            z = outputs.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.value(z, batch), z, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(outputs)
            (product,) = torch.autograd.grad(g, z, u, materialize_grads=True)
        return product

    def curvature_root(self, outputs: Tensor, batch: Any) -> Tensor:
        """c, such that the output Hessian is the mean of ``(c r)(c r)'``, r :meth:`nll_gradient` at sampled targets."""
        raise self._no_rows()

    def nll_gradient(self, outputs: Tensor, batch: Any) -> Tensor:
        """Gradient of each row's negative log likelihood with respect to the outputs, in their shape."""
        raise self._no_rows()

    def row_gradients(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """(gradients of l_n in the outputs' shape, weights w_n that broadcast with them)."""
        raise self._no_rows()

    def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator | None = None) -> Any:
        """The batch with targets drawn from the model's own distribution."""
        raise self._no_rows()

    def row_sum(self, products: Tensor) -> Tensor:
        """Sum over a row's outputs, kept as dimensions of size 1."""
        return (
            products.flatten(1).sum(1).view(-1, *[1] * (products.dim() - 1))
            if products.dim() > 1
            else products
        )

    def _no_rows(self) -> LowtideTypeError:
        return LowtideTypeError(
            f"loss_fn must be cross-entropy, mean squared error or binary cross-entropy for a Fisher, got {self!r}; "
            "GGNOperator takes any criterion"
        )

    def __repr__(self) -> str:
        return f"loss_fn({getattr(self._fn, '__name__', type(self._fn).__name__)})"


class Criterion(Loss):
    """Any module ``criterion(outputs, target)``, its output Hessian by automatic differentiation."""

    separable = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if getattr(module, "reduction", "mean") != "mean":
            raise LowtideValueError(
                f"loss_fn must be a mean (reduction='mean'), got reduction={module.reduction!r}: batches are weighted by samples"
            )
        self.module: Any = module

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.value`."""
        value: Tensor = self.module(outputs, split(batch)[1])
        return value

    def count(self, batch: Any) -> float:
        """Samples: the target's first dimension."""
        target = split(batch)[1]
        return super().count(target if isinstance(target, Tensor) and target.dim() else batch)

    def __repr__(self) -> str:
        return repr(self.module)


class MSE(Criterion):
    """``mean((f - y)^2)``; as a likelihood ``y ~ N(f, 1)`` up to a factor."""

    convex = True

    def __init__(self) -> None:
        super().__init__(nn.MSELoss())

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.value`."""
        # not F.mse_loss: torch 2.13 cannot run its backward pass in forward mode
        return (outputs - _same_shape(outputs, split(batch)[1])).square().mean()

    def count(self, batch: Any) -> float:
        """Numbers in the target."""
        return float(split(batch)[1].numel())

    def output_hessian(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        """``2 u / numel``."""
        return u * (2.0 / outputs.numel())

    def curvature_root(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.curvature_root`."""
        return torch.full_like(outputs, (2.0 / outputs.numel()) ** 0.5)

    def nll_gradient(self, outputs: Tensor, batch: Any) -> Tensor:
        """``f - y``."""
        target: Tensor = split(batch)[1]
        return outputs - target

    def row_gradients(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Loss.row_gradients`."""
        rows = outputs.shape[0]
        return 2.0 * (outputs - split(batch)[1]) * (rows / outputs.numel()), outputs.new_tensor(1.0 / rows)

    def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Targets ``f + N(0, 1)``."""
        noise = torch.randn(
            outputs.shape, generator=generator, dtype=outputs.dtype, device=_where(generator, outputs)
        )
        return with_target(batch, outputs.detach() + noise.to(outputs.device))


class BCEWithLogits(Criterion):
    """Binary cross-entropy of logits, with ``weight`` and ``pos_weight`` of :class:`torch.nn.BCEWithLogitsLoss`."""

    convex = True

    def __init__(self, module: nn.BCEWithLogitsLoss | None = None) -> None:
        super().__init__(module or nn.BCEWithLogitsLoss())

    def value(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.value`."""
        target = _same_shape(outputs, split(batch)[1]).to(outputs.dtype)
        value: Tensor = self.module(outputs, target)
        return value

    def count(self, batch: Any) -> float:
        """Numbers in the target."""
        return float(split(batch)[1].numel())

    def _factor(self, outputs: Tensor, y: Tensor) -> Tensor:
        w, pos = self.module.weight, self.module.pos_weight
        factor = torch.ones_like(outputs) if w is None else torch.ones_like(outputs) * w
        return factor if pos is None else factor * (1 + (pos - 1) * y)

    def output_hessian(self, outputs: Tensor, u: Tensor, batch: Any) -> Tensor:
        """``factor s (1 - s) u / numel``."""
        return (
            self.curvature_root(outputs, batch).square()
            * torch.sigmoid(outputs)
            * torch.sigmoid(-outputs)
            * u
        )

    def curvature_root(self, outputs: Tensor, batch: Any) -> Tensor:
        """See :meth:`Loss.curvature_root`."""
        y = split(batch)[1].to(outputs.dtype)
        return (self._factor(outputs, y) / outputs.numel()).sqrt()

    def nll_gradient(self, outputs: Tensor, batch: Any) -> Tensor:
        """``s - y``."""
        target: Tensor = split(batch)[1]
        return torch.sigmoid(outputs) - target.to(outputs.dtype)

    def row_gradients(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Loss.row_gradients`."""
        rows = outputs.shape[0]
        z = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.value(z, batch), z)
        return g * rows, outputs.new_tensor(1.0 / rows)

    def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Targets drawn with probability ``s``."""
        u = torch.rand(
            outputs.shape, generator=generator, dtype=outputs.dtype, device=_where(generator, outputs)
        )
        return with_target(batch, (u.to(outputs.device) < torch.sigmoid(outputs.detach())).to(outputs.dtype))


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch


def _where(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device


def _same_shape(outputs: Tensor, target: Tensor) -> Tensor:
    if outputs.shape != target.shape:
        raise LowtideValueError(
            f"data: the target must have the outputs' shape {tuple(outputs.shape)}, got {tuple(target.shape)}; "
            "broadcasting would change the loss"
        )
    return target
