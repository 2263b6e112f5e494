# SPDX-License-Identifier: Apache-2.0
"""Gradient projection memory, in full and scaled by importance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowtide.continual._layers import Forward, Patterns
from lowtide.continual._memory import Memory, check_finite, check_share, extended, spectrum
from lowtide.errors import LowtideValueError
from lowtide.optim.constraints import NullSpace, Projection


class GPM(Memory):
    """Gradient projection memory (Saha et al., ICLR 2021, section 4): weights no longer move along the inputs that carried
    ``threshold`` of the energy of past tasks.

    A layer that multiplies x keeps its outputs for all x in the span of M if updates U satisfy ``U M = 0``. M grows by the
    leading singular vectors of what new inputs have outside of it. The paper projects gradients; here the update is projected
    (:class:`~lowtide.optim.NullSpace`), so that it holds under Adam too.

    Args:
        model: its linear and convolutional layers are protected.
        threshold: share of the inputs' energy that M must hold, in (0, 1].
        growth: added to ``threshold`` at each further task (0.003 in the authors' CIFAR-100 runs).
        layers: regular expressions searched in the layers' names. Default: all.
        compat: ``"gpm"``: at the first task one vector less, as the authors' code counts.

    Raises:
        LowtideValueError: a bad argument, or nothing to protect.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 8, bias=False))
    >>> memory = lt.continual.GPM(model)
    >>> inputs = torch.randn(64, 3) @ torch.randn(3, 16)  # the first task's
    >>> memory.learn([inputs])
    {'0': 3}
    >>> opt = lt.optim.AdamW(model.parameters(), constraint=memory.constraint())
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.97,
        *,
        growth: float = 0.0,
        layers: Patterns = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(model, layers)
        check_share(threshold, "threshold")
        check_finite(growth, "growth", 0.0)
        if compat not in (None, "gpm"):
            raise LowtideValueError(f"compat must be None or 'gpm', got {compat!r}")
        self.threshold = threshold
        self.growth = growth
        self.compat = compat
        self.bases = {name: torch.zeros(0, layer.features) for name, layer in self.layers.items()}

    def learn(self, batches: Iterable[Any], forward: Forward | None = None) -> dict[str, int]:
        """Remember the inputs of a task that was just trained.

        Args:
            batches: data of the task as the model takes it: tensors, tuples (``model(*batch)``), mappings (``model(**batch)``).
                A few hundred samples do.
            forward: called with model and batch instead of the model.

        Returns:
            By layer, how many directions are protected now.

        Raises:
            LowtideValueError: no batch, or inputs that are not finite; nothing was changed.
        """
        for name, (gram, _) in self._grams(batches, forward).items():
            self._learn(name, gram, min(1.0, self.threshold + self.growth * self.tasks))
        self.tasks += 1
        return {name: b.shape[0] for name, b in self.bases.items()}

    def _learn(self, name: str, gram: Tensor, threshold: float) -> None:
        """Extend the basis of one layer."""
        old = self.bases[name]
        new, _ = self._new_directions(old, gram, threshold)
        if new.shape[0]:
            self.bases[name] = extended(old, new)

    def _new_directions(self, old: Tensor, gram: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """What to add to ``old`` so that it holds ``threshold`` of the energy, and the singular values of that."""
        b = old.double()
        rest = torch.eye(gram.shape[0], dtype=torch.float64) - b.T @ b
        values, vectors = spectrum(rest @ gram @ rest)
        whole = float(gram.trace())
        missing = threshold * whole - (whole - float(values.sum()))
        # Round-off of the products: below this there is no direction left to find.
        usable = int((values > 1e-13 * whole).sum())
        reached = torch.cumsum(values, 0)
        if self.compat == "gpm" and self.tasks == 0:
            count = int((reached < missing).sum())
        else:
            count = 0 if missing <= 0.0 else int((reached < missing * (1.0 - 1e-12)).sum()) + 1
        count = min(count, usable, gram.shape[0] - old.shape[0])
        return vectors[:count], values[:count].sqrt()

    def constraint(self) -> NullSpace:
        """See :class:`Memory`."""
        return NullSpace({layer.weight: Projection(self.bases[name]) for name, layer in self.layers.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's ``basis``: k x d, orthonormal rows, fp32."""
        return {f"{name}.basis": b for name, b in self.bases.items()}

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        bases = {name: self._basis_of(tensors, name) for name in self.layers}
        self.bases, self.tasks = bases, tasks

    def _basis_of(self, tensors: dict[str, Tensor], name: str) -> Tensor:
        d = self.layers[name].features
        got = tensors.get(f"{name}.basis")
        if (
            got is None
            or got.dtype != torch.float32
            or got.dim() != 2
            or got.shape[1] != d
            or got.shape[0] > d
        ):
            found = "nothing" if got is None else f"{got.dtype} {tuple(got.shape)}"
            raise LowtideValueError(
                f"state_dict['{name}.basis'] must be float32, k x {d} with k <= {d}, got {found}"
            )
        return Projection(got).basis  # refuses rows that are not orthonormal


class SGP(GPM):
    """Scaled gradient projection (Saha & Roy, AAAI 2023, arXiv 2302.01386, section 3): directions that mattered little may
    still move.

    An update loses ``lambda_i`` of its component along direction i, with singular values s_i of the inputs::

        lambda_i = (alpha + 1) s_i / (alpha s_i + max s)

    At each further task the importance of old directions grows by that of the new inputs along them, up to 1.

    Args:
        alpha: the larger, the more is protected; >= 0.
        model, threshold, growth, layers, compat: as in :class:`GPM`.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.97,
        *,
        alpha: float = 10.0,
        growth: float = 0.0,
        layers: Patterns = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(model, threshold, growth=growth, layers=layers, compat=compat)
        check_finite(alpha, "alpha", 0.0)
        self.alpha = alpha
        self.importance = {name: torch.zeros(0) for name in self.layers}

    def _learn(self, name: str, gram: Tensor, threshold: float) -> None:
        old = self.bases[name]
        new, values = self._new_directions(old, gram, threshold)
        b = old.double()
        along_old = ((b @ gram) * b).sum(1).clamp_min(0.0).sqrt()
        strengths = torch.cat([along_old, values])
        if strengths.numel() == 0 or float(strengths.max()) == 0.0:
            return
        scores = (self.alpha + 1.0) * strengths / (self.alpha * strengths + strengths.max())
        scores[: old.shape[0]] += self.importance[name]
        self.importance[name] = scores.clamp_(0.0, 1.0).float()
        if new.shape[0]:
            self.bases[name] = extended(old, new)

    def constraint(self) -> NullSpace:
        """See :class:`Memory`."""
        return NullSpace(
            {
                layer.weight: Projection(self.bases[name], self.importance[name])
                for name, layer in self.layers.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's ``basis`` (k x d) and ``importance`` (k), fp32."""
        return {**super().tensors(), **{f"{name}.importance": x for name, x in self.importance.items()}}

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        bases, importance = {}, {}
        for name in self.layers:
            bases[name] = self._basis_of(tensors, name)
            got = tensors.get(f"{name}.importance")
            if got is None:
                raise LowtideValueError(
                    f"state_dict has no '{name}.importance'; it was written by GPM, not by SGP"
                )
            importance[name] = Projection(bases[name], got.float()).weights
        self.bases, self.tasks = bases, tasks
        self.importance = {name: x for name, x in importance.items() if x is not None}
