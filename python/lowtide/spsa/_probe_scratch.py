# SPDX-License-Identifier: Apache-2.0
"""The scratch probe: weights are perturbed module by module into one buffer, while the module runs.

Hooks around each module that owns parameters point them at master + eps z, written into a buffer as large as the
largest module, and back when its forward has ended or failed. The masters are read, never written. Of large tables
only what is read is perturbed: an embedding's rows, and a linear layer, such as a language model's head, in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lowtide._compile import hooks_seen
from lowtide.errors import LowtideRuntimeError, LowtideValueError
from lowtide.spsa._masters import Address, Masters
from lowtide.spsa._probes import Probe

T = TypeVar("T")
_ALIGN = 64
#: Rows of an embedding that are perturbed one by one, at most.
_ROWS = 2048
#: Bytes of a linear layer's weight that are perturbed at a time where it has more.
_TILE = 16 << 20


class _Arena:
    """A stack of tensors in one buffer that grows until it holds the deepest nest of modules."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.top = self.peak = 0
        #: Bytes that were ever written, and those of the top tensor that are not: pages that nobody touches take no memory.
        self.written = self.spared = 0
        self._views: dict[tuple[int, int], Tensor] = {}
        self._extra: list[Tensor] = []

    def take(self, key: int, like: Tensor) -> Tensor:
        """An uninitialised tensor like ``like``; ``key`` names it, views are kept."""
        start = self.top
        self.top += -(-like.nbytes // _ALIGN) * _ALIGN
        self.peak = max(self.peak, self.top)
        if self.top > self.buffer.numel() or self.buffer.device != like.device:
            view = torch.empty_like(like, memory_format=torch.contiguous_format)
            self._extra.append(view)
            return view
        view_or_none = self._views.get((key, start))
        if view_or_none is None:
            raw = self.buffer[start : start + like.nbytes].view(like.dtype)
            view_or_none = self._views[(key, start)] = raw.view(like.shape)
        return view_or_none

    def mark(self) -> tuple[int, int]:
        """The height of the stack, for :meth:`release`."""
        return self.top, len(self._extra)

    def release(self, mark: tuple[int, int]) -> None:
        """Give back what was taken since ``mark``: tensors that did not fit are freed, or the first evaluation would hold the model twice."""
        self.written, self.spared = max(self.written, self.top - self.spared), 0
        self.top = mark[0]
        del self._extra[mark[1] :]

    def holds(self, t: Tensor) -> bool:
        """Whether a tensor lies in here."""
        at = t.untyped_storage().data_ptr()
        return at != 0 and (
            at == self.buffer.untyped_storage().data_ptr()
            or any(at == e.untyped_storage().data_ptr() for e in self._extra)
        )

    def reset(self, device: torch.device) -> None:
        """Nothing is in use any more; what did not fit will fit the next time."""
        self.release((0, 0))
        if self.peak > self.buffer.numel() or self.buffer.device != device:
            self._views.clear()
            self.buffer = torch.empty(0, dtype=torch.uint8)  # freed before the larger one is allocated
            self.buffer = torch.empty(self.peak, dtype=torch.uint8, device=device)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports each op that reads a parameter's own memory, which inside of a probe should be swapped away."""

    def __init__(self, probe: ScratchProbe) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._probe = probe
        self._at: dict[int, list[tuple[int, int, int]]] = {}
        for i, t in enumerate(probe.home):
            if t.numel():
                span = (t.data_ptr(), t.data_ptr() + t.nbytes, i)
                self._at.setdefault(t.untyped_storage().data_ptr(), []).append(span)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._probe.busy:
            for t in tree_leaves((args, kwargs or {})):
                if isinstance(t, Tensor) and t.layout == torch.strided:
                    for start, stop, i in self._at.get(t.untyped_storage().data_ptr(), ()):
                        if start <= t.data_ptr() < stop:
                            self._probe.read_outside(i)
        return func(*args, **(kwargs or {}))


class ScratchProbe(Probe):
    """Peak memory over inference: the largest module, of linear layers a tile. See the module's docstring."""

    def __init__(self, masters: Masters, live: Sequence[Tensor], module: nn.Module | None) -> None:
        super().__init__(masters, live, module)
        if module is None:
            raise LowtideValueError("probe='scratch' needs module=model; without one use probe='snapshot'")
        self.busy = False
        self._arena = _Arena()
        self._eps, self._address = 0.0, (0, 0)
        self._active = self._known = False
        self._again = False
        self._frames: list[tuple[nn.Module, list[int], tuple[int, int]]] = []
        self._swapped: set[int] = set()
        self._visited: set[int] = set()
        self._handles: list[Any] = []
        #: Layers whose forward is ours during a step, and the one that runs in tiles now.
        self._wide: list[nn.Linear] = []
        self._tiled: nn.Module | None = None
        self._stance: Any = None
        index = {id(t): i for i, t in enumerate(self.live)}
        #: Tensors that each module reads in its forward.
        self._units: dict[nn.Module, list[int]] = {}
        for m in module.modules():
            own = [*m._parameters.values(), *m._buffers.values()]
            ids = [index[id(t)] for t in own if t is not None and id(t) in index]
            if ids:
                self._units[m] = list(dict.fromkeys(ids))

    # ------------------------------------------------------------------ a step

    def begin(self) -> None:
        """Put the hooks in: on all modules until the structure is known, then on those that own parameters."""
        if self._active:
            raise LowtideRuntimeError("a probe is active already; leave it before the next one starts")
        super().begin()
        assert self.module is not None
        for m in self._units if self._known else self.module.modules():
            self._handles.append(m.register_forward_pre_hook(self._enter, prepend=True))
            self._handles.append(m.register_forward_hook(self._leave, always_call=True))
        for m in self._units:
            if type(m) is nn.Linear and m.weight.nbytes > _TILE and "forward" not in m.__dict__:
                self._wide.append(m)
                m.forward = partial(self._linear, m)  # type: ignore[method-assign]
        self._stance = hooks_seen()
        self._stance.__enter__()

    def end(self) -> None:
        """Take the hooks out."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for m in self._wide:
            del m.forward
        self._wide.clear()

    @contextmanager
    def at(self, eps: float, address: Address) -> Iterator[None]:
        """See :meth:`Probe.at`."""
        if eps == 0.0:
            yield
            return
        self._active, self._eps, self._address, self._again = True, eps, address, False
        learning = not self._known
        self._visited.clear()
        try:
            with _Watch(self) if learning else nullcontext():
                yield
        finally:
            self._active = False
            self._tiled = None
            self._frames.clear()
            self._swapped.clear()
            self.restore()
            self._arena.reset(self.home[0].device if self.home else torch.device("cpu"))
        if learning and not self._again:
            self._check_all_visited()
            self._known = True

    def evaluate(self, closure: Callable[[], T], eps: float, address: Address) -> T:
        """See :meth:`Probe.evaluate`; repeated while it finds modules that read the weights of others."""
        for _ in range(8):
            state = torch.get_rng_state() if not self._known else None
            result = super().evaluate(closure, eps, address)
            if not self._again:
                return result
            if state is not None:
                torch.set_rng_state(state)
        raise LowtideRuntimeError(
            "the model reads other parameters in each call of the closure; use probe='snapshot'"
        )

    @property
    def unfinished(self) -> bool:
        """Whether the last context found a module that reads another's weight: what it computed does not count."""
        return self._again

    def nbytes(self) -> int:
        """Bytes of the buffer that are in use: of an embedding the rows that were looked up."""
        return min(self._arena.written, self._arena.buffer.nbytes)

    # ------------------------------------------------------------------ hooks

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not self._active:
            return
        ids = [i for i in self._units.get(module, ()) if i not in self._swapped]
        mark = self._arena.mark()
        self.busy = True
        try:
            if self._tiles(module, args, ids):
                self._tiled = module
                self._visited.update(ids)
                ids = []
            if ids:
                views = [self._arena.take(i, self.home[i]) for i in ids]
                if not self._looked_up(module, args, ids, views, self._eps):
                    self.masters.perturb(views, ids, self._eps, self._address)
                for i, view in zip(ids, views, strict=True):
                    self.live[i].data = view
                self._swapped.update(ids)
                self._visited.update(ids)
        finally:
            self.busy = False
        self._frames.append((module, ids, mark))

    def _looked_up(
        self, module: nn.Module, args: Any, ids: list[int], views: list[Tensor], eps: float
    ) -> bool:
        """A lookup reads a few rows of a large table: only these are perturbed, if nobody else can see the others."""
        if (
            type(module) is not nn.Embedding
            or module.max_norm is not None
            or len(ids) != 1
            or not self.masters.by_rows(ids[0])
            or not self._unwatched(module)
            or len(args) != 1
            or not isinstance(args[0], Tensor)
        ):
            return False
        rows = torch.unique(args[0]).tolist()
        if len(rows) > min(_ROWS, module.num_embeddings // 8) or (rows and rows[0] < 0):
            return False
        self.masters.perturb_rows([(views[0][r], r) for r in rows], ids[0], eps, self._address)
        self._arena.spared = (len(views[0]) - len(rows)) * views[0][0].nbytes
        return True

    @staticmethod
    def _unwatched(module: nn.Module) -> bool:
        """Whether our two hooks are its only ones: others could read the weight."""
        return len(module._forward_hooks) + len(module._forward_pre_hooks) == 2

    def _tiles(self, module: nn.Module, args: Any, ids: list[int]) -> bool:
        """Whether this call of a layer can see its weight in parts."""
        if module not in self._wide or not ids or not self._unwatched(module):
            return False
        (weight, *rest), x = ids, args[0] if len(args) == 1 else None
        return (
            ids == self._units[module]
            and self.live[weight] is module.weight
            and all(self.live[i] is module.bias for i in rest)
            and isinstance(x, Tensor)
            and x.dtype == module.weight.dtype
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
            and self.masters.by_rows(weight)
        )

    def _linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """The forward of a wide layer."""
        if self._tiled is not module:
            return nn.Linear.forward(module, x)
        self._tiled = None
        weight, *rest = self._units[module]
        bias: Any = module.bias
        self.busy = True
        try:
            mark = self._arena.mark()
            if rest:
                bias = self._arena.take(rest[0], self.home[rest[0]])
                self.masters.perturb([bias], rest, self._eps, self._address)
            out, n = x.new_empty((x.numel() // x.shape[-1], module.out_features)), module.out_features
            rows = max(1, _TILE // self.home[weight][0].nbytes)
            tile = self._arena.take(-1 - weight, self.home[weight][:rows])
            flat = x.reshape(-1, x.shape[-1])
            for first in range(0, n, rows):
                part = tile[: n - first]
                self.masters.perturb_rows([(part, first)], weight, self._eps, self._address)
                piece = out[:, first : first + rows]
                if bias is None:
                    torch.mm(flat, part.t(), out=piece)
                else:
                    torch.addmm(bias[first : first + rows], flat, part.t(), out=piece)
            self._arena.release(mark)
        finally:
            self.busy = False
        return out.view(*x.shape[:-1], n)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._active or not self._frames or self._frames[-1][0] is not module:
            return None
        _, ids, mark = self._frames.pop()
        if not ids:
            return None
        for i in ids:
            self.live[i].data = self.home[i]
        self._swapped.difference_update(ids)
        kept = self._own(output)
        self._arena.release(mark)
        return kept

    def _own(self, output: Any) -> Any:
        """A copy of an output that is a weight, or a view of it, which the buffer's next tenant would overwrite; else None."""
        held = self._arena.holds
        if isinstance(output, Tensor):
            return output.clone() if held(output) else None
        if output is None or not any(isinstance(t, Tensor) and held(t) for t in tree_leaves(output)):
            return None
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) and held(t) else t, output)

    # ------------------------------------------------------------------ learning the structure

    def read_outside(self, i: int) -> None:
        """Tensor ``i`` was read unperturbed: the innermost running module takes it over, as nn.MultiheadAttention
        needs for its output projection."""
        reader = self._frames[-1][0] if self._frames else None
        if reader is None or reader is self.module:
            where = (
                "outside of the model's forward" if reader is None else "in the forward of the whole model"
            )
            raise LowtideRuntimeError(
                f"{self._name(i)} is read {where} and not by a module that owns it, so its perturbation cannot be "
                "swapped in for a single module; use probe='snapshot'"
            )
        unit = self._units.setdefault(reader, [])
        if i not in unit:
            unit.append(i)
            self._again = True

    def _check_all_visited(self) -> None:
        missing = [self._name(i) for i in range(len(self.live)) if i not in self._visited]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise LowtideRuntimeError(
                f"{', '.join(missing[:3])}{more}: no module that owns it ran in the closure's forward, so it would not be "
                "perturbed. Pass the model that the closure calls as module=, freeze the parameter, or use probe='snapshot'"
            )

    def _name(self, i: int) -> str:
        return self.masters.manifest.entries[i].name
