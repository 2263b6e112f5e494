# SPDX-License-Identifier: Apache-2.0
"""Which examples stay hard: how much the gradient by the input varies over training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError


class VarianceOfGradients:
    """Which examples stay hard: how much the gradient of the label's logit by the input varies over checkpoints.

    VoG (Agarwal et al. 2022, arXiv 2008.11600, §2): with S_t the gradient at checkpoint t, the standard deviation of
    each input element over t (as the authors' code has it), averaged over elements, then made comparable between
    classes: minus the mean of the example's class, over its standard deviation.

    Only running means and sums of squares are kept (Welford): two float32 numbers for each input element, whatever the
    number of checkpoints. Objects over the same examples merge, so checkpoints may be visited by several processes.

    Args:
        labels: int64 ``(N,)``, the class of each example.

    Attributes:
        checkpoints: how many were seen.
    """

    def __init__(self, labels: Tensor) -> None:
        if labels.dim() != 1 or labels.dtype != torch.int64 or not len(labels):
            raise LowtideValueError(f"labels must be int64 (N,), got {labels.dtype} {tuple(labels.shape)}")
        self.labels = labels.detach().clone()
        self.checkpoints = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, model: nn.Module, inputs: Tensor, *, batch_size: int = 256) -> None:
        """Take in one checkpoint. ``model`` runs in eval mode and is left as it was; its ``.grad`` is not touched.

        Args:
            model: ``model(inputs)`` gives logits ``(B, classes)``.
            inputs: ``(N, ...)``, floating point, the same at each call.
            batch_size: examples at a time.

        Raises:
            LowtideTypeError, LowtideValueError: a bad argument, or a gradient that is not finite; nothing is taken in.
        """
        if not inputs.is_floating_point():
            raise LowtideTypeError(
                f"inputs must be floating point, got {inputs.dtype}; for token models give embeddings and a module over them"
            )
        if len(inputs) != len(self.labels):
            raise LowtideValueError(f"inputs has {len(inputs)} examples, labels {len(self.labels)}")
        if self._mean is not None and inputs.shape != self._mean.shape:
            raise LowtideValueError(
                f"inputs must have shape {tuple(self._mean.shape)} as before, got {tuple(inputs.shape)}"
            )
        if batch_size < 1:
            raise LowtideValueError(f"batch_size must be 1 or more, got {batch_size}")
        gradient = torch.empty(inputs.shape, dtype=torch.float32, device=inputs.device)
        with _evaluating(model):
            for first in range(0, len(inputs), batch_size):
                part = slice(first, first + batch_size)
                gradient[part] = self._gradient(model, inputs[part], self.labels[part])
        if not bool(gradient.isfinite().all()):
            raise LowtideValueError(
                "model gives gradients that are not finite; this checkpoint was not taken in"
            )
        if self._mean is None or self._squares is None:
            self._mean, self._squares = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.checkpoints += 1
        gradient -= self._mean
        self._mean.add_(gradient, alpha=1 / self.checkpoints)
        # (x - old mean)(x - new mean) = (x - old mean)^2 (k - 1) / k
        self._squares.addcmul_(gradient, gradient, value=(self.checkpoints - 1) / self.checkpoints)

    @staticmethod
    def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            logits = model(leaf)
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise LowtideValueError(f"model must give logits ({len(inputs)}, classes), got {got}")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= logits.shape[1]:
                raise LowtideValueError(
                    f"labels go from {low} to {high}, the model has {logits.shape[1]} classes"
                )
            chosen = logits.gather(1, labels.to(logits.device)[:, None]).sum()
            return torch.autograd.grad(chosen, leaf)[0]

    def merge(self, other: VarianceOfGradients) -> None:
        """Take in the checkpoints that another object saw of the same examples (Chan et al. 1979)."""
        if not torch.equal(self.labels, other.labels):
            raise LowtideValueError("other must be over the same examples: its labels differ")
        if other._mean is None or other._squares is None:
            return
        if self._mean is None or self._squares is None:
            self._mean, self._squares = other._mean.clone(), other._squares.clone()
            self.checkpoints = other.checkpoints
            return
        if other._mean.shape != self._mean.shape:
            raise LowtideValueError(
                f"other saw inputs of shape {tuple(other._mean.shape)}, this one {tuple(self._mean.shape)}"
            )
        total = self.checkpoints + other.checkpoints
        delta = other._mean - self._mean
        self._squares += other._squares
        self._squares.addcmul_(delta, delta, value=self.checkpoints * other.checkpoints / total)
        self._mean.add_(delta, alpha=other.checkpoints / total)
        self.checkpoints = total

    def scores(self, *, normalize: bool = True) -> Tensor:
        """One number an example, float64 ``(N,)``; the highest are the hardest.

        Args:
            normalize: within classes. A class whose examples all have the same score gets zeros.

        Raises:
            LowtideValueError: fewer than two checkpoints.
        """
        if self._squares is None or self.checkpoints < 2:
            raise LowtideValueError(
                f"scores need two checkpoints or more, got {self.checkpoints}; call update for each"
            )
        deviation = (self._squares.double() / self.checkpoints).sqrt()
        result = deviation.reshape(len(deviation), -1).mean(1).cpu()
        if normalize:
            for label in sorted(set(self.labels.tolist())):
                members = (self.labels == label).cpu()
                own = result[members]
                spread = own.std(correction=0)
                result[members] = (own - own.mean()) / (spread if float(spread) else 1.0)
        return result


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode and the flags of parameters as before outside."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def variance_of_gradients(
    checkpoints: Iterable[nn.Module], inputs: Tensor, labels: Tensor, *, batch_size: int = 256
) -> Tensor:
    """Class-normalised :class:`VarianceOfGradients` scores over checkpoints that are made one after the other, float64 ``(N,)``."""
    statistics = VarianceOfGradients(labels)
    for model in checkpoints:
        statistics.update(model, inputs, batch_size=batch_size)
    return statistics.scores()
