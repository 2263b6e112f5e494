# SPDX-License-Identifier: Apache-2.0
"""A loss over data as a function of a model's parameters, evaluated without a trace in the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from lowtide.curvature._guard import RandomState, exact_derivatives, generators_of, modes
from lowtide.curvature._layout import Layout
from lowtide.curvature._losses_make import make_loss
from lowtide.curvature._params import ParamSpec, resolve_params
from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideTypeError, LowtideValueError

#: Random numbers of dropout and data loading are drawn from these and the batch's index.
_MODEL_SEED, _DATA_SEED = 0x10C0, 0xDA7A << 16
_LOW = (torch.bfloat16, torch.float16)

#: Gives (tensors, cotangents) of a model and a batch, to go backward from.
Roots: TypeAlias = Callable[[nn.Module, Any], tuple[list[Tensor], list[Tensor]]]


class _Call(nn.Module):
    """Lets functional_call swap a model's tensors around any function of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(self.model, *args)


class Problem:
    """The weighted mean loss of a model over data, its value and gradient at any parameters.

    Nothing is changed by any call, also when the loss raises: parameters, gradients, buffers, modes and random states stay
    as they are. Parameters are swapped in by :func:`torch.func.functional_call`, buffers as copies. Dropout draws the same
    masks, and a shuffling loader the same order, in every pass. Models with bfloat16 or float16 parameters are evaluated in
    float32 (a copy of them, while a call lasts): the step of a finite difference would drown in their rounding.

    Args:
        model: any module; its parameters are read when a method runs, so a trained model needs no new object.
        params: None (all that require grad), tensors, names, ``predicate(name, p)`` or (name, tensor) pairs.
        data: ``(x, y)`` for one batch, a list of batches, a DataLoader, or a function of no argument that returns an
            iterator over the same batches each time.
        loss_fn: a criterion module or ``"cross_entropy"``, ``"mse"``, ``"bce_with_logits"``, ``"causal_lm"``, applied to
            ``model(x)`` and y; or a function of (model, batch) that returns the batch's mean loss.
        weight: what a batch weighs in the mean: ``"samples"`` (tokens that count for causal_lm), ``"batches"`` (equal),
            or a function of the batch. The first pass over the data counts.
        state: ``"freeze"`` leaves training mode as it is (batch statistics and dropout of a training step), ``"eval"``
            evaluates in evaluation mode.
        sdpa: ``"math"`` gives attention derivatives of any order by running its formula in exact products; ``"keep"``
            leaves the choice of kernel to torch.
        progress: show a bar over batches (needs tqdm).

    Attributes:
        layout: names and shapes of the parameters.
        loss: the loss as outputs and criterion (see ``_losses.py``).
        index: of the batch that :meth:`batches` is at.

    >>> import torch
    >>> from lowtide.curvature import Problem
    >>> model = torch.nn.Linear(2, 1)
    >>> problem = Problem(model, None, (torch.ones(4, 2), torch.zeros(4, 1)), "mse")
    >>> problem.gradient().shape, problem.layout.names
    (torch.Size([3]), ('weight', 'bias'))
    """

    def __init__(
        self,
        model: nn.Module,
        params: ParamSpec,
        data: Any,
        loss_fn: Any,
        *,
        weight: str | Callable[[Any], float] = "samples",
        state: str = "freeze",
        sdpa: str = "math",
        progress: bool = False,
    ) -> None:
        for name, value, allowed in (("state", state, ("freeze", "eval")), ("sdpa", sdpa, ("math", "keep"))):
            if value not in allowed:
                raise LowtideValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not callable(weight) and weight not in ("samples", "batches"):
            raise LowtideValueError(
                f"weight must be 'samples', 'batches' or a function of the batch, got {weight!r}"
            )
        named = resolve_params(model, params)
        self.model, self.state, self.sdpa, self.weight = model, state, sdpa, weight
        self.layout = Layout.of(named)
        self.loss = make_loss(loss_fn)
        self._params = [p for _, p in named]
        self._chosen = {name for name, _ in named}
        self._wrapper = _Call(model)
        self._upcast = any(p.dtype in _LOW for p in self._params)
        self._source = _source(data)
        self._stored = isinstance(data, (Tensor, Mapping, tuple, list))  # nothing random in reading it again
        self._generators = generators_of(data)
        self._weights: list[float] | None = None
        self._counts: list[float] = []
        self._random: RandomState | None = None
        self.index = 0
        if progress:
            try:
                import tqdm  # noqa: F401
            except ImportError as error:
                raise LowtideImportError("progress=True needs tqdm: pip install tqdm") from error
        self.progress = progress

    # ------------------------------------------------------------------ parameters and data

    @property
    def tensors(self) -> list[Tensor]:
        """The model's live parameters, detached, in the layout's order; they share the model's memory: do not write."""
        return [p.detach() for p in self._params]

    def leaves(self, tensors: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What to differentiate in: the model's parameters or ``tensors`` as leaves that require grad, float32 for low precision."""
        if torch.is_inference_mode_enabled():
            raise LowtideRuntimeError(
                "curvature needs gradients, which torch.inference_mode forbids; leave it (torch.no_grad is no obstacle)"
            )
        return [_float32(t.detach()).requires_grad_() for t in (self.tensors if tensors is None else tensors)]

    @contextmanager
    def frozen(self, *, exact: bool = False) -> Iterator[None]:
        """What calls within leave as it was, put back once at the end instead of after each.

        Args:
            exact: whether second derivatives are taken, for which attention must run by its formula.
        """
        cuda = self.layout.device.type == "cuda"
        with exact_derivatives(self.sdpa, cuda, exact):
            if self._random is not None:
                yield
                return
            self._random = RandomState([self.layout.device], self._generators)
            try:
                with modes(self.model, self.state):
                    yield
            finally:
                self._random.restore()
                self._random, self.index = None, 0

    def batches(self) -> Iterator[tuple[Any, float]]:
        """All batches, each with its weight in the mean; weights sum to 1, batches without weight are left out.

        Random states are frozen while the loop is under way; put it into :meth:`frozen` where its body may raise.

        Raises:
            LowtideRuntimeError: the data are not those of the first pass.
        """
        with self.frozen():
            weights = self._count() if self._weights is None else self._weights
            bar = self._bar(len(weights))
            seen = 0
            try:
                for i, batch in enumerate(self._raw()):
                    seen, self.index = i + 1, i
                    if i >= len(weights) or self._weigh(batch) != self._counts[i]:
                        break
                    if weights[i]:
                        yield batch, weights[i]
                    if bar is not None:
                        bar.update()
                else:
                    if seen == len(weights):
                        return
            finally:
                if bar is not None:
                    bar.close()
        raise LowtideRuntimeError(
            f"data differ from the first pass, which had {len(weights)} batches, at batch {seen}; "
            "every pass must give the same batches in the same order"
        )

    def _raw(self) -> Iterator[Any]:
        assert self._random is not None
        if self._stored:
            yield from self._source()
            return
        self._random.seed(_DATA_SEED - 1)
        batches = iter(self._source())
        for i in range(1 << 62):
            self._random.seed(_DATA_SEED + i)
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def _weigh(self, batch: Any) -> float:
        if callable(self.weight):
            return float(self.weight(batch))
        return self.loss.count(batch) if self.weight == "samples" else 1.0

    def _count(self) -> list[float]:
        counts = self._counts = [self._weigh(batch) for batch in self._raw()]
        total = sum(counts)
        if not counts or not total > 0 or min(counts) < 0:
            raise LowtideValueError(
                f"data must hold at least one batch with samples that count, got {len(counts)} batches of total weight {total}"
            )
        self._weights = [c / total for c in counts]
        return self._weights

    def _bar(self, total: int) -> Any:
        if not self.progress:
            return None
        from tqdm import tqdm

        return tqdm(total=total, unit="batch", leave=False, dynamic_ncols=True, file=sys.stderr)

    # ------------------------------------------------------------------ evaluation

    def swapped(self, fn: Callable[..., Any], tensors: Sequence[Tensor] | None, batch: Any) -> Any:
        """``fn(model, batch)`` with ``tensors`` in the place of the model's parameters and copies in that of its buffers."""
        tensors = self.tensors if tensors is None else tensors
        if len(tensors) != len(self._params):
            raise LowtideValueError(
                f"tensors must hold {len(self._params)} tensors, one a parameter, got {len(tensors)}"
            )
        own = {
            name: t if t.dtype == p.dtype or p.dtype in _LOW else t.to(p.dtype)
            for name, t, p in zip(self.layout.names, tensors, self._params, strict=True)
        }
        for name, p in self.model.named_parameters():
            if name not in self._chosen:
                own[name] = p.detach()
        if self._upcast:
            own = {name: _float32(t) for name, t in own.items()}
            batch = tree_map(_float32, dict(batch) if isinstance(batch, Mapping) else batch)
        for name, b in self.model.named_buffers():
            own[name] = _float32(b.clone()) if self._upcast else b.clone()
        with self.frozen():
            assert self._random is not None
            self._random.seed(_MODEL_SEED + self.index)
            return functional_call(self._wrapper, {f"model.{k}": t for k, t in own.items()}, (fn, batch))

    def call(self, tensors: Sequence[Tensor] | None, batch: Any) -> Tensor:
        """The mean loss of one batch, 0-dim, differentiable in ``tensors`` (None: the model's, detached).

        Models with activation checkpointing compute activations again in the backward pass, by then with their own parameters: take
        gradients by :meth:`gradient` or :meth:`visit_gradients`, which go backward while ``tensors`` are in place.
        """
        loss: Tensor = self.swapped(self.loss_of, tensors, batch)
        return loss

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of one batch by a model whose parameters are in place, checked to be one number."""
        loss = self.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = (
                f"shape {tuple(loss.shape)}, {loss.dtype}"
                if isinstance(loss, Tensor)
                else type(loss).__name__
            )
            raise LowtideTypeError(
                f"loss_fn must return one floating-point number as a tensor, the batch's mean loss, got {got}"
            )
        return loss.reshape(())

    def outputs(self, tensors: Sequence[Tensor] | None, batch: Any) -> Tensor:
        """What the criterion is applied to, for one batch, differentiable in ``tensors``.

        Raises:
            LowtideTypeError: ``loss_fn`` is a function of (model, batch).
        """
        outputs: Tensor = self.swapped(self.loss.outputs, tensors, batch)
        return outputs

    def evaluate(
        self, tensors: Sequence[Tensor] | None = None, *, batches: Iterable[tuple[Any, float]] | None = None
    ) -> float:
        """The mean loss, summed in double precision, without gradients.

        Args:
            tensors: parameters in the layout's order; the model's if left out.
            batches: pairs of batch and weight instead of all of :meth:`batches`.
        """
        with torch.no_grad(), self.frozen():
            return sum((w * float(self.call(tensors, batch)) for batch, w in self._pairs(batches)), start=0.0)

    def gradient(
        self,
        tensors: Sequence[Tensor] | None = None,
        *,
        out: Tensor | None = None,
        batches: Iterable[tuple[Any, float]] | None = None,
    ) -> Tensor:
        """The mean gradient, flat ``(n,)`` of the layout's dtype; zero for parameters that the loss does not use.

        Args:
            tensors, batches: see :meth:`evaluate`.
            out: where to write.
        """
        out = self.layout.zeros() if out is None else out.zero_()
        parts = self.layout.views(out)
        self.visit_gradients(tensors, lambda t, g, w: parts[t].add_(g, alpha=w), batches=batches)
        return out

    def visit_gradients(
        self,
        tensors: Sequence[Tensor] | None,
        visit: Callable[[int, Tensor, float], object],
        *,
        batches: Iterable[tuple[Any, float]] | None = None,
        roots: Callable[[Any], Roots] | None = None,
    ) -> None:
        """Calls ``visit(t, gradient, weight)`` for each parameter and batch as the backward pass gets there.

        The gradient is freed afterwards: no more than the largest tensor's is held besides activations.

        Args:
            tensors, batches: see :meth:`evaluate`.
            roots: for a batch, a function of (model, batch) that gives (tensors, cotangents) to go backward from, called with
                the parameters in place; the loss if left out.
        """
        leaves = self.leaves(tensors)
        current = [0.0]

        def watch(t: int, leaf: Tensor) -> Any:
            def visit_and_free(p: Tensor) -> None:
                gradient, p.grad = p.grad, None
                if gradient is not None:
                    visit(t, gradient.to_dense() if gradient.is_sparse else gradient, current[0])

            return leaf.register_post_accumulate_grad_hook(visit_and_free)  # type: ignore[no-untyped-call]

        handles = [watch(t, leaf) for t, leaf in enumerate(leaves)]
        try:
            with torch.enable_grad(), self.frozen():
                for batch, weight in self._pairs(batches):
                    current[0] = weight
                    # Backward while the tensors are in place: checkpointed modules run again there.
                    self.swapped(
                        _backward(self.loss_root if roots is None else roots(batch), leaves), leaves, batch
                    )
        finally:
            for handle in handles:
                handle.remove()

    def loss_root(self, model: nn.Module, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The loss, to go backward from, and 1."""
        loss = self.loss_of(model, batch)
        if not loss.requires_grad:
            raise LowtideRuntimeError(
                "loss_fn gave a loss that depends on none of params; it must not detach them or return .item()"
            )
        return [loss], [torch.ones_like(loss)]

    def _pairs(self, batches: Iterable[tuple[Any, float]] | None) -> Iterable[tuple[Any, float]]:
        return self.batches() if batches is None else batches


def _backward(roots: Roots, leaves: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    def run(model: nn.Module, batch: Any) -> None:
        tensors, cotangents = roots(model, batch)
        if not any(t.requires_grad for t in tensors):
            raise LowtideRuntimeError(
                "the model's outputs depend on none of params; it must not detach them, and params must be among what it uses"
            )
        torch.autograd.backward(tensors, cotangents, inputs=leaves)

    return run


def _float32(t: Any) -> Any:
    return t.float() if isinstance(t, Tensor) and t.dtype in _LOW else t


def _source(data: Any) -> Callable[[], Iterable[Any]]:
    """A function that starts a pass over the data."""
    if isinstance(data, (Tensor, Mapping)) or (
        isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
    ):
        return lambda: (data,)
    if isinstance(data, Iterator):
        raise LowtideTypeError(
            f"data must be readable again and again, got a one-shot {type(data).__name__}; pass list(data), or a function "
            "that makes a new one"
        )
    if callable(data) and not isinstance(data, Iterable):
        return data  # type: ignore[no-any-return]
    if isinstance(data, Iterable):
        return lambda: data
    raise LowtideTypeError(
        f"data must be (x, y), a list of batches, a DataLoader or a function that returns an iterator, got {type(data).__name__}"
    )
