# SPDX-License-Identifier: Apache-2.0
"""Gradients that wait for their update: at full size where they arrived, or projected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.optim import weights as weight_store
from lowtide.optim.axes import projected_shape
from lowtide.optim.engine import Composed
from lowtide.optim.low_rank import needs_projection_only, project, renew_basis


class KeptGradients:
    """What is kept of the gradients of an optimizer's parameters between hooks.

    Args:
        optimizer: whose parameters these are.
        compress: keep what the update needs within its subspace, where that is all it needs.
        refresh_early: find a subspace that is due in the first gradient that arrives.
        process_group: average over this group before an update; None: there is none.

    Attributes:
        ready: ids of parameters whose gradient is complete for this step.
        norms: by such an id, norms that were measured: fp32 scalars.
        peak_bytes: the most bytes alive at once.
    """

    def __init__(
        self, optimizer: Composed, *, compress: bool, refresh_early: bool, process_group: Any = None
    ) -> None:
        self._optimizer = optimizer
        self._compress = compress
        self._early = refresh_early
        self._group = process_group
        self._projected: dict[int, Tensor] = {}
        self._alive: dict[int, int] = {}
        self._total = 0
        self.ready: set[int] = set()
        self.norms: dict[int, Tensor] = {}
        self.peak_bytes = 0
        self.index()

    def index(self) -> None:
        """Look the optimizer's groups up again."""
        self._where = {
            id(p): (group, param_id)
            for group in self._optimizer.param_groups
            for p, param_id in zip(group["params"], group["param_ids"], strict=True)
        }

    def holds(self, p: Tensor) -> bool:
        """Whether anything waits."""
        return id(p) in self._projected or weight_store.gradient(p) is not None

    def count(self, p: Tensor) -> None:
        """Take the bytes of ``p`` into account."""
        grad, r = weight_store.gradient(p), self._projected.get(id(p))
        now = (0 if grad is None else grad.nbytes) + (0 if r is None else r.nbytes)
        self._total += now - self._alive.get(id(p), 0)
        self._alive[id(p)] = now
        self.peak_bytes = max(self.peak_bytes, self._total)

    def keep(self, p: Tensor, *, last: bool, waits: bool, measure: bool) -> None:
        """A gradient arrived.

        Args:
            p: its parameter.
            last: whether it is the last one of the step: then it is averaged over the ranks.
            waits: whether the update does not follow at once.
            measure: whether the norm is wanted, of the last one.
        """
        summed = id(p) in self._projected
        if last and not summed:
            self.complete(p, measure)
        if self._compress and (summed or waits):
            r = self._project(p)
            if r is not None:
                self._projected[id(p)] = self._projected[id(p)].add_(r) if summed else r
                weight_store.release(p)
        if last and summed:
            self.complete(p, measure)
        self.count(p)

    def complete(self, p: Tensor, measure: bool) -> None:
        """Nothing more comes for ``p`` in this step: average it over the ranks and ``measure`` its norm."""
        if id(p) in self.ready:
            return
        self.ready.add(id(p))
        kept = [x for x in (weight_store.gradient(p), self._projected.get(id(p))) if x is not None]
        for x in kept:
            self._average(x)
        if measure and kept:
            self.norms[id(p)] = torch.linalg.vector_norm(kept[-1]).float()

    def _project(self, p: Tensor) -> Tensor | None:
        grad = weight_store.gradient(p)
        assert grad is not None
        opt, axes = self._optimizer, self._optimizer._axes
        group, param_id = self._where[id(p)]
        if "rank" not in group or not needs_projection_only(axes, p):
            return None
        opt._check_gradients([(p, grad)])
        state = opt.state[p]
        if not state:
            axes.create_state(group, p, state)
        if "side" not in state:
            return None
        renewed = id(p) in self._projected
        if self._early and not renewed and axes.refresh.due(state, state["step"]):
            self._average(grad)
            renew_basis(axes, group, state, grad.reshape(grad.shape[0], -1), param_id)
            renewed = True
        r = project(axes, grad, state, renewed)
        if axes.meter is not None and r is not None:
            axes.meter.energy(param_id, state["step"] + 1, axes.basis_of(state), grad, r)
        return r

    def _average(self, x: Tensor) -> None:
        if self._group is not None:
            import torch.distributed as dist

            dist.all_reduce(x, group=self._group)
            x /= dist.get_world_size(self._group)

    def update(self, p: Tensor, factor: float | None) -> None:
        """Step ``p`` by what is kept, times ``factor``, and let go of it."""
        r, grad = self._projected.pop(id(p), None), weight_store.gradient(p)
        x = grad if r is None else r
        if x is not None and factor is not None:
            x.mul_(factor)
        if r is not None:
            group, param_id = self._where[id(p)]
            self._optimizer.update_projected(group, p, param_id, r)
        else:
            self._optimizer.update([p])
        self.drop(p)

    def drop(self, p: Tensor) -> None:
        """Let go of what is kept."""
        self._projected.pop(id(p), None)
        weight_store.release(p)
        self._total -= self._alive.pop(id(p), 0)

    def next_step(self) -> None:
        """Forget what was known of this step's gradients."""
        self.ready.clear()
        self.norms.clear()

    # ------------------------------------------------------------------ state

    def bytes_by_kind(self) -> tuple[int, int]:
        """Bytes that wait now: projected, and at full size."""
        whole = [g.nbytes for p in self._params() if (g := weight_store.gradient(p)) is not None]
        return sum(r.nbytes for r in self._projected.values()), sum(whole)

    def state_dict(self) -> dict[str, Any]:
        """Tensors by place of the parameter in the optimizer's groups."""
        out: dict[str, Any] = {"projected": {}, "gradients": {}}
        for i, p in enumerate(self._params()):
            if id(p) in self._projected:
                out["projected"][i] = self._projected[id(p)]
            elif (grad := weight_store.gradient(p)) is not None:
                out["gradients"][i] = grad
        return out

    def check(self, saved: dict[str, Any]) -> None:
        """Refuse what does not fit the parameters."""
        params = self._params()
        for kind in ("projected", "gradients"):
            for i, x in saved.get(kind, {}).items():
                if not isinstance(i, int) or not 0 <= i < len(params) or not isinstance(x, Tensor):
                    raise LowtideValueError(
                        f"saved {kind} have no parameter {i!r}; build the groups as they were"
                    )
                shape = weight_store.shape(params[i])
                fits = x.shape == shape if kind == "gradients" else x.ndim == 2 and self._fits(x, params[i])
                if not fits:
                    raise LowtideValueError(
                        f"saved {kind} of shape {tuple(x.shape)} do not fit a parameter of shape {tuple(shape)}; build the "
                        "optimizer with the settings it was saved with"
                    )

    def _fits(self, r: Tensor, p: Tensor) -> bool:
        want: dict[str, Any] = {}
        self._optimizer._axes.create_state(self._where[id(p)][0], p, want, saved=self._optimizer.state.get(p))
        shape = weight_store.shape(p)
        if "side" not in want:
            return False
        return tuple(r.shape) == projected_shape(want, shape[0], shape.numel() // shape[0])

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back a :meth:`state_dict` that was checked."""
        params = self._params()
        for i, r in saved.get("projected", {}).items():
            self._projected[id(params[i])] = r.clone()
        for i, grad in saved.get("gradients", {}).items():
            p = params[i]
            if weight_store.is_quantized(p):
                p.quant.main_grad = grad.clone()
            else:
                p.grad = grad.to(p.dtype, copy=True)
        for p in params:
            self.count(p)

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]
