# SPDX-License-Identifier: Apache-2.0
"""Trust regions: old tasks that a new one resembles lend it their knowledge, scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowtide.continual._layers import Patterns
from lowtide.continual._memory import Memory, check_finite, check_share, extended, spectrum
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.constraints import Constraint, NullSpace, Projection

#: The loss of a model on one batch, a scalar.
Loss: TypeAlias = "Callable[[nn.Module, Any], Tensor]"

#: Of an old task, in a layer, for the task in training.
APART, TRUSTED, ALIGNED = 1, 2, 3


class TRGP(Memory):
    """Trust region gradient projection (Lin et al., ICLR 2022, arXiv 2202.02931, sections 3 and 4).

    As in :class:`GPM`, weights stay where old inputs see them. But where the first gradient of a new task lies largely in the
    input subspace B (k x d) of an old one, at most ``most`` of them a layer, that old knowledge is put to use: the new task
    trains a k x k matrix Q, from the identity, and the layer works with ``W + W Bᵀ (Q - I) B``. It is applied to the inputs,
    ``x + Bᵀ (Q - I) B x``: the same product, without a second weight.

    Each task has its own Q: :meth:`use` says whose are active. Linear layers with dense weights only.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 4, bias=False))
    >>> memory = lt.continual.TRGP(model, lambda m, batch: m(batch).square().mean())
    >>> for task in range(2):
    ...     data = [torch.randn(32, 16) @ torch.randn(16, 16)]
    ...     regimes = memory.begin(data)
    ...     opt = lt.optim.AdamW([*model.parameters(), *memory.parameters()], constraint=memory.constraint())
    ...     for batch in data:  # train
    ...         opt.zero_grad()
    ...         memory.loss(model, batch).backward()
    ...         opt.step()
    ...     _ = memory.learn(data)
    >>> memory.use(0)  # to evaluate the first task

    Args:
        model: its linear layers are protected; hooks on them apply Q until :meth:`close`.
        loss: ``loss(model, batch)``, a scalar.
        threshold, growth, layers: as in :class:`GPM`.
        trust: share of the gradient's norm that must lie in an old subspace, in (0, 1]: the paper's epsilon.
        most: old tasks a layer may trust, >= 0.

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, or a packed weight.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        threshold: float = 0.97,
        *,
        trust: float = 0.5,
        most: int = 2,
        growth: float = 0.0,
        layers: Patterns = None,
    ) -> None:
        super().__init__(model, layers, linear_only=True)
        if not callable(loss):
            raise LowtideTypeError(f"loss must be a function of model and batch, got {type(loss).__name__}")
        check_share(threshold, "threshold")
        check_share(trust, "trust")
        check_finite(growth, "growth", 0.0)
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise LowtideValueError(f"most must be an integer >= 0, got {most!r}")
        for name, layer in self.layers.items():
            if weight_store.is_quantized(layer.weight):
                raise LowtideTypeError(
                    f"layer {name!r} has a packed weight; trust regions need dense ones, or leave it out with layers="
                )
        self.loss, self.threshold, self.trust, self.most, self.growth = loss, threshold, trust, most, growth
        #: By layer, all directions of all tasks, P x d orthonormal; and by task which of them are its own.
        self.pools = {name: torch.zeros(0, layer.features) for name, layer in self.layers.items()}
        self.chosen: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        #: By layer and (task, old task): Q.
        self.scales: dict[str, dict[tuple[int, int], nn.Parameter]] = {name: {} for name in self.layers}
        #: By layer, what each old task is to the one in training; empty between tasks.
        self.regimes: dict[str, list[int]] = {name: [] for name in self.layers}
        self._active: int | None = None
        self._training = False
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, layer in self.layers.items()
            for module in layer.modules
        ]

    # ------------------------------------------------------------------ a task

    def begin(self, batches: Iterable[Any]) -> dict[str, list[int]]:
        """Look at the first gradient of a new task and decide which old ones it may trust.

        Args:
            batches: data of the new task, as ``loss`` takes it. A few hundred samples do.

        Returns:
            By layer, the regime of each old task: 1 apart, 2 trusted, 3 aligned (CUBER only).

        Raises:
            LowtideRuntimeError: a task has begun and was not learned.
        """
        if self._training:
            raise LowtideRuntimeError(f"task {self.tasks} has begun already; call learn() at its end")
        self.use(None)
        gradients = self._gradients(batches) if self.tasks else {}
        for name in self.layers:
            self.regimes[name] = self._regimes(name, gradients[name]) if self.tasks else []
            for old, regime in enumerate(self.regimes[name]):
                if regime != APART:
                    k = self.chosen[name][old].numel()
                    self.scales[name][self.tasks, old] = nn.Parameter(torch.eye(k))
        self._training = True
        self._active = self.tasks
        return {name: list(found) for name, found in self.regimes.items()}

    def parameters(self) -> list[nn.Parameter]:
        """The Q of the task in training, for its optimizer."""
        return [q for scales in self.scales.values() for (task, _), q in scales.items() if task == self.tasks]

    def constraint(self) -> Constraint:
        """See :class:`Memory`."""
        return NullSpace({layer.weight: Projection(self.pools[name]) for name, layer in self.layers.items()})

    def learn(self, batches: Iterable[Any]) -> dict[str, int]:
        """Remember a task that was just trained: the directions, old ones included, that hold ``threshold`` of its inputs' energy.

        Returns:
            By layer, how many directions are protected now.
        """
        threshold = min(1.0, self.threshold + self.growth * self.tasks)
        for name, (gram, _) in self._grams(batches, self.loss).items():
            pool = self.pools[name].double()
            rest = torch.eye(gram.shape[0], dtype=torch.float64) - pool.T @ pool
            values, vectors = spectrum(rest @ gram @ rest)
            room = min(int((values > 1e-13 * float(gram.trace())).sum()), gram.shape[0] - pool.shape[0])
            energies = torch.cat([((pool @ gram) * pool).sum(1), values[:room]])
            order = torch.argsort(energies, descending=True, stable=True)
            reached = torch.cumsum(energies[order], 0)
            enough = threshold * float(gram.trace()) * (1.0 - 1e-12)
            count = min(int((reached < enough).sum()) + 1, len(order)) if float(gram.trace()) > 0.0 else 0
            picked = order[:count].sort().values
            fresh = picked[picked >= pool.shape[0]] - pool.shape[0]  # the leading ones: values are sorted
            if fresh.numel():
                self.pools[name] = extended(self.pools[name], vectors[fresh])
            self.chosen[name].append(picked.to(torch.int32))
            self.regimes[name] = []
            for q in self.scales[name].values():
                q.requires_grad_(False)
        self.tasks += 1
        self._training = False
        return {name: pool.shape[0] for name, pool in self.pools.items()}

    def use(self, task: int | None) -> None:
        """Make the Q of ``task`` (counted from 0) active, or none (None).

        Raises:
            LowtideValueError: there is no such task.
        """
        last = self.tasks if self._training else self.tasks - 1
        if task is not None and not (isinstance(task, int) and 0 <= task <= last):
            raise LowtideValueError(f"task must be None or an integer in [0, {last}], got {task!r}")
        self._active = task

    def close(self) -> None:
        """Take the hooks off the model: it works with its plain weights again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ------------------------------------------------------------------ inside

    def basis(self, name: str, task: int) -> Tensor:
        """The input subspace of a task in a layer: k x d, orthonormal rows."""
        return self.pools[name][self.chosen[name][task].long()]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def scale(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            used = [(old, q) for (task, old), q in self.scales[name].items() if task == self._active]
            if not used:
                return None
            x = inputs[0]
            out = x
            for old, q in used:
                b = self.basis(name, old).to(x.dtype)
                change = (q - torch.eye(q.shape[0])).to(x.dtype)
                out = out + (x @ b.T) @ change.T @ b
            return (out, *inputs[1:])

        return scale

    def _gradients(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The mean gradient of each layer's weight; gradients of the model stay as they are."""
        weights = [layer.weight for layer in self.layers.values()]
        sums = [torch.zeros(w.shape) for w in weights]
        count = 0
        for batch in batches:
            with torch.enable_grad():
                found = torch.autograd.grad(self.loss(self.model, batch), weights, allow_unused=True)
            for total, g in zip(sums, found, strict=True):
                if g is not None:
                    total += g
            count += 1
        if count == 0 or not all(bool(g.isfinite().all()) for g in sums):
            raise LowtideValueError(
                "batches must hold data whose gradients are finite, got "
                + ("none" if count == 0 else "inf or NaN")
            )
        return dict(zip(self.layers, (g / count for g in sums), strict=True))

    def _regimes(self, name: str, gradient: Tensor) -> list[int]:
        whole = float(gradient.norm())
        norms = [float((gradient @ self.basis(name, old).T).norm()) for old in range(self.tasks)]
        nearest = sorted(range(self.tasks), key=lambda old: -norms[old])[: self.most]
        return [
            TRUSTED if old in nearest and 0.0 < self.trust * whole < norms[old] else APART
            for old in range(self.tasks)
        ]

    # ------------------------------------------------------------------ state

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's ``pool`` (P x d fp32), ``chosenJ`` (int32, which rows are task J's), ``scaleT-J`` (Q of task T for J)
        and, while a task is trained, ``regimes``."""
        found = {}
        for name in self.layers:
            found[f"{name}.pool"] = self.pools[name]
            for task, rows in enumerate(self.chosen[name]):
                found[f"{name}.chosen{task}"] = rows
            for (task, old), q in self.scales[name].items():
                found[f"{name}.scale{task}-{old}"] = q.detach()
            if self._training:
                found[f"{name}.regimes"] = torch.tensor(self.regimes[name], dtype=torch.int32)
        return found

    def _restore(self, tensors: dict[str, Tensor], tasks: int) -> None:
        training = any(key.endswith(".regimes") for key in tensors)
        pools: dict[str, Tensor] = {}
        chosen: dict[str, list[Tensor]] = {}
        scales: dict[str, dict[tuple[int, int], nn.Parameter]] = {}
        regimes: dict[str, list[int]] = {}
        for name, layer in self.layers.items():
            pools[name] = Projection(
                _take(tensors, f"{name}.pool", torch.float32, (None, layer.features))
            ).basis
            size = pools[name].shape[0]
            chosen[name] = [_take(tensors, f"{name}.chosen{t}", torch.int32, (None,)) for t in range(tasks)]
            for rows in chosen[name]:
                if rows.numel() and (
                    int(rows.min()) < 0 or int(rows.max()) >= size or len(set(rows.tolist())) < len(rows)
                ):
                    raise LowtideValueError(
                        f"state_dict of layer {name!r} names directions that its pool does not have"
                    )
            scales[name] = {}
            for task in range(tasks + training):
                for old in range(task):
                    if f"{name}.scale{task}-{old}" in tensors:
                        k = chosen[name][old].numel()
                        q = _take(tensors, f"{name}.scale{task}-{old}", torch.float32, (k, k))
                        scales[name][task, old] = nn.Parameter(q, requires_grad=task == tasks)
            regimes[name] = []
            if training:
                regimes[name] = _take(tensors, f"{name}.regimes", torch.int32, (tasks,)).tolist()
                if any(r not in (APART, TRUSTED, ALIGNED) for r in regimes[name]):
                    raise LowtideValueError(f"state_dict['{name}.regimes'] must hold 1, 2 or 3")
        self.pools, self.chosen, self.scales, self.regimes = pools, chosen, scales, regimes
        self.tasks, self._training = tasks, training
        self._active = tasks if training else None


def _take(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
    got = tensors.get(name)
    fits = (
        got is not None
        and got.dtype == dtype
        and got.dim() == len(shape)
        and all(want is None or n == want for n, want in zip(got.shape, shape, strict=True))
    )
    if got is None or not fits:
        found = "nothing" if got is None else f"{got.dtype} {tuple(got.shape)}"
        raise LowtideValueError(f"state_dict[{name!r}] must be {dtype} of shape {shape}, got {found}")
    return got
