# SPDX-License-Identifier: Apache-2.0
"""Updating each parameter as soon as its gradient is there, so that only one gradient lives at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowtide._compile import uncompiled
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.engine import Composed
from lowtide.optim.kept import KeptGradients
from lowtide.optim.passes import BackwardPass, shared_parameters
from lowtide.optim.shards import is_distributed

CLIPS = ("exact", "two_pass", "previous")
REFRESH_FROM = ("all", "first")


class InBackward(Optimizer):
    """Handle of :func:`in_backward`: an optimizer to training loops and schedulers, whose updates happen in ``backward()``.

    Its groups, its state and their dictionaries are those of :attr:`optimizer`.

    Attributes:
        optimizer: the optimizer that does the updates.
        accumulate: backward passes that make a step.
        passes: how many of them the step under way has had.
        peak_gradient_bytes: most gradient bytes seen alive at once since :meth:`zero_grad`.
        grad_norm: where ``max_grad_norm`` is given: norm of all gradients of the last step before clipping, else None.
    """

    def __init__(
        self,
        optimizer: Composed,
        *,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        clip: str = "exact",
        refresh_from: str = "all",
        process_group: Any = None,
        shared: set[int] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.passes = 0
        self.grad_norm: float | None = None
        self._max_norm = max_grad_norm
        self._clip = clip if max_grad_norm is not None else None
        self._shared = shared or set()
        self._pass = BackwardPass(self._end_of_pass)
        self._late: list[Tensor] = []
        self._updated: set[int] = set()
        self._measuring = False
        self._measured = False
        self._factor: float | None = None
        self._handles: list[Any] = []
        self._kept = KeptGradients(
            optimizer,
            # Norms of sums over passes cannot be told from what was kept of each.
            compress=not (self._clip == "exact" and accumulate > 1),
            refresh_early=refresh_from == "first",
            process_group=process_group,
        )
        super().__init__(optimizer.param_groups, optimizer.defaults)
        for p in self._params():
            self._hook(p)

    # ------------------------------------------------------------------ backward passes

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``; with ``clip="two_pass"`` once to measure the norm of all gradients, once to update.

        Args:
            loss: a scalar.
        """
        if self._clip != "two_pass":
            loss.backward()  # type: ignore[no-untyped-call]
            return
        self._measuring = self._measured = True
        try:
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            self._measuring = False
            self._factor = self._clip_factor()
            self._kept.next_step()
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._measuring = self._measured = False
            self._factor = None

    @uncompiled
    @torch.no_grad()
    def _on_gradient(self, p: Tensor) -> None:
        grad = weight_store.gradient(p)
        if grad is None:
            return
        if self._clip == "two_pass" and not self._measured:
            raise LowtideRuntimeError(
                "clip='two_pass' measures gradients before it updates; call handle.backward(loss), not loss.backward()"
            )
        self._pass.begin()
        if id(p) in self._updated:
            raise LowtideRuntimeError(
                "a parameter got a second gradient in one backward pass, after it had been updated by the first: reentrant "
                "checkpointing of modules that share it; pass use_reentrant=False to torch.utils.checkpoint"
            )
        self._kept.count(p)
        if id(p) in self._shared:
            self._late.append(p)
        else:
            self._take(p)

    def _take(self, p: Tensor) -> None:
        """The gradient of ``p`` is complete for this pass."""
        if self._measuring:
            self._kept.complete(p, measure=True)
            self._kept.drop(p)
            self._updated.add(id(p))
            return
        last = self.passes + 1 == self.accumulate
        waits = not last or self._clip == "exact"
        self._kept.keep(p, last=last, waits=waits, measure=self._clip in ("exact", "previous"))
        if not waits:
            self._update(p)

    def _update(self, p: Tensor) -> None:
        factor = self._factor
        if self._clip == "previous":
            # Until there is a norm to go by, each parameter is clipped by its own.
            assert self._max_norm is not None
            norm = self._kept.norms[id(p)] if self.grad_norm is None else self.grad_norm
            factor = _factor(self._max_norm, float(norm))
        self._updated.add(id(p))
        self._kept.update(p, factor)

    @uncompiled
    @torch.no_grad()
    def _end_of_pass(self) -> None:
        late, self._late = list({id(p): p for p in self._late}.values()), []
        for p in late:
            self._take(p)
        if self._measuring:
            self._updated.clear()
            return
        self.passes += 1
        if self.passes == self.accumulate:
            self._finish()

    def _finish(self) -> None:
        """Update what this step has not updated yet, and be ready for the next."""
        waiting = [p for p in self._params() if id(p) not in self._updated and self._kept.holds(p)]
        for p in waiting:  # those without a gradient in the last pass
            self._kept.complete(p, measure=self._clip in ("exact", "previous"))
        if self._clip == "exact":
            self._factor = self._clip_factor()
        for p in waiting:
            self._update(p)
        if self._clip == "exact":
            self._factor = None
        elif self._clip == "previous":
            self._clip_factor()
        self._next_step()

    def _next_step(self) -> None:
        self._late.clear()
        self._updated.clear()
        self._kept.next_step()
        self.passes = 0

    def _clip_factor(self) -> float | None:
        norms = [n for p in self._params() if (n := self._kept.norms.get(id(p))) is not None]
        if not norms or self._max_norm is None:
            return None
        # As torch.nn.utils.clip_grad_norm_, to the bit in fp32.
        self.grad_norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        return _factor(self._max_norm, self.grad_norm)

    # ------------------------------------------------------------------ the methods of an optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: change ``group["lr"]`` before the last backward pass of the step it should apply to."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Nothing: there are only the optimizer's."""

    @property
    def state(self) -> Any:
        """The optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        """Nothing: there is only the optimizer's."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer; its parameters update in backward passes, too."""
        if any(param_group is group for group in self.optimizer.param_groups):
            return
        self.optimizer.add_param_group(param_group)
        self._kept.index()
        for p in self.optimizer.param_groups[-1]["params"]:
            self._hook(p)

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update by the gradients of fewer than ``accumulate`` passes, if there are such; otherwise nothing is left to do.

        Args:
            closure: called first, with gradients enabled; updates happen in its backward pass.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._pass.open:
            raise LowtideRuntimeError(
                "the last backward pass was broken off; call zero_grad() before the next one"
            )
        if self.passes:
            self._finish()
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # for schedulers of the inner optimizer
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients that are left over, and begin the step anew (there are none after a complete one)."""
        for p in self._params():
            self._kept.drop(p)
        self._pass.forget()
        self._next_step()
        self._kept.peak_bytes = 0

    @property
    def peak_gradient_bytes(self) -> int:
        """Most gradient bytes seen alive at once since :meth:`zero_grad`."""
        return self._kept.peak_bytes

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state; between the passes of a step also what was accumulated, under ``"in_backward"``."""
        state = self.optimizer.state_dict()
        extra: dict[str, Any] = {}
        if self.passes:
            extra = {"passes": self.passes, **self._kept.state_dict()}
        if self._clip == "previous" and self.grad_norm is not None:
            extra["grad_norm"] = self.grad_norm
        return {**state, "in_backward": extra} if extra else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, or the state of the optimizer alone.

        Raises:
            LowtideValueError: it does not fit; nothing was changed.
        """
        state = dict(state_dict)
        extra = state.pop("in_backward", {})
        passes = extra.get("passes", 0)
        if not isinstance(passes, int) or not 0 <= passes < self.accumulate:
            raise LowtideValueError(
                f"the saved step has had {passes!r} backward passes, this handle makes a step of {self.accumulate}; "
                "build it with the accumulate that was saved"
            )
        self._kept.check(extra)
        self.optimizer.load_state_dict(state)
        self.zero_grad()
        self.passes = passes
        self.grad_norm = extra.get("grad_norm")
        self._kept.load_state_dict(extra)

    def state_bytes(self) -> dict[str, int]:
        """Bytes by kind; ``gradients`` are the most that lived at once. Where passes are accumulated or gradients wait for
        their norm: how many bytes are kept now, in subspaces (``kept_projected``) and whole (``kept_whole``)."""
        count = {**self.optimizer.state_bytes(), "gradients": self.peak_gradient_bytes}
        if self.accumulate > 1 or self._clip == "exact":
            count["kept_projected"], count["kept_whole"] = self._kept.bytes_by_kind()
        return count

    @property
    def skipped_blocks(self) -> int:
        """See :attr:`Composed.skipped_blocks`."""
        return self.optimizer.skipped_blocks

    def close(self) -> None:
        """Remove the hooks; gradients accumulate again as usual."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for p in self._params():
            if weight_store.is_quantized(p):
                p.quant.grad_hook = None

    def __reduce__(self) -> Any:
        raise LowtideTypeError(
            "an in_backward handle cannot be copied or pickled, its hooks belong to one model; save state_dict(), or copy model "
            "and optimizer and call in_backward again"
        )

    def _hook(self, p: Tensor) -> None:
        if weight_store.is_quantized(p):
            p.quant.grad_hook = self._on_gradient
        else:
            self._handles.append(p.register_post_accumulate_grad_hook(self._on_gradient))  # type: ignore[no-untyped-call]

    def _params(self) -> list[Tensor]:
        return list(chain.from_iterable(g["params"] for g in self.optimizer.param_groups))


def _factor(limit: float, norm: float) -> float | None:
    """What to multiply gradients of that norm by; None for 1. Not for NaN: the optimizer's own policy decides about that."""
    factor = float(limit / (torch.tensor(norm, dtype=torch.float32) + 1e-6))
    return factor if factor < 1.0 else None


def in_backward(
    opt_factory: Callable[[nn.Module], Composed] | Composed,
    model: nn.Module,
    *,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    clip: str = "exact",
    refresh_from: str = "all",
    process_group: Any = None,
) -> InBackward:
    """Update parameters inside the backward pass and free each gradient at once.

    Args:
        opt_factory: called with ``model``, returns an optimizer of :mod:`lowtide.optim`; or such an optimizer.
        model: the module whose parameters it trains.
        accumulate: backward passes that make a step; their gradients add up, as in ``p.grad`` (divide the loss). Where the
            residual is dropped (GaLore, Q-GaLore, GRASS) and the subspace stays, they add up within it, r x n instead of
            m x n; elsewhere at full size.
        max_grad_norm: clip the norm of all gradients together to this, > 0; None: do not.
        clip: how that norm is known. ``"exact"``: as torch.nn.utils.clip_grad_norm_; gradients are kept until the backward pass
            ends (with ``accumulate=1`` projected where they add up projected, else at full size). ``"two_pass"``: the same
            factor, nothing kept: ``handle.backward(loss)`` runs a backward pass to measure and another to update.
            ``"previous"``: by the norm of the step before (the first step: each parameter by its own); nothing kept.
            Gradients that were accumulated within a subspace count as they are there.
        refresh_from: where gradients are kept in subspaces and one is to be replaced. ``"all"``: the whole gradients of that step
            are kept, and the result is that of no ``in_backward``. ``"first"``: it is found in the gradient of the
            first pass, before clipping, so that at no time whole gradients are kept.
        process_group: a ``torch.distributed`` group over which gradients are averaged as they arrive, in their subspace where
            they are kept there. Parameters must be equal at the start, and get gradients on all ranks or on none.

    Returns:
        A handle that is an optimizer for training loops and schedulers.

    Raises:
        LowtideTypeError, LowtideValueError: a bad argument, or a model wrapped in DistributedDataParallel or sharded.

    >>> import torch, lowtide as lt
    >>> model = torch.nn.Linear(8, 4)
    >>> opt = lt.optim.in_backward(lambda m: lt.optim.AdamW(m.parameters(), lr=1e-3), model)
    >>> model(torch.ones(2, 8)).sum().backward(); opt.step()
    >>> model.weight.grad is None
    True
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise LowtideValueError(
            "model is wrapped in DistributedDataParallel, which averages gradients after in_backward has used them; pass the module "
            "itself and process_group=torch.distributed.group.WORLD"
        )
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise LowtideValueError(f"accumulate must be an integer >= 1 (backward passes), got {accumulate!r}")
    if max_grad_norm is not None and not 0.0 < max_grad_norm < float("inf"):
        raise LowtideValueError(f"max_grad_norm must be a finite number > 0 or None, got {max_grad_norm!r}")
    if clip not in CLIPS:
        raise LowtideValueError(f"clip must be one of {', '.join(CLIPS)}, got {clip!r}")
    if refresh_from not in REFRESH_FROM:
        raise LowtideValueError(
            f"refresh_from must be one of {', '.join(REFRESH_FROM)}, got {refresh_from!r}"
        )
    if clip == "two_pass" and max_grad_norm is not None and accumulate > 1:
        raise LowtideValueError(
            f"clip='two_pass' measures one backward pass, accumulate is {accumulate}; use clip='exact' or 'previous'"
        )
    optimizer = opt_factory if isinstance(opt_factory, Composed) else opt_factory(model)
    if not isinstance(optimizer, Composed):
        raise LowtideTypeError(
            f"opt_factory must return an optimizer of lowtide.optim, got {type(optimizer).__name__}"
        )
    if any(is_distributed(p) for group in optimizer.param_groups for p in group["params"]):
        raise LowtideValueError(
            "model is sharded by fully_shard, which gives parameters their gradients where no hook of in_backward sees it; "
            "use the optimizer without in_backward"
        )
    if optimizer._axes.curvature is not None or optimizer._axes.transform is not None:
        raise LowtideValueError(
            f"{type(optimizer).__name__} makes something of all gradients together, it needs them at once; "
            "use it without in_backward"
        )
    return InBackward(
        optimizer,
        accumulate=accumulate,
        max_grad_norm=max_grad_norm,
        clip=clip,
        refresh_from=refresh_from,
        process_group=process_group,
        shared=shared_parameters(model),
    )
